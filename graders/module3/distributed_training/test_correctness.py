"""Hidden correctness checks of 3.3 distributed_training.

Core is tasks 1 to 5 (PyTorch's DDP configured, and one's own with averaged gradients); 6 (overlap and order), 7
(no_sync), 8 (the ring) and 9 (checkpoints and training) are stretch. A core check does not care *when* a bucket is sent.

Ranks are real processes: a probe forks them beside the submission, and they meet over gloo on the loopback interface.
What they should have computed is computed here, in one process on the batches of all ranks.

Mended in the specification (module3.questions.md):
* `train` has a data format, a loss, an optimiser and keys; `ddp_run.json` has a layout; a checkpoint has keys.
* Frozen parameters are broadcast, their gradients never sent. A change of dtype closes a bucket. The cap is inclusive,
  and a "MB" is 2^20 bytes.
* `global_token_loss` takes the tokens of the whole step; without any token it is 0.
* The judge needs no transformers: the tied language model is the grader's, five tensors in float64.
* Payload and overlap are counted on a network of the grader's (test_budgets.py), not by dispatcher events.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from llmkata.checks import check, expect_error, hint, points, probe, same, sk, task
from llmkata.outside.probe import probe_source

F64 = torch.float64
EXACT = {"atol": 1e-11, "rtol": 1e-9}


@probe
def on_ranks(module, scenario, world, args, ddp):
    """Each of `world` ranks runs scenario(module, rank, world, meeting, *args). Their answers, by rank.

    Rank 0 is this process, the others are forked from it. What a rank raises is raised here. Without `ddp` PyTorch's
    DDP cannot be constructed.
    """
    import builtins
    import gc
    import os
    import pickle
    import signal
    import socket
    import sys
    import tempfile
    import traceback
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    scope = {}
    exec(scenario[1], scope)  # noqa: S102 - the grader's own source

    def refuse(*args, **kwargs):
        raise TypeError("BucketedDDP is to be written: DistributedDataParallel is not at hand here.")

    def answer(rank, meeting):
        try:
            if not ddp:
                torch.nn.parallel.DistributedDataParallel.__init__ = refuse
            return {"value": scope[scenario[0]](module, rank, world, meeting, *args)}
        except BaseException as error:  # noqa: BLE001 - whatever a rank dies of is told
            kind = next(c for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c)
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == module.__file__]
            return {"error": kind.__name__, "message": str(error), "line": frames[-1].lineno if frames else None}

    def leave():
        if dist.is_initialized():
            dist.destroy_process_group()

    def run(rank, meeting, out, go):
        sys.setprofile(None)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(15)  # a rank that hangs in the network's code ends too
        torch.set_num_threads(1)
        found = answer(rank, meeting)
        with os.fdopen(out, "wb") as pipe:
            pickle.dump(found, pipe)
        if "value" in found:
            os.read(go, 1)  # whoever leaves early breaks the connections of the others

    constructor, environ = torch.nn.parallel.DistributedDataParallel.__init__, dict(os.environ)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        meeting = {"folder": folder, "url": f"tcp://127.0.0.1:{port}", "port": port, "patience": timedelta(seconds=6)}
        free.close()
        go, gone = os.pipe()
        ranks, found = [], []
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        try:
            for rank in range(1, world):
                answers, out = os.pipe()
                pid = os.fork()
                if pid == 0:
                    try:
                        gc.freeze()  # a group among the parent's garbage would wait here for threads that are not here
                        os.close(gone)
                        run(rank, meeting, out, go)
                    finally:
                        os._exit(0)
                os.close(out)
                ranks.append((pid, answers))
            mine = answer(0, meeting)
            found.append(mine)
            if mine.get("error", "RuntimeError") != "RuntimeError":
                for pid, _ in ranks:
                    os.kill(pid, signal.SIGKILL)  # its own mistake: the others would wait for it in vain
            if "error" in mine:
                leave()
            for _, answers in ranks:
                with os.fdopen(answers, "rb") as pipe:
                    body = pipe.read()
                late = {"error": "TimeoutError", "message": "it did not come to an end in 15 s", "line": None}
                found.append(pickle.loads(body) if body else late)
        finally:
            leave()
            torch.nn.parallel.DistributedDataParallel.__init__ = constructor
            os.environ.clear()
            os.environ.update(environ)
            os.close(gone)
            for pid, _ in ranks:
                os.waitpid(pid, 0)
            os.close(go)
    failed = [(rank, f) for rank, f in enumerate(found) if "error" in f]
    # Where one rank dies the others lose their connection or wait in vain: their errors come last.
    failed.sort(key=lambda item: item[1]["error"] in ("RuntimeError", "TimeoutError"))
    for rank, f in failed:
        if f["error"] == "NotImplementedError":
            raise NotImplementedError(f["message"])
        where = f"rank {rank}" + (f", line {f['line']}" if f["line"] else "")
        raise getattr(builtins, f["error"])(f"{where}: {f['message']}")
    return [f["value"] for f in found]


def ranks(submission, scenario, world, *args, ddp=False):
    """What `scenario`, a probe, returned on each rank."""
    return submission.run(on_ranks, probe_source(scenario), world, args, ddp)


def normal(seed, *shapes, dtype=F64):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw, dtype=F64).to(dtype) for shape in shapes]


# --- task 1: the environment, and PyTorch's DDP -----------------------------------------------------------------------


def torchrun(rank, world, local=None):
    environ = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    return environ if local is None else {**environ, "LOCAL_RANK": str(local)}


@task(1)
@points(4)
@hint(
    "The device is chosen by LOCAL_RANK, which counts within one machine; RANK counts over all of them.",
    "Neither RANK nor WORLD_SIZE is a single process; only one of them is a mistake that should be told.",
)
def test_read_env(submission):
    """read_env knows torchrun's variables, machines with and without GPUs, and what cannot be."""
    table = [
        (torchrun(11, 16, 3), 8, (11, 16, 3, "nccl", "cuda:3")),
        (torchrun(0, 8, 7), 8, (0, 8, 7, "nccl", "cuda:7")),
        (torchrun(7, 8, 0), 1, (7, 8, 0, "nccl", "cuda:0")),
        (torchrun(1, 2, 1), 0, (1, 2, 1, "gloo", "cpu")),
        (torchrun(3, 4, 9), 0, (3, 4, 9, "gloo", "cpu")),
        (torchrun(1, 2), 4, (1, 2, 0, "nccl", "cuda:0")),
        ({}, 0, (0, 1, 0, "gloo", "cpu")),
        ({"HOME": "/"}, 2, (0, 1, 0, "nccl", "cuda:0")),
        ({"LOCAL_RANK": "5"}, 2, (0, 1, 0, "nccl", "cuda:0")),
    ]
    for environ, devices, want in table:
        env = submission.read_env(environ, devices)
        got = (env.rank, env.world_size, env.local_rank, env.backend, env.device)
        check(got == want, f"{environ} with {devices} CUDA devices.", got=got, want=want)
    for environ, devices, texts in [
        (torchrun(5, 8, 5), 4, ("5", "4")),
        (torchrun(3, 8, 2), 2, ("2",)),
        (torchrun(1, 2, 1), 1, ("1",)),
        (torchrun(8, 8, 0), 0, ("8",)),
        (torchrun(6, 4, 0), 8, ("6", "4")),
        (torchrun(-3, 4, 0), 0, ("-3", "4")),
        ({"RANK": "0"}, 0, ("WORLD_SIZE",)),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 0, ("RANK",)),
    ]:
        with expect_error(ValueError, *texts):
            submission.read_env(environ, devices)


@probe
def meet(module, rank, world, meeting, how):
    """init_distributed; what the default group is then, and what all_reduce adds up."""
    import os

    import torch
    import torch.distributed as dist

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    if how == "env":
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting["port"])}
    env = module.DistEnv(rank, world, rank, "gloo", "cpu")
    method = meeting["url"] if how == "url" else None
    module.init_distributed(env, method, timeout_s=7.5)
    total = torch.tensor(rank + 1)
    dist.all_reduce(total)
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    return [dist.get_rank(), dist.get_world_size(), dist.get_backend(), int(total),
            backend.options._timeout.total_seconds()]  # fmt: skip


@probe
def on_a_gpu(module):
    """What init_distributed and build_torch_ddp ask of torch for a rank whose device is cuda:3; nothing of it is done."""
    import inspect
    from unittest import mock

    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    events, signature = [], inspect.signature(DistributedDataParallel.__init__)

    def index(device):
        return device if isinstance(device, int) else torch.device(device).index

    class Model(torch.nn.Linear):
        def to(self, device):
            events.append(("moved", index(device)))
            return self

        def cuda(self, device):
            return self.to(device)

    def wrap(*args, **kwargs):
        told = signature.bind(*args, **kwargs).arguments
        events.append(("wrapped", [index(device) for device in told["device_ids"] or ()]))

    env = module.DistEnv(5, 8, 3, "nccl", "cuda:3")
    with (
        mock.patch.object(torch.cuda, "set_device", lambda device: events.append(("current", index(device)))),
        mock.patch.object(dist, "init_process_group", lambda *args, **kwargs: events.append(("group", 3))),
        mock.patch.object(DistributedDataParallel, "__init__", lambda *args, **kwargs: wrap(*args, **kwargs)),
    ):
        module.init_distributed(env)
        met = list(events)
        events.clear()
        module.build_torch_ddp(Model(1, 1), env)
    return met, events


@task(1)
@points(3)
@hint(
    "dist.init_process_group takes backend, rank, world_size, timeout (a timedelta) and init_method, or a store.",
    "A world of one process has no MASTER_ADDR: give it a store of its own, dist.HashStore().",
)
def test_init_distributed(submission):
    """Two processes meet by MASTER_ADDR or at a URL, one needs neither, and all have the timeout that was asked for."""
    for how, world in (("env", 2), ("url", 2), ("alone", 1)):
        found = ranks(submission, meet, world, how)
        total = sum(range(1, world + 1))
        for rank, got in enumerate(found):
            want = [rank, world, "gloo", total, 7.5]
            check(got == want, f"rank, world size, backend, sum, timeout ({how}).", got=got, want=want)
    met = [tuple(event) for event in submission.run(on_a_gpu)[0]]
    check(met == [("current", 3), ("group", 3)], "On a GPU: that GPU becomes the current one, then the group is made.",
          got=met)  # fmt: skip


@probe
def torch_ddp(module, rank, world, meeting, weights, batches, choices):
    """build_torch_ddp around a linear layer, with each choice of options: how it stands, and its gradient."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    found = []
    for options in choices:
        model = torch.nn.Linear(3, 2).double()
        with torch.no_grad():
            model.weight.copy_(weights[0] if rank == 0 else torch.zeros(2, 3))
            model.bias.copy_(weights[1])
        ddp = module.build_torch_ddp(model, module.DistEnv(rank, world, 1 - rank, "gloo", "cpu"), **options)
        stands = {"bucket_cap_mb": ddp.bucket_bytes_cap / 2**20, "find_unused_parameters": ddp.find_unused_parameters,
                  "gradient_as_bucket_view": ddp.gradient_as_bucket_view, "static_graph": ddp.static_graph}  # fmt: skip
        ddp(batches[rank]).square().mean().backward()
        grads = [model.weight.grad, model.bias.grad]
        found.append((type(ddp).__name__, ddp.module is model, stands, ddp.device_ids, grads))
    return found


@task(1)
@points(6)
@hint(
    "DistributedDataParallel takes all four options under the same names.",
    "device_ids is for a GPU, [local_rank]; on the CPU it is None.",
)
def test_build_torch_ddp(submission, reference):
    """DDP runs on two processes with the options that were asked for, and averages their gradients."""
    weight, bias, *batches = normal(3, (2, 3), (2,), (4, 3), (4, 3))
    default = {"bucket_cap_mb": 25.0, "find_unused_parameters": False, "gradient_as_bucket_view": True,
               "static_graph": False}  # fmt: skip

    def loss_of(x):
        return lambda p: (x @ p["weight"].T + p["bias"]).square().mean()

    want = reference.mean_gradients([loss_of(x) for x in batches], {"weight": weight, "bias": bias})
    choices = [
        {},
        {"bucket_cap_mb": 0.5, "find_unused_parameters": True, "gradient_as_bucket_view": False},
        {"bucket_cap_mb": 2.0, "static_graph": True},
    ]
    for answers in ranks(submission, torch_ddp, 2, [weight, bias], batches, choices, ddp=True):
        for (named, wrapped, stands, device_ids, grads), options in zip(answers, choices):
            check(named == "DistributedDataParallel" and wrapped, "It is DDP around the module given.", got=named)
            check(stands == {**default, **options}, "The options.", got=stands, want={**default, **options})
            check(not device_ids, "On the CPU device_ids is None.", got=device_ids)
            same(grads, list(want.values()), **EXACT, what="averaged gradients")
    done = [tuple(event) for event in submission.run(on_a_gpu)[1]]
    check(done == [("moved", 3), ("wrapped", [3])], "On cuda:3 the module is moved there, and device_ids is [3].", got=done)


# --- task 2: the data -------------------------------------------------------------------------------------------------

shards = st.tuples(st.integers(1, 200), st.integers(1, 8), st.integers(0, 3), st.integers(0, 99), st.booleans(),
                   st.booleans())  # fmt: skip


@probe
def all_shards(module, n, world, options):
    return [list(module.shard_indices(n, world, rank, **options)) for rank in range(world)]


@task(2)
@points(6)
@hint(
    "One permutation for all ranks, from a generator seeded with seed + epoch; rank r takes order[r::world_size].",
    "Without drop_last the order continues from its own beginning, [i % n], until all ranks have equally many.",
)
@sk.given(shards, examples=40)
def test_shard_indices(submission, reference, case):
    """Each rank has the examples that DistributedSampler gives it, in that order, in every epoch."""
    n, world, epoch, seed, shuffle, drop_last = case
    options = {"epoch": epoch, "seed": seed, "shuffle": shuffle, "drop_last": drop_last}
    got = submission.run(all_shards, n, world, options)
    want = [reference.shard_indices(n, world, rank, **options) for rank in range(world)]
    check(got == want, f"n={n}, world_size={world}, {options}: indices by rank.", got=got, want=want)


# --- task 3: buckets --------------------------------------------------------------------------------------------------


@task(3)
@points(6)
@hint(
    "Go through the parameters from the last to the first; close the bucket when the next one does not fit.",
    "Up to the cap means: a sum equal to it fits. Another dtype closes the bucket, as an oversize parameter does.",
)
@sk.given(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["float32", "bfloat16"])), max_size=12),
        st.integers(1, 30),
        st.booleans(),
    ),
    examples=60,
)
def test_plan_buckets(submission, reference, case):
    """plan_buckets is greedy from the last parameter on, keeps to the cap, and to one dtype a bucket."""
    parameters, cap, typed = case
    nbytes, dtypes = [4 * n for n, _ in parameters], [d for _, d in parameters] if typed else None
    got = [list(bucket) for bucket in submission.plan_buckets(nbytes, cap, dtypes)]
    want = reference.plan_buckets(nbytes, cap, dtypes)
    check(got == want, f"Buckets of {nbytes} under {cap} bytes, dtypes {dtypes}.", got=got, want=want)


# --- task 4: averaged gradients ---------------------------------------------------------------------------------------


@probe
def broadcast(module, rank, world, meeting, seed):
    """BucketedDDP around a module that each rank initialises in its own way: its state before and after."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    torch.manual_seed(seed + rank)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2).double())
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].num_batches_tracked.fill_(rank + 5)
    model[0].bias.requires_grad_(False)
    model[2].weight = torch.nn.Parameter(torch.randn(4, 2, dtype=torch.float64).T)  # not contiguous
    before = {name: t.clone() for name, t in model.state_dict().items()}
    wrapped = module.BucketedDDP(model, bucket_cap_mb=1.0)
    return before, dict(wrapped.module.state_dict()), wrapped.module is model


@task(4)
@points(4)
@hint(
    "Equal gradients on unequal weights keep the replicas unequal for ever: send rank 0's first.",
    "Parameters, frozen ones too, and buffers, module.buffers(): the counters of BatchNorm are integers.",
)
def test_initial_broadcast(submission, seed):
    """After construction all ranks hold rank 0's parameters and buffers, frozen ones too."""
    found = ranks(submission, broadcast, 3, seed % 1000)
    want = found[0][0]
    for rank, (_, after, kept) in enumerate(found):
        check(kept, "The module itself is wrapped, not a copy.", got=kept)
        for name, value in want.items():
            same(after[name], value, atol=0.0, rtol=0.0, what=f"{name} of rank {rank}")


@probe
def averaged(module, rank, world, meeting, weights, steps, caps, lr):
    """For each cap: the buckets, and the gradients of two steps of SGD on this rank's sequences; last in a group of its own."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F

    class TiedLM(torch.nn.Module):
        def __init__(self):
            super().__init__()
            names = ("embedding", "w1", "b1", "w2", "b2")
            for name, w in zip(names, weights):
                setattr(self, name, torch.nn.Parameter(w.clone()))
            self.output = self.embedding

        def forward(self, ids):
            h = self.embedding[ids].cumsum(1) / torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
            h = torch.tanh(torch.tanh(h @ self.w1.T + self.b1) @ self.w2.T + self.b2)
            return h @ self.output.T

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    found = []
    alone = [dist.new_group([r]) for r in range(world)][rank]
    for cap, group in [*((cap, None) for cap in caps), (caps[0], alone)]:
        model = TiedLM()
        wrapped = module.BucketedDDP(model, bucket_cap_mb=cap / 2**20, group=group)
        history = []
        for batches in steps:
            ids = torch.stack(batches[rank])
            model.zero_grad()
            F.cross_entropy(wrapped(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
            wrapped.finish_gradient_synchronization()
            history.append([p.grad.clone() for p in model.parameters()])
            with torch.no_grad():
                for p in model.parameters():
                    p -= lr * p.grad
        found.append(([list(bucket) for bucket in wrapped.buckets], history))
    return found


WORDS, WIDTH = 7, 3
LM_SHAPES = (WORDS, WIDTH), (WIDTH, WIDTH), (WIDTH,), (WIDTH, WIDTH), (WIDTH,)


def sequences(seed, lengths):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(WORDS, (n,), generator=draw) for n in lengths]


@task(4)
@points(10)
@hint(
    "Each bucket is one flat tensor: torch.cat of its gradients, all_reduce, cut up again. Sums become means: divide by W.",
    "The second step must start afresh. A tied parameter has one gradient, named_parameters() lists it once.",
)
def test_grads_equal_single_process(submission, reference, seed):
    """Two ranks get the gradients of one process with both batches, in two steps, with one, two and five buckets; in
    groups of one each rank keeps its own."""
    weights = normal(seed % 1000, *LM_SHAPES)
    # two steps; in each, for each of two ranks, two sequences of six tokens
    steps = [[sequences(seed % 1000 + 10 * s + r, (6, 6)) for r in range(2)] for s in range(2)]
    caps = {10_000: 1, 216: 2, 8: 5}  # bytes: 24, 72, 24, 72 together are 192; the embedding has 168
    want = reference.descend(weights, [a + b for a, b in steps], 0.5)
    names = ["embedding", "w1", "b1", "w2", "b2"]
    found = ranks(submission, averaged, 2, weights, steps, list(caps), 0.5)
    for rank, answers in enumerate(found):
        for (buckets, history), (cap, n) in zip(answers, caps.items()):
            plan = reference.plan_buckets([w.numel() * 8 for w in weights], cap)
            planned = [[names[i] for i in bucket] for bucket in plan]
            check(buckets == planned and len(planned) == n, f"buckets under {cap} bytes.", got=buckets, want=planned)
            same(history, want, **EXACT, what=f"gradients of two steps on rank {rank}, cap {cap} bytes")
        own = reference.descend(weights, [batches[rank] for batches in steps], 0.5)
        same(answers[-1][1], own, **EXACT, what=f"gradients of two steps on rank {rank}, alone in its group")


@probe
def sparsely_used(module, rank, world, meeting, values, caps):
    """Parameters of which ranks use different ones: names sent, and all gradients."""
    import torch
    import torch.distributed as dist

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in values.items():
                setattr(self, name, torch.nn.Parameter(value.clone(), requires_grad=name != "frozen"))

        def forward(self, x):
            y = x * self.shared * self.frozen
            return y * self.second if rank == 1 else y

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    found = []
    for cap in caps:
        model = Model()
        wrapped = module.BucketedDDP(model, bucket_cap_mb=cap / 2**20)
        for _ in range(2):
            model.zero_grad()
            wrapped(torch.arange(3.0, dtype=torch.float64) + rank).square().sum().backward()
            wrapped.finish_gradient_synchronization()
        sent = [name for bucket in wrapped.buckets for name in bucket]
        found.append((sent, {name: p.grad for name, p in model.named_parameters()}))
    return found


@task(4)
@points(5)
@hint(
    "What has no gradient on this rank may have one on another: it is sent as zeros, and takes the average.",
    "Only parameters with requires_grad are in buckets.",
)
def test_unused_and_frozen(submission, reference):
    """A parameter that only one rank used gets half its gradient on both; frozen ones get none and are not sent."""
    values = dict(zip(("shared", "second", "unused", "frozen"), normal(5, *[(3,)] * 4)))
    x = torch.arange(3.0, dtype=F64)

    def loss_of(rank):
        def loss(p):
            y = (x + rank) * p["shared"] * values["frozen"]
            return (y * p["second"] if rank else y).square().sum()

        return loss

    want = reference.mean_gradients([loss_of(0), loss_of(1)], {n: v for n, v in values.items() if n != "frozen"})
    for rank, answers in enumerate(ranks(submission, sparsely_used, 2, values, [1, 1000])):
        for sent, grads in answers:
            check(sent == ["unused", "second", "shared"], "Parameters in buckets.", got=sent)
            check(grads["frozen"] is None, "A frozen parameter gets no gradient.", got=grads["frozen"])
            same(grads["shared"], want["shared"], **EXACT, what=f"gradient that both ranks have, rank {rank}")
            check(grads["second"] is not None, "Rank 1 used `second`, so rank 0 gets a gradient too.", got=None)
            same(grads["second"], want["second"], **EXACT, what=f"gradient that only rank 1 has, rank {rank}")
            unused = grads["unused"]
            check(unused is None or not unused.any(), "What no rank used has no gradient, or zeros.", got=unused)


@probe
def mixed(module, rank, world, meeting, values):
    """Gradients and buckets of parameters of several dtypes; the loss adds up (rank + 1) · value²."""
    import torch
    import torch.distributed as dist

    class Squares(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for i, v in enumerate(values):
                self.register_parameter(str(i), torch.nn.Parameter(v.clone()))

        def forward(self, factor):
            return sum(p.double().square().sum() * factor for p in self.parameters())

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    model = Squares()
    wrapped = module.BucketedDDP(model, bucket_cap_mb=1.0)
    wrapped(rank + 1).backward()
    wrapped.finish_gradient_synchronization()
    return [list(bucket) for bucket in wrapped.buckets], [p.grad for p in model.parameters()]


@task(4)
@points(3)
@hint("torch.cat of mixed dtypes promotes: plan_buckets takes the dtypes as its third argument.")
def test_mixed_dtype_buckets(submission):
    """Each bucket has one dtype, and each gradient keeps that of its parameter."""
    dtypes = [torch.float32, torch.float32, F64, torch.float32, torch.float16]
    # Multiples of 1/8: 2v(1 + 2)/2 = 3v is exact in each dtype.
    values = [torch.arange(1, n + 2).div(8).to(d) for n, d in enumerate(dtypes)]
    for buckets, grads in ranks(submission, mixed, 2, values):
        check(buckets == [["4"], ["3"], ["2"], ["1", "0"]], "A change of dtype closes a bucket.", got=buckets)
        same(grads, [3 * v for v in values], atol=0.0, rtol=1e-3, what="gradients")


# --- task 5: a loss across ranks --------------------------------------------------------------------------------------


@probe
def pooled_loss(module, rank, world, meeting, weight, cases):
    """global_token_loss of a linear model on this rank's tokens, case by case, and the averaged gradients; and the loss
    of the first case in a group of this rank alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    found = []
    for batches in cases:
        x = batches[rank]
        w = weight.to(x.dtype, copy=True).requires_grad_()
        loss = module.global_token_loss((x @ w).square().sum(), len(x))
        loss.backward()
        dist.all_reduce(w.grad)
        found.append((loss.detach(), w.grad / world))
    x, alone = cases[0][rank], [dist.new_group([r]) for r in range(world)][rank]
    return found, module.global_token_loss((x @ weight).square().sum(), len(x), alone)


@task(5)
@points(6)
@hint(
    "The average over ranks divides by W, so each rank's share is W · loss_sum / (tokens of all ranks).",
    "No tokens anywhere: do not divide by 0.",
)
def test_global_token_loss(submission, reference):
    """Ranks with 3 and 29 tokens get the gradient of the mean over 32 tokens; without any token the loss is 0."""
    (weight,) = normal(11, (4,))
    lengths = [(3, 29), (0, 5), (4, 4), (1, 0)]
    cases = [normal(sum(pair), *[(n, 4) for n in pair]) for pair in lengths]
    nothing = normal(0, (0, 4), (0, 4), dtype=torch.float32)
    found, alone = zip(*ranks(submission, pooled_loss, 2, weight, [*cases, nothing]))
    for case, (pair, batches) in enumerate(zip(lengths, cases)):
        tokens = sum(pair)
        pooled = [lambda p, x=x, n=tokens: 2 * (x @ p["w"]).square().sum() / n for x in batches]
        want = reference.mean_gradients(pooled, {"w": weight})["w"]
        mean = torch.cat(batches).matmul(weight).square().mean()
        same(sum(answers[case][0] for answers in found) / 2, mean, **EXACT, what=f"average of the losses, tokens {pair}")
        for answers in found:
            same(answers[case][1], want, **EXACT, what=f"averaged gradient, tokens {pair}")
    for rank, (batch, loss) in enumerate(zip(cases[0], alone)):
        same(loss, (batch @ weight).square().mean(), **EXACT, what=f"loss of rank {rank}, alone in its group")
    for answers in found:
        loss, grad = answers[-1]
        same(loss, torch.zeros(()), what="loss of no tokens")
        same(grad, torch.zeros(4), what="its gradient")


# --- task 6: order, and not waiting -----------------------------------------------------------------------------------


@probe
def crossed(module, rank, world, meeting, values):
    """Two layers of equal size that run in opposite order on the two ranks: their gradients."""
    import torch
    import torch.distributed as dist

    class Crossed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (torch.nn.Parameter(v.clone()) for v in values)

        def forward(self, x):
            inner, outer = (self.first, self.second) if rank == 0 else (self.second, self.first)
            return torch.tanh(x * inner) * outer

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    model = Crossed()
    wrapped = module.BucketedDDP(model, bucket_cap_mb=1 / 2**20)
    history = []
    for step in range(2):
        model.zero_grad()
        wrapped(torch.arange(1.0, 5.0, dtype=torch.float64) + rank + step).square().sum().backward()
        wrapped.finish_gradient_synchronization()
        history.append([model.first.grad.clone(), model.second.grad.clone()])
    return history


@task(6)
@points(5)
@hint(
    "Collectives are matched by the order in which they are launched, not by name.",
    "A bucket that is ready too early waits until the ones before it have been launched.",
)
def test_order_mismatch(submission, reference):
    """Ranks whose layers finish in opposite order still add up the same buckets."""
    first, second = normal(8, (4,), (4,))
    x = torch.arange(1.0, 5.0, dtype=F64)

    def loss_of(rank, step):
        def loss(p):
            inner, outer = (p["first"], p["second"]) if rank == 0 else (p["second"], p["first"])
            return (torch.tanh((x + rank + step) * inner) * outer).square().sum()

        return loss

    values = {"first": first, "second": second}
    want = [list(reference.mean_gradients([loss_of(r, s) for r in range(2)], values).values()) for s in range(2)]
    for rank, history in enumerate(ranks(submission, crossed, 2, [first, second])):
        same(history, want, **EXACT, what=f"gradients of two steps on rank {rank}")


@probe
def withheld(module, rank, world, meeting, values):
    """Rank 1 starts its backward when rank 0's has returned, or after four seconds: whether it had, and gradients."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    class Squares(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for i, v in enumerate(values):
                self.register_parameter(str(i), torch.nn.Parameter(v.clone()))

        def forward(self, factor):
            return sum((factor * p).square().sum() for p in self.parameters())

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    told = dist.distributed_c10d._get_default_store()
    model = Squares()
    wrapped = module.BucketedDDP(model, bucket_cap_mb=1 / 2**20)
    loss = wrapped(rank + 1)
    returned = True
    if rank == 1:
        try:
            told.wait(["rank 0"], timedelta(seconds=4))
        except Exception:  # noqa: BLE001 - the store's own class
            returned = False
    loss.backward()
    told.set("rank 0", "returned")
    wrapped.finish_gradient_synchronization()
    return returned, [p.grad for p in model.parameters()]


@task(6)
@points(4)
@hint("dist.all_reduce(..., async_op=True) returns a work; wait for it in finish_gradient_synchronization only.")
def test_never_blocks(submission):
    """backward() of one rank returns although the other has not begun its own: no collective is waited for in it."""
    values = normal(2, (3,), (2,), (5,))
    found = ranks(submission, withheld, 2, values)
    check(found[1][0], "Rank 0's backward() did not return while rank 1 held its own back.", got=found[1][0], want=True)
    for _, grads in found:
        same(grads, [5 * v for v in values], **EXACT, what="gradients")  # (2v + 8v)/2


# --- task 7: no_sync --------------------------------------------------------------------------------------------------


@probe
def accumulating(module, rank, world, meeting, values, inputs, plan):
    """Three micro-batches, of which `plan` says (inside no_sync, which parameter): the gradients of all parameters."""
    import contextlib

    import torch
    import torch.distributed as dist

    class Squares(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for i, v in enumerate(values):
                self.register_parameter(str(i), torch.nn.Parameter(v.clone()))

        def forward(self, x, used):
            return sum((x * self.get_parameter(str(i))).square().sum() for i in used)

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    model = Squares()
    wrapped = module.BucketedDDP(model, bucket_cap_mb=1 / 2**20)
    rounds = []
    for quiet_and_used in plan:
        model.zero_grad()
        for x, (quiet, used) in zip(inputs[rank], quiet_and_used):
            with wrapped.no_sync() if quiet else contextlib.nullcontext():
                wrapped(x, used).backward()
        wrapped.finish_gradient_synchronization()
        rounds.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    return rounds


@task(7)
@points(3)
@hint(
    "Inside no_sync the hooks do nothing: .grad adds up. What is sent later is .grad, the sum.",
    "A parameter that was used in a quiet micro-batch only is sent by finish_gradient_synchronization.",
)
def test_no_sync_accumulation(submission):
    """Micro-batches inside no_sync and one outside give the gradient of the large batch; so do all of them inside."""
    values = normal(4, (3,), (3,))
    inputs = [[x.abs() + 0.5 for x in normal(20 + r, *[(3,)] * 3)] for r in range(2)]
    plan = [
        [(True, [0, 1]), (True, [0, 1]), (False, [0, 1])],
        [(True, [0, 1]), (True, [0]), (False, [1])],
        [(True, [0, 1]), (True, [0]), (True, [1])],
        [(False, [0, 1])],
    ]
    found = ranks(submission, accumulating, 2, values, inputs, plan)
    for micro, got in zip(plan, zip(*found)):
        want = [torch.zeros(3, dtype=F64) for _ in values]
        for r in range(2):
            for x, (_, used) in zip(inputs[r], micro):
                for i in used:
                    want[i] += 2 * x.square() * values[i] / 2  # d/dv of (xv)², averaged over two ranks
        for rank, grads in enumerate(got):
            same(grads, want, **EXACT, what=f"gradients on rank {rank} of micro-batches {micro}")


# --- task 8: the ring -------------------------------------------------------------------------------------------------


@probe
def ring(module, rank, world, meeting, tensors, groups):
    """ring_all_reduce of this rank's tensors in each group of ranks; the collectives that were dispatched meanwhile."""
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = set()

    class Events(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace in ("c10d", "_c10d_functional"):
                seen.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    found = []
    for members in groups:
        group = None if len(members) == world else dist.new_group(members)
        mine = [t.T.contiguous().T if t.dim() == 2 else t.clone() for t in tensors[rank]]
        if rank in members:
            with Events():
                for t in mine:
                    module.ring_all_reduce(t, group)
        found.append(mine)
    return found, sorted(seen)


@task(8)
@points(4)
@hint(
    "Phase one: at step s rank r sends chunk (r - s) mod W and adds what it receives to chunk (r - s - 1) mod W.",
    "After W - 1 steps rank r owns chunk (r + 1) mod W: phase two begins by sending that one, and copies what comes.",
)
def test_ring_all_reduce(submission):
    """The ring adds up tensors of any size, dtype and layout over 4, 3, 2 ranks and 1, by isend and irecv alone."""
    shapes = [(0,), (1,), (3,), (7,), (1003,), (), (3, 5)]
    tensors = []
    for rank in range(4):
        doubles = normal(rank, *shapes)
        tensors.append([*doubles, doubles[4].float(), (100 * doubles[4]).long(), (100 * doubles[1]).int()])
    for world, groups in ((4, [[0, 1, 2, 3], [0, 2, 3], [1, 2]]), (1, [[0]])):
        for rank, (found, events) in enumerate(ranks(submission, ring, world, tensors, groups)):
            check(set(events) <= {"c10d::send", "c10d::recv_"}, "Only isend and irecv are used.", got=events)
            for members, got in zip(groups, found):
                for i, (t, mine) in enumerate(zip(got, tensors[rank])):
                    total = sum(tensors[r][i].double() for r in members) if rank in members else mine
                    tolerance = {F64: 1e-12, torch.float32: 1e-5}.get(t.dtype, 0.0)
                    what = f"{mine.dtype} {tuple(mine.shape)} on rank {rank}, summed over ranks {members}"
                    same(t, total.to(mine.dtype), atol=tolerance, rtol=tolerance, what=what)


@task(8)
@points(1)
@hint("Each bucket is one ring: 2(W - 1) messages, which together carry 2(W - 1)/W of its bytes. Round down once.")
@sk.given(st.tuples(st.lists(st.integers(1, 40), max_size=8), st.integers(1, 9), st.integers(1, 60)), examples=20)
def test_communication_report(submission, reference, case):
    """Collectives, payload, and what a ring makes one rank send, for any sizes."""
    got = dict(submission.communication_report(*case))
    want = reference.communication_report(*case)
    check(got == want, f"Report of (nbytes, world_size, cap_bytes) = {case}.", got=got, want=want)


# --- task 9: checkpoints and training ---------------------------------------------------------------------------------


@probe
def checkpoints(module, rank, world, meeting, wrappers):
    """Saves after one step of Adam and goes on in two ways: files, keys, parameters after two steps more."""
    import time
    from pathlib import Path

    import torch
    import torch.distributed as dist

    class Model(torch.nn.Module):  # a child that is called `module` is no wrapper
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(2, 2).double()
            self.head = torch.nn.Linear(2, 1).double()

        def forward(self, x):
            return self.head(self.module(x))

    def fresh(seed, wrapper):
        torch.manual_seed(seed)
        model = Model()
        if wrapper == "torch":
            wrapped = module.build_torch_ddp(model, module.DistEnv(rank, world, rank, "gloo", "cpu"))
        else:
            wrapped = module.BucketedDDP(model) if wrapper == "bucketed" else model
        return model, wrapped, torch.optim.Adam(model.parameters(), lr=0.1)

    def step(wrapper, wrapped, optimizer):
        optimizer.zero_grad()
        wrapped(torch.ones(3, 2, dtype=torch.float64)).square().sum().backward()
        if wrapper == "bucketed":
            wrapped.finish_gradient_synchronization()
        optimizer.step()

    if world > 1:
        dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    found = []
    for wrapper in wrappers:
        model, wrapped, optimizer = fresh(1, wrapper)
        step(wrapper, wrapped, optimizer)
        folder = Path(meeting["folder"]) / wrapper
        folder.mkdir(exist_ok=True)
        if rank == 0:
            time.sleep(0.2)  # the others have to wait for the file
        module.save_checkpoint(folder / f"{rank}.pt", wrapped, optimizer, 41)
        files = sorted(p.name for p in folder.iterdir())
        saved = torch.load(folder / "0.pt", weights_only=True) if files else {}
        keys = [sorted(saved), sorted(saved.get("model", ())), saved.get("step")]
        again, again_wrapped, its_optimizer = fresh(2, wrapper)
        resumed = module.load_checkpoint(folder / "0.pt", again_wrapped, its_optimizer) if files else None
        for _ in range(2):
            step(wrapper, wrapped, optimizer)
            step(wrapper, again_wrapped, its_optimizer)
        found.append((files, keys, resumed, dict(model.state_dict()), dict(again.state_dict())))
    return found


@task(9)
@points(4)
@hint(
    "Unwrap by type: the bare model may have a child that is called `module`, too.",
    "Rank 0 writes, and a barrier keeps the others from reading a file that is not there yet.",
)
def test_checkpoint(submission):
    """One rank writes one file with the bare model's keys, the others wait, and training goes on bit for bit."""
    bare = ["head.bias", "head.weight", "module.bias", "module.weight"]
    for wrappers, world in ((["bucketed", "torch", "bare"], 2), (["alone"], 1)):
        for answers in ranks(submission, checkpoints, world, wrappers, ddp=True):
            for (files, keys, resumed, went_on, loaded), wrapper in zip(answers, wrappers):
                check(files == ["0.pt"], "Rank 0's file stands, whole, when save_checkpoint returns.", got=files)
                check(keys == [["model", "optimizer", "step"], bare, 41], f"Keys ({wrapper}).", got=keys)
                check(resumed == 41, "load_checkpoint returns the step.", got=resumed)
                same(loaded, went_on, atol=0.0, rtol=0.0, what=f"parameters two steps later ({wrapper})")


@probe
def training(module, rank, world, meeting, weights, dataset, setting):
    """train on the grader's language model, a part of which is frozen: its report, what wrapped it, and the parameters."""
    import functools
    from unittest import mock

    import torch
    import torch.distributed as dist

    class TiedLM(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, w in zip(("embedding", "w1", "b1", "w2", "b2"), weights):
                setattr(self, name, torch.nn.Parameter(w.clone()))
            self.frozen = torch.nn.Parameter(torch.ones_like(self.b2), requires_grad=False)

        def forward(self, ids):
            h = self.embedding[ids].cumsum(1) / torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
            h = torch.tanh(torch.tanh(h @ self.w1.T + self.b1) @ self.w2.T + self.b2)
            return (h * self.frozen) @ self.embedding.T

    def told(cls, wrappers):
        constructor = cls.__init__

        @functools.wraps(constructor)
        def init(self, *args, **kwargs):
            wrappers.append(cls.__name__)
            constructor(self, *args, **kwargs)

        return mock.patch.object(cls, "__init__", init)

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    found = []
    for impl in ("bucketed", "torch"):
        models = []

        def build(models=models):
            models.append(TiedLM())
            return models[-1]

        wrappers, env = [], module.DistEnv(rank, world, rank, "gloo", "cpu")
        with told(module.BucketedDDP, wrappers), told(torch.nn.parallel.DistributedDataParallel, wrappers):
            report = dict(module.train(env, build, dataset, impl=impl, **setting))
        found.append((report, wrappers, [p.detach() for p in models[-1].parameters() if p.requires_grad]))
    return found


@task(9)
@points(4)
@hint(
    "The tokens of all micro-batches of a step are counted before its first backward: one divisor for the whole step.",
    "All micro-batches but the last are inside no_sync. The stream goes on into the next epoch in the middle of a step.",
)
def test_train(submission, reference, seed):
    """Two ranks end with the losses and parameters of one process on all their examples, in both implementations."""
    weights = normal(seed % 1000, *LM_SHAPES)
    # 13 examples: 7 a rank and epoch, of which a step takes 6.
    dataset = sequences(seed % 1000, [2 + i % 5 * 3 for i in range(13)])
    setting = {"steps": 3, "micro_batches": 3, "batch_size": 2, "lr": 0.3, "seed": seed % 100}
    payload = 8 * sum(w.numel() for w in weights)
    losses, after = reference.trained(weights, dataset, 2, steps=3, per_step=6, lr=0.3, seed=seed % 100)
    for answers in ranks(submission, training, 2, weights, dataset, setting, ddp=True):
        names = {"bucketed": "BucketedDDP", "torch": "DistributedDataParallel"}
        for (report, wrappers, got), impl in zip(answers, names):
            check(set(report) == {"losses", "bytes", "collectives"}, "Keys of the report.", got=sorted(report))
            check(wrappers == [names[impl]], f"What wraps the model ({impl}).", got=wrappers, want=[names[impl]])
            check(all(type(x) is float for x in report["losses"]), "Losses are floats.", got=report["losses"])
            same(torch.tensor(report["losses"], dtype=F64), torch.tensor(losses, dtype=F64), atol=1e-9, rtol=1e-9,
                 what=f"losses ({impl})")  # fmt: skip
            same(got, after, atol=1e-9, rtol=1e-9, what=f"parameters at the end ({impl})")
            check(report["bytes"] == 3 * payload, f"Bytes of three exchanges ({impl}).", got=report["bytes"],
                  want=3 * payload)  # fmt: skip
            check(report["collectives"] == 3, f"One bucket, three steps ({impl}).", got=report["collectives"])
