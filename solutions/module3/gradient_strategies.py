"""Gradient strategies: clipping, accumulation and spike guards for stable training.

A step of SGD is as long as its gradient. One corrupted batch can therefore undo an hour of training, and a batch that
does not fit into memory has to be added up from parts. What stands between backward and step is written here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LossSum = Callable[[nn.Module, Any], tuple[Tensor, int]]


@dataclass(frozen=True)
class Accumulated:
    """What `accumulate` found: the mean loss per token, tokens and micro-batches counted, the norm of all gradients."""

    loss: float
    n_tokens: int
    n_micro: int
    grad_norm: float


@dataclass(frozen=True)
class Strategy:
    """What a Trainer does between backward and step; None and False leave a part out."""

    name: str
    clip_norm: float | None = None
    clip_value: float | None = None
    agc: float | None = None
    guard: bool = False


# --- the norm ---------------------------------------------------------------------------------------------------------

# BEGIN HIDDEN
LARGEST_DIRECT_ORDER = 6.0  # (3.4e38)^6 = 1.5e231 is still a float64


def scaled_norm(x: Tensor, norm_type: float) -> Tensor:
    """||x||_p in float64 as m·||x/m||_p with m = max|x|: no power of it overflows or vanishes."""
    x = x.double()
    largest = x.abs().amax()
    unit = torch.where((largest > 0) & (largest < math.inf), largest, 1.0)
    return unit * torch.linalg.vector_norm(x / unit, norm_type)


def by_dtype_and_device(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups that one multi-tensor operation can take."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.dtype, t.device), []).append(t)
    return list(groups.values())


def existing_gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients there are, of each parameter once."""
    return [p.grad for p in {id(p): p for p in params}.values() if p.grad is not None]


# END HIDDEN


@torch.no_grad()
def global_norm(grads: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """(Σ over all elements of all tensors |g|^p)^(1/p), p = `norm_type`; for p = inf the largest |g|.

    Args:
        grads: real tensors of any shapes, also empty or non-contiguous, of any mix of float16, bfloat16, float32 and
            float64. They are not changed.
        norm_type: p in (0, inf].

    Returns:
        0-dim tensor, float32 or float64 (float64 where float32 could not hold it), on the device of the first tensor;
        0 for no tensors. It is finite wherever the true norm is a float64: sums of powers must not overflow. NaN or
        inf in a gradient give NaN or inf.

    Raises:
        ValueError: `norm_type` is not in (0, inf]; the message holds "norm_type".
    """
    # BEGIN SOLUTION task 1: norms per tensor in float64, then the norm of the norms
    if not norm_type > 0:
        raise ValueError(f"norm_type must lie in (0, inf], got {norm_type}")
    device = grads[0].device if grads else None
    norms: list[Tensor] = []
    for group in by_dtype_and_device(g for g in grads if g.numel()):
        if group[0].dtype == torch.float64 or LARGEST_DIRECT_ORDER < norm_type < math.inf:
            norms += [scaled_norm(g, norm_type).to(device) for g in group]
        else:
            norms += [n.to(device) for n in torch._foreach_norm(group, norm_type, dtype=torch.float64)]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    return scaled_norm(torch.stack(norms), norm_type)
    # END SOLUTION


# --- clipping ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def clip_grad_norm_(
    params: Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients, in place, by one coefficient min(1, max_norm / (norm + 1e-6)).

    Parameters without gradient are ignored; a parameter that is listed twice counts once. Where the coefficient is 1
    the gradients stay bit for bit. A non-finite norm leaves them as they are (PyTorch would fill them with zeros and
    NaN). The host reads nothing from the device unless `error_if_nonfinite`.

    Args:
        params: tensors with a `.grad` or None; any iterable, read once.

    Returns:
        The norm before clipping, as `global_norm` gives it.

    Raises:
        ValueError: `max_norm` is not above 0 (message holds "max_norm"), or `norm_type` as in `global_norm`.
        RuntimeError: `error_if_nonfinite` and the norm is NaN or inf; the message holds "non-finite".
    """
    # BEGIN SOLUTION task 2: one coefficient for all gradients
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    grads = existing_gradients(params)
    norm = global_norm(grads, norm_type)
    finite = norm < math.inf  # False for NaN too
    if error_if_nonfinite and not finite:
        raise RuntimeError(f"the norm of the gradients is non-finite: {norm.item()}")
    # Chosen on the device: `if norm > max_norm` would make the host wait for it.
    coefficient = torch.where(finite, (max_norm / (norm + 1e-6)).clamp(max=1.0), 1.0)
    for group in by_dtype_and_device(grads):
        wide = torch.float64 if group[0].dtype == torch.float64 else torch.float32
        torch._foreach_mul_(group, coefficient.to(group[0].device, wide))
    return norm
    # END SOLUTION


@torch.no_grad()
def clip_grad_value_(params: Iterable[Tensor], clip_value: float) -> None:
    """Clamp every element of every gradient to [-clip_value, clip_value], in place; NaN stays NaN.

    Raises:
        ValueError: `clip_value` is negative; the message holds "clip_value".
    """
    # BEGIN SOLUTION task 2: clamp each element
    if clip_value < 0:
        raise ValueError(f"clip_value must not be negative, got {clip_value}")
    for grad in existing_gradients(params):
        grad.clamp_(-clip_value, clip_value)
    # END SOLUTION


@torch.no_grad()
def adaptive_clip_(params: Iterable[Tensor], clipping: float = 0.01, eps: float = 1e-3) -> None:
    """Adaptive gradient clipping (Brock et al. 2021): g <- g · min(1, clipping · max(||w||, eps) / max(||g||, 1e-6)).

    Norms are 2-norms *per unit*, in place: a unit is w[i] (a row, a filter: one output) of a tensor with two or more
    dimensions, and the whole of a vector or a number. Norms and ratio are taken in float64: they must not overflow. A
    unit whose gradient has a non-finite norm stays as it is. Parameters without gradient are ignored, weights are not
    changed, the host reads nothing from the device.
    """
    # BEGIN SOLUTION task 5: one ratio per unit
    for p in {id(p): p for p in params}.values():
        if p.grad is None:
            continue
        axes = tuple(range(1, p.dim())) if p.dim() > 1 else tuple(range(p.dim()))
        weight_norm, grad_norm = (
            torch.linalg.vector_norm(t, dim=axes, keepdim=True, dtype=torch.float64) if axes else t.double().abs()
            for t in (p, p.grad)
        )
        ratio = clipping * weight_norm.clamp(min=eps) / grad_norm.clamp(min=1e-6)
        ratio = torch.where(grad_norm < math.inf, ratio.clamp(max=1.0), 1.0)
        p.grad.mul_(ratio.to(torch.promote_types(p.grad.dtype, torch.float32)))
    # END SOLUTION


# --- accumulation -----------------------------------------------------------------------------------------------------


def across_ranks(n_tokens: int, device: torch.device) -> tuple[int, int]:
    """(tokens of all ranks, number of ranks) where torch.distributed runs; else (n_tokens, 1). Given."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return n_tokens, 1
    total = torch.tensor(n_tokens, device=device)
    dist.all_reduce(total)
    return int(total), dist.get_world_size()


def accumulate(
    model: nn.Module,
    micro_batches: Iterable[Any],
    loss_sum_fn: LossSum,
    *,
    total_tokens: int | None = None,
    no_sync: Callable[[], AbstractContextManager] | None = None,
) -> Accumulated:
    """Add the gradient of (Σ losses of all tokens) / (Σ tokens) to `.grad`, holding one micro-batch's graph at a time.

    Gradients that are already there are kept and added to, as backward does.

    Args:
        micro_batches: any iterable, generators too; it may be read one micro-batch ahead.
        loss_sum_fn: (model, micro_batch) -> (0-dim sum of its tokens' losses, number of its tokens). Called once per
            micro-batch. A micro-batch of 0 tokens is legal and its sum need not require grad.
        total_tokens: divide by this number instead of the tokens counted (another rank's tokens, say); `n_tokens` is
            what was counted all the same.
        no_sync: DistributedDataParallel's; entered around forward and backward of all micro-batches but the last, so
            that ranks exchange gradients once. With it, and unless `total_tokens` is given, the divisor is that of
            `across_ranks`, and the gradient is multiplied by the number of ranks, which DDP's averaging divides by.

    Returns:
        loss = (Σ losses)/divisor of this process, tokens, micro-batches, and the global 2-norm of all `.grad`.

    Raises:
        ValueError: no tokens in total (or `total_tokens` below 1); the message holds "no tokens", and the gradients
            are as they were before.
    """
    # BEGIN SOLUTION task 3: sums first, one division at the end
    params = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in params]
    for p in params:
        p.grad = None  # the division must not touch what was there
    loss, n_tokens, n_micro = None, 0, 0
    for batch, last in mark_last(micro_batches):
        with nullcontext() if no_sync is None or last else no_sync():
            loss_sum, tokens = loss_sum_fn(model, batch)
            if loss_sum.requires_grad:
                loss_sum.backward()
        loss = loss_sum.detach() if loss is None else loss + loss_sum.detach()
        n_tokens, n_micro = n_tokens + int(tokens), n_micro + 1
        del loss_sum  # or its graph lives until the next one is built

    ranks, divisor = 1, n_tokens if total_tokens is None else total_tokens
    if no_sync is not None and total_tokens is None and loss is not None:
        divisor, ranks = across_ranks(n_tokens, loss.device)
    if divisor < 1 or loss is None:
        for p, grad in zip(params, before):
            p.grad = grad
        raise ValueError("no tokens to take a mean over")
    for p, grad in zip(params, before):
        if p.grad is not None:
            p.grad.mul_(ranks / divisor)
        if grad is not None:
            p.grad = grad if p.grad is None else grad.add_(p.grad)
    norm = global_norm([p.grad for p in params if p.grad is not None])
    return Accumulated(float(loss) / divisor, n_tokens, n_micro, float(norm))
    # END SOLUTION


# BEGIN HIDDEN
def mark_last(items: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """(item, whether it is the last one): reads one item ahead."""
    iterator = iter(items)
    for item in islice(iterator, 1):
        for following in iterator:
            yield item, False
            item = following
        yield item, True


# END HIDDEN


# --- the guard --------------------------------------------------------------------------------------------------------


class SpikeGuard:
    """Says which steps to skip, from the norms of their gradients.

    * A non-finite norm is always skipped, and nothing else changes.
    * Once `warmup` (1 or more) norms have been accepted, a norm above factor · median(the last `window` accepted) is
      skipped; the median of an even number is the mean of the middle two (`statistics.median`). A skipped norm is not
      remembered.
    * After `max_skips` finite skips in a row the next one is not skipped: the scale has changed. What is remembered is
      cleared, this norm is accepted as the first, and the warm-up begins again.

    Attributes:
        skipped: how many steps were skipped so far, of both kinds.
    """

    def __init__(self, window: int = 20, factor: float = 10.0, warmup: int = 10, max_skips: int = 3) -> None:
        # BEGIN SOLUTION task 4: what the guard remembers
        self.factor, self.warmup, self.max_skips = factor, warmup, max_skips
        self.norms: deque[float] = deque(maxlen=window)
        self.accepted = self.streak = self.skipped = 0
        # END SOLUTION

    def should_skip(self, norm: float) -> bool:
        """Judge the next step by the norm of its gradient, and remember it."""
        # BEGIN SOLUTION task 4: non-finite, spike, change of scale, ordinary
        if not math.isfinite(norm):
            self.skipped += 1
            return True
        if self.accepted >= self.warmup and norm > self.factor * statistics.median(self.norms):
            if self.streak < self.max_skips:
                self.streak += 1
                self.skipped += 1
                return True
            self.norms.clear()
            self.accepted = 0
        self.streak = 0
        self.norms.append(norm)
        self.accepted += 1
        return False
        # END SOLUTION


# --- a trainer, and a study of strategies -----------------------------------------------------------------------------


class Trainer:
    """One update at a time: zero_grad, accumulate, guard, adaptive clip, value clip, norm clip, optimizer.step.

    Attributes:
        guard: a SpikeGuard with its default values if strategy.guard, else None.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, strategy: Strategy, *, accumulation_steps: int = 1
    ) -> None:
        # BEGIN SOLUTION task 8: keep the parts, make the guard
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.accumulation_steps = accumulation_steps
        self.guard = SpikeGuard() if strategy.guard else None
        # END SOLUTION

    def step(self, micro_batches: Iterable[Any], loss_sum_fn: LossSum) -> dict[str, Any]:
        """One update from the micro-batches.

        A sequence (anything with a length) is used whole; of an iterator the next `accumulation_steps` micro-batches
        are taken, or what is left of them. A model that has `no_sync` (DDP) is accumulated with it.

        Returns:
            loss (float); grad_norm (float), after accumulation and before any clipping: it is what the guard sees;
            skipped (bool): the optimizer was not called; clipped (bool): the norm after clipping is below
            (1 - 1e-5) · grad_norm.

        Raises:
            ValueError: no tokens, as in `accumulate`.
        """
        # BEGIN SOLUTION task 8: accumulate once, ask the guard, clip once, step
        if not hasattr(micro_batches, "__len__"):
            micro_batches = islice(micro_batches, self.accumulation_steps)
        self.optimizer.zero_grad()
        found = accumulate(self.model, micro_batches, loss_sum_fn, no_sync=getattr(self.model, "no_sync", None))
        report = {"loss": found.loss, "grad_norm": found.grad_norm, "skipped": False, "clipped": False}
        if self.guard is not None and self.guard.should_skip(found.grad_norm):
            return report | {"skipped": True}
        params, chosen = list(self.model.parameters()), self.strategy
        if chosen.agc is not None:
            adaptive_clip_(params, chosen.agc)
        if chosen.clip_value is not None:
            clip_grad_value_(params, chosen.clip_value)
        if chosen.clip_norm is not None:
            clip_grad_norm_(params, chosen.clip_norm)
        after = global_norm([p.grad for p in params if p.grad is not None]).item()
        self.optimizer.step()
        return report | {"clipped": after < (1 - 1e-5) * found.grad_norm}
        # END SOLUTION


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    """Σ (model(x) - y)² and the number of targets. Given."""
    x, y = batch
    return (model(x) - y).square().sum(), y.numel()


def compare_strategies(
    make_model: Callable[[int], nn.Module],
    make_batches: Callable[[int], Iterable[Sequence[Any]]],
    strategies: Sequence[Strategy],
    *,
    seeds: Sequence[int],
    steps: int,
    lr: float,
    loss_sum_fn: LossSum = squared_error,
) -> dict[str, dict[str, list]]:
    """Train a new make_model(seed) by SGD(lr) on the first `steps` items of make_batches(seed), for each strategy.

    An item of make_batches is the list of micro-batches of one update.

    Returns:
        By the strategy's name, lists with one entry per seed, in their order: final_loss (the median of the last 10
        losses, NaN where one of them is NaN), diverged (final_loss is not finite), max_norm (the largest finite
        grad_norm, 0 if there is none), skipped, updates (steps that called the optimizer).
    """
    # BEGIN SOLUTION task 8: a run for each strategy and seed
    table: dict[str, dict[str, list]] = {}
    for strategy in strategies:
        rows = []
        for seed in seeds:
            model = make_model(seed)
            trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=lr), strategy)
            reports = [trainer.step(batches, loss_sum_fn) for batches in islice(make_batches(seed), steps)]
            final = float(np.median([r["loss"] for r in reports[-10:]]))
            skipped = sum(r["skipped"] for r in reports)
            rows.append(
                {
                    "final_loss": final,
                    "diverged": not math.isfinite(final),
                    "max_norm": max((r["grad_norm"] for r in reports if math.isfinite(r["grad_norm"])), default=0.0),
                    "skipped": skipped,
                    "updates": len(reports) - skipped,
                }
            )
        table[strategy.name] = {key: [row[key] for row in rows] for key in rows[0]}
    return table
    # END SOLUTION


# --- given: the task, the table, the command --------------------------------------------------------------------------


class AddingRNN(nn.Module):
    """ReLU RNN that begins as the identity (Le et al. 2015): x (B, T, 2) -> (B,)."""

    def __init__(self, seed: int, hidden: int = 32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.inputs = nn.Parameter(0.1 * torch.randn(hidden, 2, generator=draw))
        self.recurrent = nn.Parameter(torch.eye(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.readout = nn.Parameter(0.1 * torch.randn(hidden, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.recurrent.shape[0])
        for u in (x @ self.inputs.T).unbind(1):
            state = torch.relu(u + state @ self.recurrent.T + self.bias)
        return state @ self.readout


def spiky_adding_task(
    seed: int, *, length: int = 12, batch: int = 32, spike_every: int = 40, spike: float = 1000.0
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Endless updates of one micro-batch: add the two marked numbers of a sequence; each `spike_every`-th is corrupt.

    x (batch, length, 2): standard normal numbers, and a mark that is 1 at two places; y (batch,): the marked numbers'
    sum. Inputs of a corrupt batch are `spike` times too large.
    """
    draw = torch.Generator().manual_seed(seed)
    step = 0
    while True:
        step += 1
        x = torch.randn(batch, length, 2, generator=draw)
        x[..., 1] = torch.zeros(batch, length).scatter_(1, torch.rand(batch, length, generator=draw).topk(2).indices, 1)
        y = x.prod(-1).sum(-1)
        yield [(x * spike if step % spike_every == 0 else x, y)]


def run_table(table: Mapping[str, Mapping[str, Sequence]]) -> str:
    """The result of compare_strategies as lines of text."""
    lines = [f"{'strategy':12} {'final loss':>22} {'diverged':>9} {'max norm':>10} {'skipped':>8}"]
    for name, row in table.items():
        losses = " ".join(f"{x:.2f}" for x in row["final_loss"])
        largest = max(row["max_norm"], default=0.0)
        lines.append(f"{name:12} {losses:>22} {sum(row['diverged']):9d} {largest:10.2g} {sum(row['skipped']):8d}")
    return "\n".join(lines)


STUDY = (
    Strategy("none"),
    Strategy("norm", clip_norm=1.0),
    Strategy("value", clip_value=0.1),
    Strategy("agc", agc=0.02),
    Strategy("guard", guard=True),
    Strategy("norm+guard", clip_norm=1.0, guard=True),
)


def token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    """Summed next-token loss of a Hugging Face causal LM; batch = ids, mask (B, T): 1 where there is a token."""
    ids, mask = batch
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return loss, int(mask[:, 1:].sum())


def train_causal_lm(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Reports of `args.steps` updates of the model on the lines of the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    lines = [tokenizer(line)["input_ids"][:512] for line in args.text.read_text("utf-8").split("\n") if line.strip()]

    def micro_batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for ids in lines:
                tensor = torch.tensor([ids], device=args.device)
                yield tensor, torch.ones_like(tensor)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    strategy = Strategy("norm+guard", clip_norm=1.0, guard=True)
    trainer = Trainer(model, optimizer, strategy, accumulation_steps=args.accumulation)
    batches = micro_batches()
    return [trainer.step(batches, token_loss) for _ in range(args.steps)]


def norm_histories(seed: int, steps: int) -> dict[str, list[float]]:
    """Norm of the gradient at each step of the study, by strategy."""
    histories = {}
    for strategy in STUDY:
        model = AddingRNN(seed)
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.02), strategy)
        updates = islice(spiky_adding_task(seed), steps)
        histories[strategy.name] = [trainer.step(batches, squared_error)["grad_norm"] for batches in updates]
    return histories


def plot_norms(histories: Mapping[str, Sequence[float]], path: Path) -> None:
    """Norm per step on a logarithmic axis, as a PNG, and what was drawn beside it as <path>.json."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    series = {}
    for name, norms in histories.items():
        series[name] = [x if math.isfinite(x) else None for x in norms]
        axes.plot(range(1, len(norms) + 1), [math.nan if x is None else x for x in series[name]], label=name)
    axes.set(yscale="log", xlabel="step", ylabel="gradient norm before clipping")
    axes.legend()
    figure.savefig(path)
    Path(f"{path}.json").write_text(json.dumps({"yscale": "log", "series": series}), "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Without --model: the study, into stability.json and stability.png. With it: train a causal LM on a text."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", help="directory in the hub's layout, or a name of the hub")
    parser.add_argument("--text", type=Path, help="a text, one passage a line")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--accumulation", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args(argv)
    if args.model is not None:
        if args.text is None:
            parser.error("--model needs --text")
        result: Any = train_causal_lm(args)
        for number, report in enumerate(result, 1):
            print(f"{number:5d}  loss {report['loss']:.4f}  norm {report['grad_norm']:.3g}  {report}")
    else:
        setting = {"seeds": list(range(args.seeds)), "steps": args.steps, "lr": 0.02}
        table = compare_strategies(AddingRNN, spiky_adding_task, STUDY, **setting)
        print(run_table(table))
        result = {**setting, "strategies": [asdict(s) for s in STUDY], "table": table}
        plot_norms(norm_histories(0, args.steps), args.out / "stability.png")
    # NaN and inf are no JSON: they stand as null.
    plain = json.loads(json.dumps(result), parse_constant=lambda _: None)
    (args.out / "stability.json").write_text(json.dumps(plain, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
