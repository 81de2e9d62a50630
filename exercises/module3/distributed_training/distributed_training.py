"""Distributed training: everything between `torchrun` and `optimizer.step()`.

Data parallelism is an equality: W processes with a model each, who average their gradients, do what one process with
the whole batch would do. What makes it fast is *when* the gradients travel, and what makes it right is that all ranks
agree on the order.
"""

import argparse
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain, count, islice
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
    """Who a process is. backend and device: "nccl" and "cuda:<local_rank>", or "gloo" and "cpu"."""

    rank: int
    world_size: int
    local_rank: int
    backend: str
    device: str


# --- the environment --------------------------------------------------------------------------------------------------


def read_env(environ: Mapping[str, str], cuda_devices: int) -> DistEnv:
    """What torchrun tells a process: RANK and WORLD_SIZE, and LOCAL_RANK (0 where it is missing).

    Neither RANK nor WORLD_SIZE: a single process, rank 0 of 1, local rank 0 whatever LOCAL_RANK says.

    Args:
        environ: the environment, such as os.environ.
        cuda_devices: how many CUDA devices this process sees; 0 means gloo on the CPU, else nccl.

    Raises:
        ValueError: only one of RANK and WORLD_SIZE is there (the message names the missing one); RANK is not in
            [0, WORLD_SIZE), or there are CUDA devices and LOCAL_RANK is not among them (it names both numbers).
    """
    raise NotImplementedError("task 1: single process, ranks, backend and device")


def init_distributed(env: DistEnv, init_method: str | None = None, timeout_s: float = 30.0) -> None:
    """Create the default process group of `env`; on a GPU make that GPU the current one first.

    Args:
        init_method: a URL such as "tcp://10.0.0.1:29500"; None: MASTER_ADDR and MASTER_PORT say where ("env://"). A
            world of one process meets nobody: it needs neither.
        timeout_s: seconds a collective may wait for the other ranks.
    """
    raise NotImplementedError("task 1: the GPU, then the process group")


def build_torch_ddp(
    module: nn.Module,
    env: DistEnv,
    *,
    bucket_cap_mb: float = 25.0,
    find_unused_parameters: bool = False,
    gradient_as_bucket_view: bool = True,
    static_graph: bool = False,
) -> DistributedDataParallel:
    """PyTorch's own DDP around `module`, which is moved to env.device first.

    device_ids is [env.local_rank] on a GPU and None on the CPU; the four options are handed on. What they do stands in
    the brief.
    """
    raise NotImplementedError("task 1: device and options")


# --- the data ---------------------------------------------------------------------------------------------------------


def shard_indices(
    n: int, world_size: int, rank: int, *, epoch: int, seed: int, shuffle: bool, drop_last: bool
) -> list[int]:
    """The examples of one rank in one epoch: exactly those of torch.utils.data.DistributedSampler.

    The order of all n >= 1 examples is 0..n-1, or with `shuffle` torch.randperm of a generator seeded with
    seed + epoch, the same on all ranks. It is cut to a multiple of world_size (`drop_last`), or continued from its own
    beginning to one, several times over where n is small; rank r takes every world_size-th of it, beginning with the
    r-th.
    """
    raise NotImplementedError("task 2: one order for all, equal length for each, every W-th for me")


# --- buckets ----------------------------------------------------------------------------------------------------------


def plan_buckets(nbytes: Sequence[int], cap_bytes: int, dtypes: Sequence[str] | None = None) -> list[list[int]]:
    """Cut the parameters, last one first, into buckets of consecutive parameters; buckets in the order they are sent.

    backward makes the gradients of the last layers first. The open bucket takes the next parameter if that leaves it
    at `cap_bytes` or below and the parameter has the dtype of those that are in it; else a new one begins. A parameter
    above the cap is alone.

    Args:
        nbytes: size of each parameter's gradient, in the order of registration.
        dtypes: name of each one's dtype; None: all alike.

    Returns:
        Indices into `nbytes`, each once: plan_buckets([4, 4, 4], 8) is [[2, 1], [0]]. No parameters: [].
    """
    raise NotImplementedError("task 3: greedy, from the end")


class BucketedDDP(nn.Module):
    """Data parallelism by hand: replicas begin equal, and gradients are averaged over the ranks, bucket by bucket.

    Use: `model(x)`, `backward()`, `finish_gradient_synchronization()`, `optimizer.step()`. Between two calls of
    `finish_gradient_synchronization` there is at most one backward outside of `no_sync`, and any number inside.

    Collectives: `dist.broadcast` in the constructor; `dist.all_reduce` (SUM) once per bucket and synchronisation, on
    one flat tensor of its gradients. All ranks must launch them in the same order, whatever order their gradients come
    in: bucket k is launched as soon as all its gradients are there and buckets 0..k-1 have been launched, and what is
    left is launched by `finish_gradient_synchronization`.

    Attributes:
        module: the wrapped module.
        buckets: names of the trainable parameters, as in module.named_parameters() (a tied parameter once), by bucket
            as `plan_buckets` orders them; the cap is bucket_cap_mb · 2^20 bytes.
    """

    buckets: list[list[str]]

    def __init__(self, module: nn.Module, *, bucket_cap_mb: float = 25.0, group: ProcessGroup | None = None) -> None:
        """Give all parameters (also frozen ones) and buffers the values of the group's rank 0, and plan the buckets."""
        super().__init__()
        self.module, self.group = module, group
        raise NotImplementedError("task 4: broadcast, plan the buckets; task 6: a hook for each parameter")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns."""
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """A context in which nothing is sent: gradients add up in `.grad`.

        Forward and backward of a micro-batch lie in it together. The next backward outside of it sends the sum, and
        `finish_gradient_synchronization` sends it if there is none.
        """
        raise NotImplementedError("task 7: a context manager that switches the hooks off")

    @torch.no_grad()
    def finish_gradient_synchronization(self) -> None:
        """Launch the buckets that are left, in order, wait for all, and put the averages into `.grad`.

        A parameter without gradient on this rank counts as zeros. One that no rank used may end with zeros or None.
        """
        raise NotImplementedError("task 4: launch the rest, wait, take the averages")


# --- the loss ---------------------------------------------------------------------------------------------------------


def global_token_loss(loss_sum: Tensor, n_tokens: int, group: ProcessGroup | None = None) -> Tensor:
    """A loss whose gradient, averaged over the ranks, is that of (Σ losses of all ranks) / (Σ tokens of all ranks).

    One collective, of one number. With several micro-batches in a step, `n_tokens` is the number of this rank's tokens
    in the whole step, and each micro-batch's `loss_sum` comes with that same number; their losses add up to the step's.

    Args:
        loss_sum: 0-dim sum of the losses of this rank's tokens.
        n_tokens: how many they are, 0 too.

    Returns:
        0-dim, of loss_sum's dtype, differentiable; 0 where no rank has a token.
    """
    raise NotImplementedError("task 5: the ranks' mean divides by W, so multiply by it")


# --- all-reduce from sends --------------------------------------------------------------------------------------------


@torch.no_grad()
def ring_all_reduce(tensor: Tensor, group: ProcessGroup | None = None) -> None:
    """Replace `tensor`, on every rank of the group, by the sum over its ranks: 2(W-1) messages of 1/W of it per rank.

    Only dist.isend and dist.irecv may be used. In phase one (reduce-scatter) partial sums of chunks travel once round
    the ring, after which rank r owns the finished chunk (r+1) mod W; in phase two (all-gather) finished chunks do.

    Args:
        tensor: any shape, of a floating or an integer dtype, also non-contiguous; the same shape on all ranks. An empty
            one, and a group of one rank, need no message; fewer elements than ranks make some chunks empty, which may
            be left out.
    """
    raise NotImplementedError("task 8: reduce-scatter, then all-gather")


def communication_report(nbytes: Sequence[int], world_size: int, cap_bytes: int) -> dict[str, int]:
    """What one synchronisation costs, if every collective is a ring all-reduce.

    Args:
        nbytes: size of each parameter's gradient, all of one dtype.

    Returns:
        collectives: buckets of plan_buckets; payload_bytes: bytes of all gradients; ring_bytes_per_rank: bytes one rank
        sends, floor(2(W-1) · payload/W); ring_messages_per_rank: messages one rank sends.
    """
    raise NotImplementedError("task 8: 2(W-1) messages for each bucket, 2(W-1)/W of each byte")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Rank 0 writes {"model": state dict, "optimizer": state dict, "step": step} with torch.save; all ranks wait.

    The model may be bare, a BucketedDDP or a DistributedDataParallel: the file holds the keys of the bare one. The file
    appears whole: it is written beside `path` and moved there, and nothing else is left in the folder. Without a
    process group this process is rank 0.
    """
    raise NotImplementedError("task 9: unwrap, write beside, move, wait")


def load_checkpoint(path: str | Path, model: nn.Module, optimizer: Optimizer, map_location: str = "cpu") -> int:
    """Load what `save_checkpoint` wrote into model (bare or wrapped, whichever it was then) and optimizer; the step."""
    raise NotImplementedError("task 9: the bare model takes the keys")


# --- training ---------------------------------------------------------------------------------------------------------


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
    """Train a language model on all ranks of the default group, with SGD (momentum 0.9).

    Each rank goes through shard_indices(len(dataset), W, rank, epoch=e, seed=seed, shuffle=True, drop_last=False) for
    e = 0, 1, ...; a step takes the next micro_batches · batch_size examples of that stream. Its loss is the mean over
    the tokens of all ranks and micro-batches, its gradients are exchanged once.

    Args:
        build_model: the model, for next_token_loss_sum; it is moved to env.device and wrapped.
        dataset: 1-D int64 tensors of at least two tokens.
        impl: "bucketed": BucketedDDP; "torch": build_torch_ddp; each with its default options.
        batch_size: examples in one micro-batch of one rank.

    Returns:
        losses: the loss of each step, a float, the same on all ranks; bytes, collectives: what this rank sent of
        gradients in all steps (nothing but gradients is counted).
    """
    raise NotImplementedError("task 9: stream of examples, micro-batches, one exchange a step")


# --- running it -------------------------------------------------------------------------------------------------------


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
