"""Alternative: views into one flat buffer per bucket, futures, arithmetic on whole tensors; checkpoints by hand."""

import argparse
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer


@dataclass(frozen=True)
class DistEnv:
    rank: int
    world_size: int
    local_rank: int
    backend: str
    device: str


def read_env(environ: Mapping[str, str], cuda_devices: int) -> DistEnv:
    told = {name: environ[name] for name in ("RANK", "WORLD_SIZE") if name in environ}
    if len(told) == 1:
        (there,) = told
        raise ValueError(f"{there} is set and {'WORLD_SIZE' if there == 'RANK' else 'RANK'} is not")
    rank, size = int(told.get("RANK", 0)), int(told.get("WORLD_SIZE", 1))
    local = int(environ.get("LOCAL_RANK", 0)) if told else 0
    if rank not in range(size):
        raise ValueError(f"no rank {rank} in a world of {size}")
    gpu = cuda_devices > 0
    if gpu and local not in range(cuda_devices):
        raise ValueError(f"no device {local} among {cuda_devices}")
    return DistEnv(rank, size, local, "nccl" if gpu else "gloo", f"cuda:{local}" if gpu else "cpu")


def init_distributed(env: DistEnv, init_method: str | None = None, timeout_s: float = 30.0) -> None:
    if env.backend == "nccl":
        torch.cuda.set_device(torch.device(env.device))
    patience = timedelta(seconds=timeout_s)
    if env.world_size == 1 and init_method is None:
        dist.init_process_group(env.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=patience)
        return
    dist.init_process_group(
        env.backend, init_method=init_method, rank=env.rank, world_size=env.world_size, timeout=patience
    )


def build_torch_ddp(
    module: nn.Module,
    env: DistEnv,
    *,
    bucket_cap_mb: float = 25.0,
    find_unused_parameters: bool = False,
    gradient_as_bucket_view: bool = True,
    static_graph: bool = False,
) -> DistributedDataParallel:
    options: dict[str, Any] = {
        "bucket_cap_mb": bucket_cap_mb,
        "find_unused_parameters": find_unused_parameters,
        "gradient_as_bucket_view": gradient_as_bucket_view,
        "static_graph": static_graph,
    }
    if env.backend == "nccl":
        options["device_ids"] = [env.local_rank]
    module.to(torch.device(env.device))
    return DistributedDataParallel(module, **options)


def shard_indices(
    n: int, world_size: int, rank: int, *, epoch: int, seed: int, shuffle: bool, drop_last: bool
) -> list[int]:
    draw = torch.Generator()
    draw.manual_seed(epoch + seed)
    order = torch.randperm(n, generator=draw) if shuffle else torch.arange(n)
    rounds, rest = divmod(n, world_size)
    if rest and not drop_last:
        rounds += 1
    endless = order.repeat(-(-rounds * world_size // n) if rounds else 1)
    return endless[: rounds * world_size].view(rounds, world_size)[:, rank].tolist()


def plan_buckets(nbytes: Sequence[int], cap_bytes: int, dtypes: Sequence[str] | None = None) -> list[list[int]]:
    kinds = [""] * len(nbytes) if dtypes is None else dtypes
    plan: list[list[int]] = []
    i = len(nbytes) - 1
    while i >= 0:
        bucket, room = [i], cap_bytes - nbytes[i]
        while bucket[-1] and kinds[bucket[-1] - 1] == kinds[i] and nbytes[bucket[-1] - 1] <= room:
            bucket.append(bucket[-1] - 1)
            room -= nbytes[bucket[-1]]
        plan.append(bucket)
        i = bucket[-1] - 1
    return plan


class Bucket:
    """A flat buffer, and what it is made of."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        first = params[0]
        self.flat = torch.zeros(sum(p.numel() for p in params), dtype=first.dtype, device=first.device)
        starts = torch.tensor([0] + [p.numel() for p in params]).cumsum(0).tolist()
        self.views = [self.flat[a:b].view(p.shape) for p, a, b in zip(params, starts, starts[1:])]
        self.ready: set[int] = set()
        self.sum: Any = None

    def complete(self) -> bool:
        return len(self.ready) == len(self.params)

    def send(self, group: ProcessGroup | None, world_size: int) -> None:
        for p, view in zip(self.params, self.views):
            view.zero_()
            if p.grad is not None:
                view.add_(p.grad, alpha=1 / world_size)
        self.sum = dist.all_reduce(self.flat, group=group, async_op=True)

    def collect(self) -> None:
        self.sum.wait()
        for p, view in zip(self.params, self.views):
            p.grad = view.clone()
        self.sum = None
        self.ready.clear()


class BucketedDDP(nn.Module):
    buckets: list[list[str]]

    def __init__(self, module: nn.Module, *, bucket_cap_mb: float = 25.0, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.module, self.group = module, group
        self._world = dist.get_world_size(group)
        self._quiet = 0
        root = dist.get_process_group_ranks(group)[0] if group is not None else 0
        for t in [*module.parameters(), *module.buffers()]:
            copy = t.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(copy, src=root, group=group)
            t.data.copy_(copy)
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        sizes = [p.nbytes for _, p in named]
        plan = plan_buckets(sizes, int(bucket_cap_mb * 1024 * 1024), [str(p.dtype) for _, p in named])
        self.buckets = [[named[i][0] for i in b] for b in plan]
        self._buckets = [Bucket([named[i][1] for i in b]) for b in plan]
        for bucket in self._buckets:
            for i, p in enumerate(bucket.params):
                p.register_post_accumulate_grad_hook(self._hook(bucket, i))

    def _hook(self, bucket: Bucket, i: int) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            if not self._quiet:
                bucket.ready.add(i)
                self._send_in_order(only_complete=True)

        return hook

    def _send_in_order(self, only_complete: bool) -> None:
        with torch.no_grad():
            for bucket in self._buckets:
                if bucket.sum is None:
                    if only_complete and not bucket.complete():
                        return
                    bucket.send(self.group, self._world)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        stack = contextlib.ExitStack()
        self._quiet += 1
        stack.callback(self._loud)
        return stack

    def _loud(self) -> None:
        self._quiet -= 1

    def finish_gradient_synchronization(self) -> None:
        self._send_in_order(only_complete=False)
        for bucket in self._buckets:
            bucket.collect()


def global_token_loss(loss_sum: Tensor, n_tokens: int, group: ProcessGroup | None = None) -> Tensor:
    count = torch.full((1,), float(n_tokens), dtype=torch.float64, device=loss_sum.device)
    dist.all_reduce(count, group=group)
    share = dist.get_world_size(group) / count.clamp(min=1.0)
    return loss_sum * share.squeeze(0).to(loss_sum.dtype)


def ring_all_reduce(tensor: Tensor, group: ProcessGroup | None = None) -> None:
    size, me = dist.get_world_size(group), dist.get_rank(group)
    if size < 2 or not tensor.numel():
        return
    right, left = (dist.get_global_rank(group or dist.group.WORLD, (me + d) % size) for d in (1, -1))
    numbers = tensor.detach().reshape(-1).clone()
    edges = [numbers.numel() * i // size for i in range(size + 1)]
    parts = [numbers[a:b] for a, b in itertools.pairwise(edges)]

    def exchange(out: Tensor, into: Tensor) -> None:
        pending = []
        if into.numel():
            pending.append(dist.irecv(into, src=left, group=group))
        if out.numel():
            pending.append(dist.isend(out, dst=right, group=group))
        for work in pending:
            work.wait()

    for step in range(size - 1):
        target = parts[(me - step - 1) % size]
        box = torch.zeros_like(target)
        exchange(parts[(me - step) % size], box)
        target.add_(box)
    for step in range(size - 1):
        exchange(parts[(me + 1 - step) % size], parts[(me - step) % size])
    tensor.detach().copy_(numbers.reshape(tensor.shape))


def communication_report(nbytes: Sequence[int], world_size: int, cap_bytes: int) -> dict[str, int]:
    buckets, total, trips = plan_buckets(nbytes, cap_bytes), sum(nbytes), 2 * world_size - 2
    return {
        "collectives": len(buckets),
        "payload_bytes": total,
        "ring_bytes_per_rank": trips * total // world_size,
        "ring_messages_per_rank": trips * len(buckets),
    }


def _bare(model: nn.Module) -> nn.Module:
    return model.module if type(model) in (BucketedDDP, DistributedDataParallel) else model


def save_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    together = dist.is_available() and dist.is_initialized()
    if not together or dist.get_rank() == 0:
        part = os.fspath(path) + ".part"
        with open(part, "wb") as file:
            state = _bare(model).state_dict()
            torch.save({"step": step, "model": state, "optimizer": optimizer.state_dict()}, file)
        os.replace(part, path)
    if together:
        dist.barrier()


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer, map_location: str = "cpu") -> int:
    with open(path, "rb") as file:
        saved = torch.load(file, map_location=map_location)
    _bare(model).load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def count_tokens(sequences: Sequence[Tensor]) -> int:
    """How many tokens are predicted: all but the first of each sequence. Given."""
    return sum(len(s) - 1 for s in sequences)


def next_token_loss_sum(model: nn.Module, sequences: Sequence[Tensor]) -> Tensor:
    """Summed cross entropy of each token given those before it; 0-dim. Given.

    model maps ids (B, T) to logits (B, T, V), or to something that has them as `.logits`. Sequences may differ in
    length: they are padded at the end, and the padding is not predicted.
    """
    device = next(model.parameters()).device
    ids = pad_sequence(list(sequences), batch_first=True).to(device)
    targets = pad_sequence([s[1:] for s in sequences], batch_first=True, padding_value=-100).to(device)
    logits = model(ids)
    logits = getattr(logits, "logits", logits)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


@dataclass
class Traffic:
    """Gradients that a DDP has sent. Given: `ddp.register_comm_hook(Traffic(), counted_all_reduce)`."""

    collectives: int = 0
    bytes: int = 0


def counted_all_reduce(traffic: Traffic, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own all-reduce of a bucket, counted. Given."""
    flat = bucket.buffer()
    traffic.collectives += 1
    traffic.bytes += flat.numel() * flat.element_size()
    flat.div_(dist.get_world_size())
    return dist.all_reduce(flat, async_op=True).get_future().then(lambda done: done.value()[0])


def train(
    env: DistEnv,
    build_model: Callable[[], nn.Module],
    dataset: Sequence[Tensor],
    *,
    impl: Literal["bucketed", "torch"],
    steps: int,
    micro_batches: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> dict[str, Any]:
    wanted = steps * micro_batches * batch_size
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        order += shard_indices(
            len(dataset), env.world_size, env.rank, epoch=epoch, seed=seed, shuffle=True, drop_last=False
        )
        epoch += 1
    chosen = [[dataset[i] for i in order[a : a + batch_size]] for a in range(0, wanted, batch_size)]

    model = build_model().to(env.device)
    params = [p for p in model.parameters() if p.requires_grad]
    sent = Traffic()
    if impl == "torch":
        net: Any = build_torch_ddp(model, env)
        net.register_comm_hook(sent, counted_all_reduce)
    else:
        net = BucketedDDP(model)
    optimizer = torch.optim.SGD(params, lr, momentum=0.9)
    losses = []
    for step in range(steps):
        micro = chosen[step * micro_batches : (step + 1) * micro_batches]
        tokens = count_tokens([s for batch in micro for s in batch])
        optimizer.zero_grad(set_to_none=True)
        parts = []
        for k, batch in enumerate(micro, 1):
            with contextlib.nullcontext() if k == micro_batches else net.no_sync():
                part = global_token_loss(next_token_loss_sum(net, batch), tokens)
                part.backward()
            parts.append(part.detach().double())
        if impl == "bucketed":
            net.finish_gradient_synchronization()
            sent.collectives += len(net.buckets)
            sent.bytes += sum(p.nbytes for p in params)
        optimizer.step()
        mean = torch.stack(parts).sum() / env.world_size
        dist.all_reduce(mean)
        losses.append(mean.item())
    return {"losses": losses, **asdict(sent)}


def _one_rank(fn: Callable[[DistEnv], Any], environ: dict[str, str], answer: Any) -> None:
    os.environ.update(environ)
    torch.set_num_threads(1)
    env = read_env(os.environ, 0)
    init_distributed(env)
    answer.send(fn(env))
    dist.barrier()
    dist.destroy_process_group()


def launch_local(fn: Callable[[DistEnv], Any], world_size: int) -> list[Any]:
    """Run fn(env) on `world_size` CPU processes of this machine, for your experiments; what each rank returned. Given.

    Each process has torchrun's environment and a gloo group. Raises RuntimeError if a rank dies.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork" if "fork" in get_all_start_methods() else "spawn")
    ranks = []
    for rank in range(world_size):
        environ = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
        environ = {name: str(value) for name, value in {**environ, "MASTER_PORT": port}.items()}
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_one_rank, args=(fn, environ, theirs))
        process.start()
        theirs.close()
        ranks.append((process, mine))
    try:
        return [answer.recv() for _, answer in ranks]
    except EOFError:
        raise RuntimeError("a rank died: its traceback stands above") from None
    finally:
        for process, _ in ranks:
            process.join()


class TinyLM(nn.Module):
    """A language model to train on a laptop: the mean of the embeddings so far, one hidden layer, tied output."""

    def __init__(self, vocab_size: int = 64, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.hidden = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits (B, T, V)."""
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device).view(1, -1, 1)
        so_far = self.embedding(ids).cumsum(1) / steps
        return torch.tanh(self.hidden(so_far)) @ self.embedding.weight.T


def _model_and_data(args: argparse.Namespace) -> tuple[Callable[[], nn.Module], list[Tensor]]:
    if args.model is None:
        draw = torch.Generator().manual_seed(args.seed)
        lengths = torch.randint(4, 33, (256,), generator=draw).tolist()
        return TinyLM, [(torch.arange(n) * 3 + torch.randint(64, (1,), generator=draw)) % 64 for n in lengths]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    lines = [tokenizer(line)["input_ids"] for line in Path(args.text).read_text("utf-8").splitlines() if line.strip()]
    data = [torch.tensor(ids) for ids in lines if len(ids) > 1]
    return lambda: AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), data


def main(argv: Sequence[str] | None = None) -> int:
    """Train under torchrun, or alone, and write the run of all ranks to a JSON file. Given."""
    parser = argparse.ArgumentParser(description="Data-parallel training of a causal language model.")
    parser.add_argument("--impl", choices=("bucketed", "torch"), default="bucketed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="directory of a causal language model in the hub's layout; default: a tiny one")
    parser.add_argument("--text", help="file whose lines it is trained on")
    parser.add_argument("--out", default="ddp_run.json")
    args = parser.parse_args(argv)
    if args.model is not None and args.text is None:
        parser.error("--model needs --text")
    env = read_env(os.environ, torch.cuda.device_count())
    init_distributed(env)
    try:
        build_model, data = _model_and_data(args)
        torch.manual_seed(args.seed)
        run = train(
            env, build_model, data, impl=args.impl, steps=args.steps, micro_batches=args.micro_batches,
            batch_size=args.batch_size, lr=args.lr, seed=args.seed,
        )  # fmt: skip
        ranks: list[Any] = [None] * env.world_size
        dist.all_gather_object(ranks, {**asdict(env), **run})
        if env.rank == 0:
            report = {"impl": args.impl, "world_size": env.world_size, "ranks": ranks}
            Path(args.out).write_text(json.dumps(report, indent=1), "utf-8")
            print(f"{env.world_size} ranks, {args.steps} steps: loss {run['losses'][0]:.3f} -> {run['losses'][-1]:.3f}")
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
