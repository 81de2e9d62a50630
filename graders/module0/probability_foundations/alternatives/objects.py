"""0.2 as small classes: a sorted view of a distribution that knows how to cut itself, and a rollout that others watch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: `lm(ids[B, T] int64) -> logits[B, T, V]`; logits at position t are about token t + 1.
LM = Callable[[Tensor], Tensor]

NEG_INF = float("-inf")


# --------------------------------------------------------------------------------------------------------------------
# Given: records, validation, adapters, and the figure.
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strategy:
    """How the next token is chosen. None: that filter is off."""

    name: str
    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None


@dataclass
class DistributionStats:
    """Statistics of distributions `[..., V]`, each of shape `[...]`."""

    #: Σ -p log p, in nats.
    entropy: Tensor
    #: -log p(target), in nats.
    surprisal: Tensor
    #: Tokens before the target: larger logit, or equal logit and smaller id. int64, 0 for the most likely token.
    rank: Tensor
    #: Tokens that top_p keeps, int64.
    nucleus_size: Tensor
    #: Largest minus second largest logit; inf where there is no second finite one.
    margin: Tensor
    max_prob: Tensor


@dataclass
class Generation:
    """n continuations of L tokens, L the number of steps that were made."""

    #: [n, L] int64; the pad id after the end of a row.
    tokens: Tensor
    #: [n, L] log p(token) under the model as it is; 0.0 at padding.
    base_logprobs: Tensor
    #: [n, L] log q(token) under the strategy; 0.0 at padding.
    strategy_logprobs: Tensor
    #: [n] int64: tokens up to and including eos.
    lengths: Tensor


@dataclass(frozen=True)
class StrategyReport:
    """What a strategy does, as means over all generated positions and shares of n sequences."""

    name: str
    #: -log p of the sampled tokens: under the model, not under the strategy.
    mean_surprisal: float
    #: Entropy of p at the prefixes that were visited.
    mean_entropy: float
    #: KL(q || p) at those prefixes.
    mean_kl: float
    #: Tokens that the strategy leaves (finite filtered logit).
    mean_support: float
    #: Distinct tokens / tokens, over all n sequences together.
    distinct_1: float
    #: Distinct pairs of neighbours / pairs; 0.0 if there are none.
    distinct_2: float
    #: Distinct sequences / n.
    unique_fraction: float
    #: Share of the most frequent sequence.
    top_sequence_share: float


def check_logits(logits: Tensor, dim: int = -1) -> Tensor:
    """The logits, float16 and bfloat16 as float32.

    Raises ValueError "logits must not contain NaN or +inf", or "all logits are -inf" if that holds along `dim` anywhere.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    top = logits.amax(dim)  # NaN wins over everything, +inf over the rest
    if bool((top.isnan() | (top == math.inf)).any()):
        raise ValueError("logits must not contain NaN or +inf")
    if bool((top == NEG_INF).any()):
        raise ValueError("all logits are -inf")
    return logits


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError unless 0 < value <= 1."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def prompt_rows(prompt: Tensor, n: int) -> Tensor:
    """A prompt `[T]`, `[1, T]` or `[n, T]` as `[n, T]`. Raises ValueError for any other shape."""
    rows = prompt[None] if prompt.ndim == 1 else prompt
    if rows.ndim != 2 or rows.shape[0] not in (1, n):
        raise ValueError(f"prompt must be [T], [1, T] or [{n}, T], got {tuple(prompt.shape)}")
    return rows.expand(n, rows.shape[1])


def hf_lm(model: Any) -> LM:
    """A causal model of transformers as an LM."""

    def lm(ids: Tensor) -> Tensor:
        return model(ids.to(model.device)).logits.cpu()

    return lm


def load_lm(path_or_id: str, *, local_files_only: bool = True) -> LM:
    """Any causal LM from a directory, or by id from a hub. The library's own error if there is none."""
    from transformers import AutoModelForCausalLM

    return hf_lm(AutoModelForCausalLM.from_pretrained(path_or_id, local_files_only=local_files_only).eval())


def plot_report(reports: Sequence[StrategyReport], curve: Tensor, path: str | Path) -> dict[str, list[Any]]:
    """Draw rank against mean log-probability, and mean surprisal against distinct_2; returns what was drawn."""
    from matplotlib.figure import Figure

    drawn = {
        "rank": list(range(1, len(curve) + 1)),
        "logprob": curve.tolist(),
        "surprisal": [r.mean_surprisal for r in reports],
        "distinct_2": [r.distinct_2 for r in reports],
        "names": [r.name for r in reports],
    }
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    left.plot(drawn["rank"], drawn["logprob"])
    left.set(xscale="log", xlabel="rank", ylabel="mean log-probability (nats)")
    right.scatter(drawn["surprisal"], drawn["distinct_2"])
    for x, y, name in zip(drawn["surprisal"], drawn["distinct_2"], drawn["names"], strict=True):
        right.annotate(name, (x, y))
    right.set(xlabel="mean surprisal (nats)", ylabel="distinct 2-grams / 2-grams")
    figure.savefig(path, format="png")
    return drawn



def log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    x = check_logits(logits, dim).movedim(dim, -1)
    best = x.argmax(-1, keepdim=True)
    x = x - x.gather(-1, best)
    others = x.exp().scatter(-1, best, 0.0).sum(-1, keepdim=True)  # the best one contributes exactly 1
    return (x - others.log1p()).movedim(-1, dim)


def token_logprobs(
    logits: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, *, chunk_size: int = 128
) -> Tensor:
    out = logits.new_zeros(input_ids[:, 1:].shape, dtype=torch.float32)
    live = torch.ones_like(input_ids) if attention_mask is None else (attention_mask != 0).long()
    safe = input_ids * live
    for x, to, ids in zip(
        logits[:, :-1].split(chunk_size, 1), out.split(chunk_size, 1), safe[:, 1:].split(chunk_size, 1), strict=True
    ):
        if x.shape[1]:
            to.copy_(log_softmax(x).gather(-1, ids[..., None])[..., 0])
    return out.where(live[:, 1:] != 0, 0.0)


class Ranked:
    """Rows of a distribution in an order of their own."""

    def __init__(self, x: Tensor, key: Tensor, descending: bool) -> None:
        self.x = x
        self.order = key.sort(dim=-1, descending=descending, stable=True)[1]
        self.prob = x.softmax(-1).double().gather(-1, self.order)

    def count(self, mass: float) -> Tensor:
        """How many leading tokens are kept."""
        if mass == 1:
            return torch.full_like(self.order[..., :1], self.x.shape[-1])
        return 1 + (self.prob.cumsum(-1) < mass).sum(-1, keepdim=True)

    def cut(self, mass: float) -> Tensor:
        place = torch.arange(self.x.shape[-1]).expand_as(self.order)
        values = self.x.gather(-1, self.order).masked_fill(place >= self.count(mass), NEG_INF)
        return torch.empty_like(values).scatter_(-1, self.order, values)


def temperature(logits: Tensor, t: float) -> Tensor:
    if t > 0:
        return check_logits(logits).div(t)
    raise ValueError(f"temperature (t) must be > 0: {t}")


def top_k(logits: Tensor, k: int) -> Tensor:
    if k <= 0:
        raise ValueError(f"top_k (k) must be >= 1: {k}")
    x = check_logits(logits)
    if k >= x.shape[-1]:
        return x.clone()
    larger = x.kthvalue(x.shape[-1] - k + 1, dim=-1, keepdim=True).values
    return x.masked_fill(~(x >= larger), NEG_INF)


def top_p(logits: Tensor, p: float) -> Tensor:
    check_fraction("top_p: p", p)
    x = check_logits(logits)
    return Ranked(x, x, True).cut(p)


def min_p(logits: Tensor, p: float) -> Tensor:
    check_fraction("min_p: p", p)
    x = check_logits(logits)
    prob = log_softmax(x).exp()
    return x.masked_fill(prob / prob.amax(-1, keepdim=True) < p, NEG_INF)


def _entropy(logp: Tensor) -> Tensor:
    return -torch.xlogy(logp.exp(), logp.exp()).sum(-1)


def typical_p(logits: Tensor, mass: float) -> Tensor:
    check_fraction("typical_p: mass", mass)
    x = check_logits(logits)
    logp = log_softmax(x)
    return Ranked(x, (logp + _entropy(logp)[..., None]).abs(), False).cut(mass)


def apply_strategy(logits: Tensor, s: Strategy) -> Tensor:
    if s.greedy:
        x = check_logits(logits)
        keep = torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).bool()
        return x.masked_fill(~keep, NEG_INF)
    x = temperature(logits, s.temperature)
    x = top_k(x, s.top_k) if s.top_k is not None else x
    x = top_p(x, s.top_p) if s.top_p is not None else x
    x = min_p(x, s.min_p) if s.min_p is not None else x
    return typical_p(x, s.typical_p) if s.typical_p is not None else x


def distribution_stats(logits: Tensor, targets: Tensor, *, top_p: float = 0.9) -> DistributionStats:
    check_fraction("top_p", top_p)
    x = check_logits(logits)
    logp = log_softmax(x)
    ranked = Ranked(x, x, True)
    ordered = x.gather(-1, ranked.order)
    margin = (ordered[..., :1] - ordered[..., 1:2]).squeeze(-1) if x.shape[-1] > 1 else ordered[..., 0] + math.inf
    return DistributionStats(
        _entropy(logp),
        -logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        ranked.order.argsort(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1),
        (ranked.cut(top_p) > NEG_INF).sum(-1),
        margin,
        logp.amax(-1).exp(),
    )


def rank_curve(logits: Tensor) -> Tensor:
    ordered = torch.sort(log_softmax(logits), -1, True)[0]
    return torch.stack([ordered.select(-1, i).mean() for i in range(ordered.shape[-1])])


def inverse_cdf_sample(logits: Tensor, u: Tensor) -> Tensor:
    weights = (check_logits(logits).double() - logits.double().amax(-1, keepdim=True)).exp()
    sums = weights.cumsum(-1)
    return ((sums / sums[..., -1:]) > u.unsqueeze(-1)).to(torch.uint8).argmax(-1)


def gumbel_sample(logits: Tensor, u: Tensor) -> Tensor:
    return (check_logits(logits) + u.log().neg().log().neg()).max(-1).indices


@dataclass
class Rollout:
    """n rows that grow by one token a step; what the last step saw stays readable."""

    lm: LM
    ids: Tensor
    s: Strategy
    generator: torch.Generator
    logp: Tensor = field(default_factory=lambda: torch.zeros(0))
    logq: Tensor = field(default_factory=lambda: torch.zeros(0))

    def choose(self) -> Tensor:
        logits = self.lm(self.ids)[:, -1, :]
        filtered = apply_strategy(logits, self.s)
        self.logp, self.logq = log_softmax(logits), log_softmax(filtered)
        if self.s.greedy:
            return self.logq.argmax(-1)
        return inverse_cdf_sample(
            filtered, torch.rand(self.ids.shape[0], generator=self.generator, dtype=torch.float64)
        )

    def extend(self, tokens: Tensor) -> None:
        self.ids = torch.cat([self.ids, tokens.unsqueeze(1)], 1)

    @staticmethod
    def of(logs: Tensor, tokens: Tensor) -> Tensor:
        return logs[torch.arange(len(tokens)), tokens]


@torch.inference_mode()
def generate(
    lm: LM,
    prompt: Tensor,
    s: Strategy,
    n: int,
    max_new_tokens: int,
    generator: torch.Generator,
    *,
    eos_id: int | None = None,
    pad_id: int = 0,
) -> Generation:
    rollout = Rollout(lm, prompt_rows(prompt, n), s, generator)
    live = torch.ones(n, dtype=torch.int64)
    lengths, base, own, tokens = torch.zeros(n).long(), [], [], []
    for _ in range(max_new_tokens):
        if live.sum() == 0:
            break
        token = rollout.choose()
        base.append(rollout.of(rollout.logp, token) * live)
        own.append(rollout.of(rollout.logq, token) * live)
        token = token * live + pad_id * (1 - live)
        lengths = lengths + live
        tokens.append(token)
        rollout.extend(token)
        if eos_id is not None:
            live = live * (token != eos_id).long()

    def columns(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.stack(parts, -1) if parts else torch.empty(n, 0, dtype=dtype)

    return Generation(columns(tokens, torch.int64), columns(base, torch.float32), columns(own, torch.float32), lengths)


@torch.inference_mode()
def exact_sequences(lm: LM, prompt: Tensor, s: Strategy, length: int) -> tuple[Tensor, Tensor, Tensor]:
    prompt = prompt.reshape(1, -1)
    digits = torch.zeros(1, 0, dtype=torch.int64)
    q = p = torch.zeros(1, dtype=torch.float64)
    for level in range(1, length + 1):
        logits = lm(torch.cat([prompt.expand(digits.shape[0], -1), digits], -1))[:, -1]
        v = logits.shape[-1]
        if v**length > 1 << 20:
            raise ValueError(f"too many sequences: {v}**{length}")
        p = (p.unsqueeze(-1) + log_softmax(logits.double())).view(-1)
        q = (q.unsqueeze(-1) + log_softmax(apply_strategy(logits, s).double())).view(-1)
        number = torch.arange(v**level)  # a sequence is a number in base v
        digits = torch.stack([number // v**place % v for place in reversed(range(level))], -1)
    return digits, q, p


@torch.inference_mode()
def compare_strategies(
    lm: LM, prompt: Tensor, strategies: Sequence[Strategy], n: int, length: int, seed: int
) -> list[StrategyReport]:
    reports = []
    for s in strategies:
        rollout = Rollout(lm, prompt_rows(prompt, n), s, torch.Generator().manual_seed(seed))
        totals = {"surprisal": 0.0, "entropy": 0.0, "kl": 0.0, "support": 0.0}
        for _ in range(length):
            token = rollout.choose()
            rollout.extend(token)
            q = rollout.logq.exp()
            totals["surprisal"] -= float(rollout.of(rollout.logp, token).sum())
            totals["entropy"] += float(_entropy(rollout.logp).sum())
            totals["kl"] += float((q * (rollout.logq.clamp(min=-1e30) - rollout.logp.clamp(min=-1e30))).sum())
            totals["support"] += float((rollout.logq > NEG_INF).sum())
        rows = [tuple(row) for row in rollout.ids[:, -length:].tolist()]
        ones = [token for row in rows for token in row]
        twos = [pair for row in rows for pair in pairwise(row)]
        reports.append(
            StrategyReport(
                s.name,
                *(total / (n * length) for total in totals.values()),
                distinct_1=len(set(ones)) / len(ones),
                distinct_2=len(set(twos)) / len(twos) if twos else 0.0,
                unique_fraction=len(set(rows)) / n,
                top_sequence_share=max(map(rows.count, rows)) / n,
            )
        )
    return reports
