"""Hidden budgets of 3.3 distributed_training: what is sent, when, and in how many pieces.

Collectives are counted on a network of the grader's. It is the default process group of the submission's process, rank
3 of 8, and each all_reduce calls back here: what the other seven hold is decided in this process, so that the right
answer cannot be had without sending. Their sum with a tensor t is factor · t, with a new factor for each collective,
whatever the order of the gradients in t. The result stands in the tensor once the work has been waited for.

The messages of the ring need real neighbours, who are the submission too: that count is self-reported.
"""

from __future__ import annotations

import torch

from llmkata.checks import check, hint, needs, points, probe, same, task
from llmkata.outside.probe import probe_source

LAYERS, WIDTH, WORLD = 6, 8, 8
LAYER = (WIDTH * WIDTH + WIDTH) * 4  # bytes of one layer's gradients in float32: 288
PAYLOAD = LAYERS * LAYER  # 1728
CAP = 600 / 2**20  # two layers fit: three buckets


@probe
def on_network(module, network, scenario, args):
    """scenario(module, network, *args) as rank 3 of 8, whose collectives are answered by `network`."""
    import itertools

    import torch
    import torch.distributed as dist

    class Sent(torch._C._distributed_c10d.Work):
        def __init__(self, tensors, sums):
            super().__init__()
            self.tensors, self.sums = tensors, sums

        def deliver(self):
            with torch.no_grad():
                for t, total in zip(self.tensors, self.sums):
                    t.copy_(total)
            self.sums = ()

        def wait(self, timeout=None):
            network("wait", None)
            self.deliver()
            return True

        def is_completed(self):
            self.deliver()
            return True

        def get_future(self):
            self.deliver()
            future = torch.futures.Future()
            future.set_result(self.tensors)
            return future

    class Network(dist.ProcessGroup):
        def allreduce(self, tensors, opts=None):
            return Sent(tensors, [network("all_reduce", t.detach().clone()) for t in tensors])

        def broadcast(self, tensors, opts=None):
            return Sent(tensors, ())

        def size(self):
            return 8

        def rank(self):
            return 3

    free = (f"network{i}" for i in itertools.count())
    name = next(n for n in free if not hasattr(dist.Backend, n.upper()))
    dist.Backend.register_backend(name, lambda store, rank, size, timeout: Network(rank, size), devices=["cpu"])
    dist.init_process_group(name, store=dist.HashStore(), rank=3, world_size=8)
    try:
        scope = {}
        exec(scenario[1], scope)  # noqa: S102 - the grader's own source
        return scope[scenario[0]](module, network, *args)
    finally:
        dist.destroy_process_group()


class Network:
    """The other seven ranks: multiplies what is sent by factors of its own, and writes down what happens."""

    def __init__(self, rng):
        self.rng = rng
        self.events: list[tuple[str, object]] = []
        self.factors: list[float] = []

    def __call__(self, event, payload):
        if event != "all_reduce":
            self.events.append((event, payload))
            return None
        self.events.append((event, payload.numel() * payload.element_size()))
        self.factors.append(float(self.rng.integers(8, 64)) / 4)
        return payload * self.factors[-1]


@probe
def backward_through(module, network, weights, inputs, cap):
    """Gradients of a chain of layers, whose backward tells which layer it has come to; one input a micro-batch."""
    import contextlib

    import torch

    class Told(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, layer):
            ctx.layer = layer
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            network("layer", ctx.layer)
            return grad, None

    class Chain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(*reversed(w.shape)) for w, _ in weights)
            with torch.no_grad():
                for layer, (w, b) in zip(self.layers, weights):
                    layer.weight.copy_(w)
                    layer.bias.copy_(b)

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = Told.apply(torch.tanh(layer(x)), i)
            return x

    model = Chain()
    wrapped = module.BucketedDDP(model, bucket_cap_mb=cap)
    network("built", None)
    for i, x in enumerate(inputs):
        quiet = i + 1 < len(inputs)
        with wrapped.no_sync() if quiet else contextlib.nullcontext():
            wrapped(x).square().mean().backward()
        network("backward has returned", None)
    wrapped.finish_gradient_synchronization()
    return [list(bucket) for bucket in wrapped.buckets], [[layer.weight.grad, layer.bias.grad] for layer in model.layers]


def chain(torch_rng, micro_batches=1):
    """Weights of the layers, and inputs."""
    weights = [
        (torch.randn(WIDTH, WIDTH, generator=torch_rng) / WIDTH**0.5, torch.randn(WIDTH, generator=torch_rng))
        for _ in range(LAYERS)
    ]
    return weights, [torch.randn(5, WIDTH, generator=torch_rng) for _ in range(micro_batches)]


def run_chain(submission, network, weights, inputs):
    """(buckets, gradients by layer, what happened after the construction) of backward_through on the network."""
    buckets, grads = submission.run(on_network, network, probe_source(backward_through), (weights, inputs, CAP))
    return buckets, grads, network.events[network.events.index(("built", None)) :]


def averaged(reference, network, weights, inputs, buckets, grads):
    """Holds buckets and gradients to what they must be: those of collective k are local · factor k / 8."""
    names = [f"layers.{i}.{name}" for i in reversed(range(LAYERS)) for name in ("bias", "weight")]
    want = [names[i : i + 4] for i in range(0, len(names), 4)]
    check(buckets == want, "Two layers make a bucket.", got=buckets, want=want)
    for i, local in enumerate(reference.chain_gradients(weights, inputs)):
        factor = network.factors[(LAYERS - 1 - i) // 2] / WORLD
        expected = [factor * g for g in local]
        same(grads[i], expected, dtype=torch.float32, atol=1e-4, rtol=1e-4, what=f"averaged gradients of layer {i}")


def sent(events):
    """Bytes of each all_reduce."""
    return [size for event, size in events if event == "all_reduce"]


@task(4)
@points(6)
@needs("test_grads_equal_single_process")
@hint(
    "One all_reduce for each bucket, on a tensor that holds its gradients and nothing else.",
    "In their own dtype: no float64, no padding, no second tensor of flags.",
)
def test_payload(submission, budget, reference, rng, torch_rng):
    """One synchronisation sends each gradient's bytes once, in as many all-reduces as there are buckets."""
    # 6 layers of 8·8 + 8 float32 numbers: 1728 bytes in 3 buckets. One all_reduce a parameter is 12.
    network, (weights, inputs) = Network(rng), chain(torch_rng)
    buckets, grads, events = run_chain(submission, network, weights, inputs)
    budget.require("all-reduces of one synchronisation", len(sent(events)), at_most=3, at_least=3, unit="calls",
                   trust="handed in")  # fmt: skip
    budget.require("bytes of one synchronisation", sum(sent(events)), at_most=1.001 * PAYLOAD, at_least=PAYLOAD,
                   reference=PAYLOAD, unit="B", trust="handed in")  # fmt: skip
    averaged(reference, network, weights, inputs, buckets, grads)


@task(5)
@needs("test_global_token_loss")
@points(1)
@hint("One number is enough: the tokens of this rank. The loss itself stays here.")
def test_loss_collective(submission, budget, rng):
    """global_token_loss sends one number, once."""
    # 8 bytes in one all_reduce; reducing the losses too is a second one, or twice the bytes.
    network = Network(rng)
    loss = submission.run(on_network, network, probe_source(loss_of), (5.0, 12))
    numbers = sent(network.events)
    budget.require("all-reduces of one loss", len(numbers), at_most=1, at_least=1, unit="calls", trust="handed in")
    budget.require("bytes of one loss", sum(numbers), at_most=16, at_least=2, unit="B", trust="handed in")
    want = torch.tensor(WORLD * 5.0 / (12 * network.factors[0]))
    same(loss, want, rtol=1e-5, what="loss")


@probe
def loss_of(module, network, loss_sum, n_tokens):
    import torch

    return module.global_token_loss(torch.tensor(loss_sum), n_tokens)


@task(6)
@points(7)
@needs("test_payload")
@hint(
    "register_post_accumulate_grad_hook tells that a parameter's gradient is there, in the middle of backward.",
    "Count what is missing of each bucket; at zero, launch it with async_op=True, and wait in finish only.",
)
def test_overlap(submission, budget, reference, rng, torch_rng):
    """Each bucket is on its way before backward comes to the next layer, and nothing is waited for inside backward."""
    # backward comes to layers 5, 4, 3, 2, 1, 0; buckets are layers 5 and 4, 3 and 2, 1 and 0. When it comes to layer 3
    # one bucket has been launched, at layer 1 two, and all three when it returns: 1 + 2 + 3 = 6. After backward: 0.
    network, (weights, inputs) = Network(rng), chain(torch_rng)
    buckets, grads, events = run_chain(submission, network, weights, inputs)
    averaged(reference, network, weights, inputs, buckets, grads)
    marks = [("layer", 3), ("layer", 1), ("backward has returned", None)]
    check(all(m in events for m in marks), "backward() goes through all layers.", got=events)
    launched = sum(len(sent(events[: events.index(m)])) for m in marks)
    budget.require("buckets on their way at layers 3, 1 and the end", launched, at_least=6, at_most=6, floor=False,
                   unit="buckets", trust="handed in")  # fmt: skip
    inside = events[: events.index(marks[-1])]
    waits = sum(event == "wait" for event, _ in inside)
    budget.require("waits inside backward", waits, at_most=0, unit="waits", trust="handed in")


@task(7)
@points(4)
@needs("test_payload")
@hint("K micro-batches, one exchange: hooks that send inside no_sync send K times as much.")
def test_no_sync_traffic(submission, budget, reference, rng, torch_rng):
    """Three micro-batches, two of them inside no_sync, send as much as one."""
    # 1728 bytes; 5184 if each micro-batch is exchanged.
    plain, (weights, inputs) = Network(rng), chain(torch_rng, micro_batches=3)
    *_, alone = run_chain(submission, plain, weights, inputs[:1])
    network = Network(rng)
    buckets, grads, events = run_chain(submission, network, weights, inputs)
    ends = [i for i, (event, _) in enumerate(events) if event == "backward has returned"]
    check(len(ends) == 3, "Three backward passes.", got=len(ends))
    early, late = sum(sent(events[: ends[1]])), len(sent(events[ends[1] : ends[2]]))
    overlapped = len(sent(alone[: alone.index(("backward has returned", None))]))
    check(late == overlapped, "Buckets sent inside the backward after no_sync: as many as without no_sync.", got=late,
          want=overlapped)  # fmt: skip
    budget.require("bytes of two micro-batches inside no_sync", early, at_most=0, unit="B", trust="handed in")
    budget.require("bytes of three micro-batches", sum(sent(events)), at_most=1.001 * PAYLOAD, at_least=PAYLOAD,
                   reference=PAYLOAD, unit="B", trust="handed in")  # fmt: skip
    averaged(reference, network, weights, inputs, buckets, grads)


# --- the ring, among real ranks ---------------------------------------------------------------------------------------


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


@probe
def ring_messages(module, rank, world, meeting, values):
    """ring_all_reduce of this rank's values: the sum, and the bytes of each message that it sent."""
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    messages = []

    class Events(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name == "c10d::send":
                messages.append(sum(t.numel() * t.element_size() for t in args[0]))
            return func(*args, **(kwargs or {}))

    dist.init_process_group("gloo", init_method=meeting["url"], rank=rank, world_size=world,
                            timeout=meeting["patience"])  # fmt: skip
    mine = values[rank]
    with Events():
        module.ring_all_reduce(mine)
    return mine, messages


@task(8)
@points(4)
@needs("test_ring_all_reduce")
@hint(
    "Whole tensors sent to everybody are (W - 1) n bytes from each rank; through one root all of them go over one link.",
    "Send one chunk at a time, to one neighbour: 2(W - 1) messages of n/W bytes.",
)
def test_ring_bytes(submission, budget, torch_rng):
    """On 4 ranks each sends 3/2 of the tensor in 6 messages."""
    # n = 1000 float64 = 8000 B: 2 · 3/4 · 8000 = 12 000 B in 2 · 3 = 6 messages of 2000 B. All to all is 24 000 B in 3;
    # gathering at rank 0 and sending back makes it send 24 000 B. Each message may be 64 B longer.
    world, n = 4, 8000
    values = [torch.randn(n // 8, generator=torch_rng, dtype=torch.float64) for _ in range(world)]
    found = ranks(submission, ring_messages, world, values)
    for rank, (got, _) in enumerate(found):
        same(got, sum(values), atol=1e-12, rtol=1e-12, what=f"sum on rank {rank}")
    ideal = 2 * (world - 1) * n // world
    budget.require("bytes that the busiest rank sends", max(sum(m) for _, m in found), at_most=1.05 * ideal + 64 * 6,
                   at_least=ideal, reference=ideal, unit="B", trust="self-reported")  # fmt: skip
    budget.require("messages of the busiest rank", max(len(m) for _, m in found), at_most=6, unit="messages",
                   trust="self-reported")  # fmt: skip
