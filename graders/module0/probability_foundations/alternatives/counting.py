"""0.2 with decisions undone by the inverse permutation, cdfs by counting, preallocated generation, cartesian products."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    x = check_logits(logits, dim)
    top = x.max(dim, keepdim=True).values
    return x - (top + torch.log(torch.sum(torch.exp(x - top), dim, keepdim=True)))


def token_logprobs(
    logits: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, *, chunk_size: int = 128
) -> Tensor:
    parts = [torch.zeros(logits.shape[0], 0)]
    for start in range(0, logits.shape[1] - 1, chunk_size):
        stop = min(start + chunk_size, logits.shape[1] - 1)
        ids = input_ids[:, start + 1 : stop + 1]
        dead = torch.zeros_like(ids, dtype=torch.bool)
        if attention_mask is not None:
            dead = attention_mask[:, start + 1 : stop + 1] == 0
        logp = log_softmax(logits[:, start:stop])
        own = torch.take_along_dim(logp, ids.masked_fill(dead, 0).unsqueeze(-1), -1)[..., 0]
        parts.append(torch.where(dead, torch.zeros(()), own.float()))
    return torch.cat(parts, 1)


def _in_order(x: Tensor, score: Tensor, mass: float) -> Tensor:
    """Keep tokens of smallest score until the mass before one reaches `mass`."""
    if mass == 1:
        return torch.ones_like(x, dtype=torch.bool)
    order = torch.argsort(score, dim=-1, stable=True)
    sorted_prob = torch.take_along_dim(x.double().softmax(-1), order, -1)
    before = torch.cumsum(sorted_prob, -1).roll(1, -1)
    before[..., 0] = 0.0
    return torch.take_along_dim(before < mass, torch.argsort(order, dim=-1), -1)


def temperature(logits: Tensor, t: float) -> Tensor:
    if not t > 0:
        raise ValueError(f"temperature: t must be positive, got {t}")
    return check_logits(logits) / t


def top_k(logits: Tensor, k: int) -> Tensor:
    if k < 1:
        raise ValueError(f"top_k: k must be positive, got {k}")
    x = check_logits(logits)
    bar = x.sort(dim=-1, descending=True).values[..., min(k, x.shape[-1]) - 1, None]
    return torch.where(x >= bar, x, NEG_INF)


def top_p(logits: Tensor, p: float) -> Tensor:
    check_fraction("top_p: p", p)
    x = check_logits(logits)
    return torch.where(_in_order(x, -x, p), x, NEG_INF)


def min_p(logits: Tensor, p: float) -> Tensor:
    check_fraction("min_p: p", p)
    x = check_logits(logits)
    # p_i >= p max is exp(x_i - max) >= p.
    return torch.where((x - x.amax(-1, keepdim=True)).exp() >= p, x, NEG_INF)


def typical_p(logits: Tensor, mass: float) -> Tensor:
    check_fraction("typical_p: mass", mass)
    x = check_logits(logits)
    surprisal = -log_softmax(x.double())
    entropy = torch.special.entr(torch.exp(-surprisal)).sum(-1, keepdim=True)
    return torch.where(_in_order(x, (surprisal - entropy).abs(), mass), x, NEG_INF)


def apply_strategy(logits: Tensor, s: Strategy) -> Tensor:
    if s.greedy:
        x = check_logits(logits)
        best = x.argmax(-1, keepdim=True)
        return torch.full_like(x, NEG_INF).scatter(-1, best, x.gather(-1, best))
    x = temperature(logits, s.temperature)
    for name, fn in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p), ("typical_p", typical_p)):
        value = getattr(s, name)
        x = x if value is None else fn(x, value)
    return x


def distribution_stats(logits: Tensor, targets: Tensor, *, top_p: float = 0.9) -> DistributionStats:
    check_fraction("top_p", top_p)
    x = check_logits(logits)
    prob = x.softmax(-1)
    order = torch.argsort(x, dim=-1, descending=True, stable=True)
    ordered = torch.take_along_dim(x, order, -1)
    second = ordered[..., 1] if x.shape[-1] > 1 else torch.full_like(ordered[..., 0], NEG_INF)
    return DistributionStats(
        entropy=torch.special.entr(prob).sum(-1),
        surprisal=-torch.take_along_dim(log_softmax(x), targets[..., None], -1)[..., 0],
        rank=(order == targets[..., None]).int().argmax(-1),
        nucleus_size=torch.isfinite(torch.where(_in_order(x, -x, top_p), x, NEG_INF)).sum(-1),
        margin=ordered[..., 0] - second,
        max_prob=prob.max(-1).values,
    )


def rank_curve(logits: Tensor) -> Tensor:
    ordered = log_softmax(torch.sort(logits, dim=-1, descending=True).values)
    return ordered if ordered.ndim == 1 else ordered.mean(dim=tuple(range(ordered.ndim - 1)))


def inverse_cdf_sample(logits: Tensor, u: Tensor) -> Tensor:
    x = check_logits(logits)
    cdf = torch.cumsum(x.double().softmax(-1), -1)
    return (cdf / cdf[..., -1:] <= u[..., None]).sum(-1)


def gumbel_sample(logits: Tensor, u: Tensor) -> Tensor:
    return torch.argmax(check_logits(logits) - torch.log(-torch.log(u)), -1)


def _choose(filtered: Tensor, s: Strategy, generator: torch.Generator) -> Tensor:
    if s.greedy:
        return filtered.argmax(-1)
    return inverse_cdf_sample(filtered, torch.rand(len(filtered), generator=generator, dtype=torch.float64))


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
    start = prompt_rows(prompt, n)
    width = start.shape[1]
    ids = torch.full((n, width + max_new_tokens), pad_id, dtype=torch.int64)
    ids[:, :width] = start
    base, own = torch.zeros(n, max_new_tokens), torch.zeros(n, max_new_tokens)
    lengths = torch.full((n,), max_new_tokens)
    ended = torch.zeros(n, dtype=torch.bool)
    made = 0
    with torch.no_grad():
        while made < max_new_tokens and not ended.all():
            logits = lm(ids[:, : width + made])[:, -1]
            filtered = apply_strategy(logits, s)
            chosen = _choose(filtered, s, generator)
            go = ~ended
            ids[go, width + made] = chosen[go]
            base[go, made] = log_softmax(logits)[go, chosen[go]].to(base.dtype)
            own[go, made] = log_softmax(filtered)[go, chosen[go]].to(own.dtype)
            made += 1
            if eos_id is not None:
                stops = go & (chosen == eos_id)
                lengths[stops] = made
                ended |= stops
    return Generation(ids[:, width : width + made], base[:, :made], own[:, :made], lengths)


def exact_sequences(lm: LM, prompt: Tensor, s: Strategy, length: int) -> tuple[Tensor, Tensor, Tensor]:
    start = prompt_rows(prompt, 1)
    sequences = torch.zeros(1, 0, dtype=torch.int64)
    log_q, log_p = torch.zeros(1).double(), torch.zeros(1).double()
    with torch.no_grad():
        for level in range(1, length + 1):
            logits = lm(torch.hstack((start.repeat(len(sequences), 1), sequences)))[:, -1]
            v = logits.shape[1]
            if v**length > 2**20:
                raise ValueError("more than 2**20 sequences")
            sequences = torch.cartesian_prod(*[torch.arange(v)] * level).reshape(-1, level)
            log_p = log_p.repeat_interleave(v) + log_softmax(logits.double()).reshape(-1)
            log_q = log_q.repeat_interleave(v) + log_softmax(apply_strategy(logits, s).double()).reshape(-1)
    return sequences, log_q, log_p


def compare_strategies(
    lm: LM, prompt: Tensor, strategies: Sequence[Strategy], n: int, length: int, seed: int
) -> list[StrategyReport]:
    return [_report(lm, prompt_rows(prompt, n), s, n, length, seed) for s in strategies]


@torch.no_grad()
def _report(lm: LM, ids: Tensor, s: Strategy, n: int, length: int, seed: int) -> StrategyReport:
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(4, dtype=torch.float64)
    for _ in range(length):
        logits = lm(ids)[:, -1]
        filtered = apply_strategy(logits, s)
        chosen = _choose(filtered, s, generator)
        logp, logq = log_softmax(logits.double()), log_softmax(filtered.double())
        q = logq.exp()
        ratio = torch.where(q > 0, logq - logp, 0.0)
        sums += torch.stack([
            -logp.gather(1, chosen[:, None]).sum(),
            torch.special.entr(logp.exp()).sum(),
            (q * ratio).sum(),
            torch.isfinite(filtered).sum().double(),
        ])
        ids = torch.hstack((ids, chosen[:, None]))
    new = ids[:, -length:]
    unique, counts = torch.unique(new, dim=0, return_counts=True)

    def distinct(k: int) -> float:
        grams = Counter(tuple(g) for row in new.tolist() for g in zip(*(row[i:] for i in range(k)), strict=False))
        return len(grams) / max(1, sum(grams.values()))

    return StrategyReport(
        s.name, *(sums / (n * length)).tolist(), distinct(1), distinct(2), len(unique) / n, int(counts.max()) / n
    )
