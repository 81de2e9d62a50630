"""Another answer to 3.5: a bag of gradients that knows its norm and how to be scaled."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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


class Bag:
    """Gradients in groups of one dtype and device."""

    def __init__(self, grads: Iterable[Tensor]) -> None:
        self.grads = list(grads)
        self.groups: dict[Any, list[Tensor]] = {}
        for g in self.grads:
            if g.numel() == 0:
                continue
            self.groups.setdefault((g.device, g.dtype), []).append(g)

    @classmethod
    def of(cls, params: Iterable[Tensor]) -> Bag:
        return cls(p.grad for p in dict.fromkeys(params) if p.grad is not None)

    def largest(self) -> Tensor:
        """max |g| over everything, float64."""
        home = self.grads[0].device if self.grads else torch.device("cpu")
        tops = [torch.stack(torch._foreach_norm(group, math.inf)).double().amax() for group in self.groups.values()]
        return torch.stack([t.to(home) for t in tops]).amax() if tops else torch.zeros((), device=home).double()

    def norm(self, p: float) -> Tensor:
        largest = self.largest()
        if math.isinf(p):
            return largest
        unit = largest.where(largest.isfinite() & largest.ne(0), 1.0)
        powers = [torch.zeros_like(unit)]
        for (_, dtype), group in self.groups.items():
            if dtype is torch.float64 or p > 6:
                here = [torch.linalg.vector_norm(g.double() / unit.to(g.device), p) for g in group]
            else:
                here = [n / unit.to(n.device) for n in self.together(group, p)]
            powers += [n.to(unit.device) for n in here]
        return unit * torch.linalg.vector_norm(torch.stack(powers), p)

    @staticmethod
    def together(group: list[Tensor], p: float) -> list[Tensor]:
        """Norms of the tensors of a group in float64, as one tensor's elements."""
        return [scaled(torch.stack(torch._foreach_norm(group, p, dtype=torch.float64)), p)]

    def scale_(self, factor: Tensor) -> None:
        for (device, dtype), group in self.groups.items():
            torch._foreach_mul_(group, factor.to(device, torch.float64 if dtype is torch.float64 else torch.float32))


def scaled(x: Tensor, p: float) -> Tensor:
    top = x.amax().clamp(min=1e-300)
    top = top.where(top.isfinite(), 1.0)
    return torch.linalg.vector_norm(x / top, p) * top


@torch.no_grad()
def global_norm(grads: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    if math.isnan(norm_type) or norm_type <= 0:
        raise ValueError("norm_type is outside (0, inf]")
    return Bag(grads).norm(norm_type)


@torch.no_grad()
def clip_grad_norm_(
    params: Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    if math.isnan(max_norm) or max_norm <= 0:
        raise ValueError("max_norm is not positive")
    if math.isnan(norm_type) or norm_type <= 0:
        raise ValueError("norm_type is outside (0, inf]")
    bag = Bag.of(params)
    norm = bag.norm(norm_type)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError("non-finite gradient norm")
    bag.scale_(torch.minimum(max_norm / (norm + 1e-6), torch.ones_like(norm)).masked_fill(~norm.isfinite(), 1.0))
    return norm


@torch.no_grad()
def clip_grad_value_(params: Iterable[Tensor], clip_value: float) -> None:
    if clip_value < 0:
        raise ValueError("clip_value is negative")
    for group in Bag.of(params).groups.values():
        torch._foreach_clamp_min_(group, -clip_value)
        torch._foreach_clamp_max_(group, clip_value)


@torch.no_grad()
def adaptive_clip_(params: Iterable[Tensor], clipping: float = 0.01, eps: float = 1e-3) -> None:
    for p in dict.fromkeys(params):
        if p.grad is None:
            continue
        rows = (p.shape[0], -1) if p.dim() > 1 else (1, -1)
        w = p.double().reshape(rows).square().sum(1).sqrt()
        g = p.grad.double().reshape(rows).square().sum(1).sqrt()
        ratio = clipping * torch.clamp(w, min=eps) / torch.clamp(g, min=1e-6)
        ratio = torch.minimum(ratio, torch.ones_like(ratio)).masked_fill(~g.isfinite(), 1.0)
        shape = (-1,) + (1,) * (p.dim() - 1) if p.dim() > 1 else (1,) * p.dim()
        p.grad.copy_(p.grad.double() * ratio.reshape(shape))


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
    earlier = {p: p.grad for p in model.parameters()}
    model.zero_grad(set_to_none=True)
    nothing = object()
    stream = iter(micro_batches)
    batch = next(stream, nothing)
    losses: list[Tensor] = []
    counts: list[int] = []
    while batch is not nothing:
        upcoming = next(stream, nothing)
        quiet = nullcontext if upcoming is nothing or no_sync is None else no_sync
        with quiet():
            losses.append(one_backward(model, batch, loss_sum_fn, counts))
        batch = upcoming
    tokens, world = sum(counts), 1
    divisor = tokens
    if total_tokens is not None:
        divisor = total_tokens
    elif no_sync is not None and losses:
        divisor, world = across_ranks(tokens, losses[0].device)
    if divisor <= 0 or not losses:
        for p, grad in earlier.items():
            p.grad = grad
        raise ValueError("there are no tokens")
    for p, grad in earlier.items():
        if p.grad is None:
            p.grad = grad
        else:
            p.grad *= world / divisor
            if grad is not None:
                p.grad += grad
    norm = global_norm([p.grad for p in earlier if p.grad is not None])
    return Accumulated(torch.stack(losses).sum().item() / divisor, tokens, len(counts), norm.item())


def one_backward(model: nn.Module, batch: Any, loss_sum_fn: LossSum, counts: list[int]) -> Tensor:
    loss, tokens = loss_sum_fn(model, batch)
    counts.append(int(tokens))
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


class SpikeGuard:
    def __init__(self, window: int = 20, factor: float = 10.0, warmup: int = 10, max_skips: int = 3) -> None:
        self.settings = window, factor, warmup, max_skips
        self.history: list[float] = []
        self.in_a_row = 0
        self.skipped = 0

    def should_skip(self, norm: float) -> bool:
        window, factor, warmup, max_skips = self.settings
        finite = not (math.isnan(norm) or math.isinf(norm))
        if finite and self.is_spike(norm, window, factor, warmup):
            if self.in_a_row == max_skips:
                self.history = []
            else:
                self.in_a_row += 1
                finite = False
        if not finite:
            self.skipped += 1
            return True
        self.in_a_row = 0
        self.history.append(norm)
        return False

    def is_spike(self, norm: float, window: int, factor: float, warmup: int) -> bool:
        return len(self.history) >= warmup and norm > factor * statistics.median(self.history[-window:])


class Trainer:
    def __init__(
        self, model: nn.Module, optimizer: Optimizer, strategy: Strategy, *, accumulation_steps: int = 1
    ) -> None:
        self.model, self.optimizer, self.strategy, self.k = model, optimizer, strategy, accumulation_steps
        self.guard = SpikeGuard() if strategy.guard else None

    def step(self, micro_batches: Iterable[Any], loss_sum_fn: LossSum) -> dict[str, Any]:
        self.optimizer.zero_grad(set_to_none=True)
        batches = micro_batches if hasattr(micro_batches, "__len__") else islice(micro_batches, self.k)
        sync = getattr(self.model, "no_sync", None)
        done = accumulate(self.model, batches, loss_sum_fn, no_sync=sync)
        result = {"loss": done.loss, "grad_norm": done.grad_norm, "skipped": False, "clipped": False}
        if self.guard and self.guard.should_skip(done.grad_norm):
            result["skipped"] = True
            return result
        self.clip()
        result["clipped"] = Bag.of(self.model.parameters()).norm(2.0).item() < (1 - 1e-5) * done.grad_norm
        self.optimizer.step()
        return result

    def clip(self) -> None:
        s = self.strategy
        for bound, clipper in (
            (s.agc, adaptive_clip_),
            (s.clip_value, clip_grad_value_),
            (s.clip_norm, clip_grad_norm_),
        ):
            if bound is not None:
                clipper(self.model.parameters(), bound)


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
    keys = ("final_loss", "diverged", "max_norm", "skipped", "updates")
    table: dict[str, dict[str, list]] = {s.name: {key: [] for key in keys} for s in strategies}
    for strategy in strategies:
        for seed in seeds:
            row = one_run(make_model(seed), islice(make_batches(seed), steps), strategy, lr, loss_sum_fn)
            for key, value in zip(keys, row):
                table[strategy.name][key].append(value)
    return table


def one_run(
    model: nn.Module, updates: Iterable[Sequence[Any]], strategy: Strategy, lr: float, loss_sum_fn: LossSum
) -> tuple[float, bool, float, int, int]:
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr), strategy)
    losses, largest, skipped = [], 0.0, 0
    for batches in updates:
        report = trainer.step(batches, loss_sum_fn)
        losses.append(report["loss"])
        skipped += report["skipped"]
        if math.isfinite(report["grad_norm"]):
            largest = max(largest, report["grad_norm"])
    last = losses[-10:]
    final = math.nan if any(map(math.isnan, last)) else statistics.median(last)
    return final, not math.isfinite(final), largest, skipped, len(losses) - skipped


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
