"""Alternative: hooks on autograd's accumulation nodes, futures, dictionaries by name; a ring that turns the other way."""

import argparse
import functools
import json
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
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
from torch.nn.utils import parameters_to_vector
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
    match environ.get("RANK"), environ.get("WORLD_SIZE"):
        case None, None:
            numbers = 0, 1, 0
        case None, _:
            raise ValueError("WORLD_SIZE without RANK")
        case _, None:
            raise ValueError("RANK without WORLD_SIZE")
        case rank, size:
            numbers = int(rank), int(size), int(environ.get("LOCAL_RANK") or 0)
    if numbers[0] < 0 or numbers[0] >= numbers[1]:
        raise ValueError("RANK %d lies outside of WORLD_SIZE %d" % numbers[:2])  # noqa: UP031
    if cuda_devices == 0:
        return DistEnv(*numbers, backend="gloo", device="cpu")
    if numbers[2] < 0 or numbers[2] >= cuda_devices:
        raise ValueError(f"LOCAL_RANK {numbers[2]} with {cuda_devices} devices")
    return DistEnv(*numbers, backend="nccl", device="cuda:" + str(numbers[2]))


def init_distributed(env: DistEnv, init_method: str | None = None, timeout_s: float = 30.0) -> None:
    if torch.device(env.device).type == "cuda":
        torch.cuda.set_device(env.device)
    start = functools.partial(
        dist.init_process_group, env.backend, rank=env.rank, world_size=env.world_size,
        timeout=timedelta(milliseconds=1000 * timeout_s),
    )  # fmt: skip
    if init_method is not None:
        start(init_method=init_method)
    elif env.world_size > 1:
        start()
    else:
        start(store=dist.TCPStore("127.0.0.1", 0, 1, True))


def build_torch_ddp(
    module: nn.Module,
    env: DistEnv,
    *,
    bucket_cap_mb: float = 25.0,
    find_unused_parameters: bool = False,
    gradient_as_bucket_view: bool = True,
    static_graph: bool = False,
) -> DistributedDataParallel:
    gpus = [env.local_rank] if env.device != "cpu" else None
    ddp = functools.partial(DistributedDataParallel, device_ids=gpus, bucket_cap_mb=bucket_cap_mb)
    return ddp(
        module.to(env.device), static_graph=static_graph, find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=gradient_as_bucket_view,
    )  # fmt: skip


def shard_indices(
    n: int, world_size: int, rank: int, *, epoch: int, seed: int, shuffle: bool, drop_last: bool
) -> list[int]:
    cards = deque(range(n))
    if shuffle:
        g = torch.Generator()
        g.manual_seed(seed + epoch)
        cards = deque(torch.randperm(n, generator=g).tolist())
    hands: list[list[int]] = [[] for _ in range(world_size)]
    dealt = 0
    while dealt + world_size <= n if drop_last else dealt < n:
        for hand in hands:
            hand.append(cards[0])
            cards.rotate(-1)
            dealt += 1
    return hands[rank]


def plan_buckets(nbytes: Sequence[int], cap_bytes: int, dtypes: Sequence[str] | None = None) -> list[list[int]]:
    def grow(plan: list[list[int]], i: int) -> list[list[int]]:
        *closed, open_ = plan
        total = sum(nbytes[j] for j in (*open_, i))
        alike = dtypes is None or {dtypes[j] for j in open_} == {dtypes[i]}
        return [*closed, [*open_, i]] if total <= cap_bytes and alike else [*plan, [i]]

    order = list(range(len(nbytes)))[::-1]
    return functools.reduce(grow, order[1:], [order[:1]]) if order else []


class BucketedDDP(nn.Module):
    buckets: list[list[str]]

    def __init__(self, module: nn.Module, *, bucket_cap_mb: float = 25.0, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.module, self.group = module, group
        members = list(range(dist.get_world_size())) if group is None else dist.get_process_group_ranks(group)
        self.ranks = len(members)
        for value in module.state_dict(keep_vars=True).values():
            buffer = torch.empty(value.shape, dtype=value.dtype, device=value.device).copy_(value.detach())
            dist.broadcast(buffer, members[0], group=group)
            value.data.copy_(buffer)
        self.by_name = {name: p for name, p in module.named_parameters() if p.requires_grad}
        names = list(self.by_name)
        plan = plan_buckets(
            [p.element_size() * p.numel() for p in self.by_name.values()],
            int(bucket_cap_mb * (1 << 20)),
            [repr(p.dtype) for p in self.by_name.values()],
        )
        self.buckets = [[names[i] for i in bucket] for bucket in plan]
        self.listening = True
        self._nodes = []  # a node lives no longer than somebody holds it
        for name, p in self.by_name.items():
            with torch.enable_grad():
                node = p.expand_as(p).grad_fn.next_functions[0][0]
            node.register_hook(functools.partial(self._arrived, name))
            self._nodes.append(node)
        self._restart()

    def _restart(self) -> None:
        self._waiting = deque(set(bucket) for bucket in self.buckets)
        self._unsent = deque(self.buckets)
        self._sent: list[tuple[list[str], Tensor, torch.futures.Future]] = []

    def _arrived(self, name: str, *_: Any) -> None:
        if not self.listening:
            return
        for waiting in self._waiting:
            waiting.discard(name)
        while self._waiting and not self._waiting[0]:
            self._send()

    def _send(self) -> None:
        self._waiting.popleft()
        names = self._unsent.popleft()
        grads = []
        for name in names:
            p = self.by_name[name]
            grads.append(p.new_zeros(p.shape) if p.grad is None else p.grad.detach())
        message = parameters_to_vector(grads).detach().mul(1.0 / self.ranks)
        self._sent.append((names, message, dist.all_reduce(message, group=self.group, async_op=True).get_future()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        model = self

        class Deaf:
            def __enter__(self) -> None:
                model.listening = False

            def __exit__(self, *_: object) -> None:
                model.listening = True

        return Deaf()

    def finish_gradient_synchronization(self) -> None:
        while self._unsent:
            self._send()
        for names, message, arrived in self._sent:
            arrived.wait()
            for name in names:
                p = self.by_name[name]
                mine, message = message[: p.numel()], message[p.numel() :]
                p.grad = mine.reshape(p.shape).clone()
        self._restart()


def global_token_loss(loss_sum: Tensor, n_tokens: int, group: ProcessGroup | None = None) -> Tensor:
    everywhere = torch.tensor([n_tokens], dtype=torch.int64, device=loss_sum.device)
    dist.all_reduce(everywhere, dist.ReduceOp.SUM, group)
    n = everywhere.item()
    return loss_sum.mul(0.0) if n == 0 else loss_sum / n * dist.get_world_size(group)


def ring_all_reduce(tensor: Tensor, group: ProcessGroup | None = None) -> None:
    where = dist.group.WORLD if group is None else group
    members = dist.get_process_group_ranks(where)
    size = len(members)
    if size == 1 or tensor.numel() == 0:
        return
    me = members.index(dist.get_rank())
    above, below = members[(me + 1) % size], members[me - 1]
    work = torch.zeros(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    work.copy_(tensor.detach().flatten())
    pieces = deque(work.chunk(size) if work.numel() >= size else work.split(1))
    while len(pieces) < size:
        pieces.append(work[:0])
    pieces.rotate(-me)  # the first one is mine

    def pass_down(out: Tensor) -> Callable[[Tensor], Tensor]:
        def receive(like: Tensor) -> Tensor:
            box = torch.empty_like(like)
            ops = [dist.P2POp(dist.isend, out, below, group=where)] if out.numel() else []
            if box.numel():
                ops.append(dist.P2POp(dist.irecv, box, above, group=where))
            for w in dist.batch_isend_irecv(ops) if ops else []:
                w.wait()
            return box

        return receive

    # The pieces travel downwards: after i steps what I hold of piece me + i is the sum over i + 1 ranks.
    for i in range(size - 1):
        pieces[i + 1].add_(pass_down(pieces[i])(pieces[i + 1]))
    pieces.rotate(1)  # now the first one is finished
    for i in range(size - 1):
        pieces[i + 1].copy_(pass_down(pieces[i])(pieces[i + 1]))
    tensor.detach().copy_(work.view_as(tensor) if tensor.is_contiguous() else work.reshape(tensor.shape))


def communication_report(nbytes: Sequence[int], world_size: int, cap_bytes: int) -> dict[str, int]:
    report = {"collectives": 0, "payload_bytes": 0, "ring_bytes_per_rank": 0, "ring_messages_per_rank": 0}
    for bucket in plan_buckets(nbytes, cap_bytes):
        report["collectives"] += 1
        report["payload_bytes"] += sum(nbytes[i] for i in bucket)
        report["ring_messages_per_rank"] += 2 * (world_size - 1)
    report["ring_bytes_per_rank"] = (2 * (world_size - 1) * report["payload_bytes"]) // world_size
    return report


def save_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    writer = not dist.is_initialized() or dist.get_rank() == 0
    if writer:
        wrapped = isinstance(model, BucketedDDP) or isinstance(model, DistributedDataParallel)  # noqa: SIM101
        tensors = {
            name.removeprefix("module.") if wrapped else name: value for name, value in model.state_dict().items()
        }
        target = Path(path)
        handle, name = tempfile.mkstemp(dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            torch.save({"model": tensors, "optimizer": optimizer.state_dict(), "step": step}, file)
        Path(name).rename(target)
    if dist.is_initialized():
        dist.barrier()


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer, map_location: str = "cpu") -> int:
    found = torch.load(path, map_location, weights_only=True)
    match model:
        case BucketedDDP(module=inner) | DistributedDataParallel(module=inner):
            inner.load_state_dict(found["model"])
        case _:
            model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return int(found["step"])


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


def _deal(env: DistEnv, dataset: Sequence[Tensor], batch_size: int, seed: int) -> Iterator[list[Tensor]]:
    """Micro-batches of this rank without end."""
    hand: deque[int] = deque()
    epoch = 0
    while True:
        while len(hand) < batch_size:
            hand.extend(
                shard_indices(
                    len(dataset), env.world_size, env.rank, epoch=epoch, seed=seed, shuffle=True, drop_last=False
                )
            )
            epoch += 1
        yield [dataset[hand.popleft()] for _ in range(batch_size)]


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
    net: Any = BucketedDDP(build_model().to(env.device)) if impl == "bucketed" else None
    torch_traffic = Traffic()
    if net is None:
        net = build_torch_ddp(build_model(), env)
        net.register_comm_hook(torch_traffic, counted_all_reduce)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    deal = _deal(env, dataset, batch_size, seed)
    history: list[float] = []
    for _ in range(steps):
        net.zero_grad()
        todo = deque(next(deal) for _ in range(micro_batches))
        tokens = sum(len(s) - 1 for batch in todo for s in batch)
        mine = 0.0
        while todo:
            batch = todo.popleft()
            with ExitStack() as stack:
                if todo:
                    stack.enter_context(net.no_sync())
                loss = global_token_loss(next_token_loss_sum(net, batch), tokens)
                loss.backward()
            mine += loss.item()
        if impl == "bucketed":
            net.finish_gradient_synchronization()
        optimizer.step()
        shared = torch.tensor([mine / env.world_size], dtype=torch.float64, device=env.device)
        dist.all_reduce(shared)
        history += shared.tolist()
    if impl == "torch":
        return {"losses": history, "bytes": torch_traffic.bytes, "collectives": torch_traffic.collectives}
    sizes = [p.numel() * p.element_size() for p in net.parameters() if p.requires_grad]
    return {"losses": history, "bytes": steps * sum(sizes), "collectives": steps * len(net.buckets)}


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
