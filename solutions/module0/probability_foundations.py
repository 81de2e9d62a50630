"""Exercise 0.2: log-probabilities of a language model, and what sampling strategies do to them, in PyTorch.

Not to be used: `log_softmax` and `logsumexp` of torch, `torch.multinomial`, `torch.distributions`, transformers
(but for the given loader). `Tensor.softmax` is allowed wherever probabilities, not their logs, are wanted.

Notation: logits `[..., V]` over a vocabulary of V tokens; p is the model's distribution, q the one a strategy makes of
it; all logs are natural (nats). float16 and bfloat16 logits are computed and returned in float32, float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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


# --------------------------------------------------------------------------------------------------------------------
# Task 1 (and 6): log-probabilities.
# --------------------------------------------------------------------------------------------------------------------


def log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """`log(exp(x_i) / Σ_j exp(x_j))` along `dim`, exact where the probability itself underflows; -inf stays -inf.

    Raises ValueError as `check_logits` (given).
    """
    x = check_logits(logits, dim)
    # BEGIN SOLUTION task 1: stable log-softmax
    # log p_i = x_i - c - log Σ_j exp(x_j - c), for any c; with c = max x the sum is between 1 and V.
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()
    # END SOLUTION


def token_logprobs(
    logits: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, *, chunk_size: int = 128
) -> Tensor:
    """Score of each token: logits [B, T, V], input_ids [B, T] -> [B, T-1], always float32.

    Entry t is `log p(input_ids[:, t+1] | tokens up to t)`. Where the *target* has attention mask 0 it is 0.0, whatever
    the id there (-100, say). T = 1 gives [B, 0]. Logits are validated at the T-1 positions that are used, masked ones
    too; the last position is not looked at.

    Task 1 asks for the numbers. Task 6 asks that `chunk_size` positions are worked on at a time, so that no second
    tensor of the size of the logits exists: no float32 copy of half-precision logits, no mask of all of them either.
    """
    # BEGIN SOLUTION task 1: the log-probability of each next token
    b, t = input_ids.shape
    targets = input_ids[:, 1:]
    kept = torch.ones_like(targets, dtype=torch.bool) if attention_mask is None else attention_mask[:, 1:].bool()
    targets = torch.where(kept, targets, 0)  # an id that can be looked up, also where nobody will
    scores = torch.zeros(b, t - 1, dtype=torch.float32, device=logits.device)
    for start in range(0, t - 1, chunk_size):
        part = slice(start, min(start + chunk_size, t - 1))
        x = check_logits(logits[:, part])
        top = x.amax(-1, keepdim=True)
        # x_target - logsumexp(x): the log-probabilities of the other tokens are never formed.
        log_total = top + (x - top).exp_().sum(-1, keepdim=True).log()
        scores[:, part] = (x.gather(-1, targets[:, part, None]) - log_total).squeeze(-1)
    return scores.masked_fill(~kept, 0.0)
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------------
# Task 2 (and 5): filters. Each keeps the surviving logits as they are and sets all others to -inf.
# --------------------------------------------------------------------------------------------------------------------


# BEGIN HIDDEN
def _prefix(prob: Tensor, order: Tensor, mass: float) -> Tensor:
    """Which tokens are kept, [..., V] bool: in the given order, until the mass before a token reaches `mass`."""
    if mass >= 1.0:  # a rounded sum may reach 1 before the tail
        return prob > -1.0
    sorted_prob = prob.gather(-1, order).double()  # a sum over the vocabulary: float32 would drift
    before = sorted_prob.cumsum(-1) - sorted_prob
    return torch.zeros_like(prob, dtype=torch.bool).scatter(-1, order, before < mass)


# END HIDDEN
def temperature(logits: Tensor, t: float) -> Tensor:
    """logits / t. Raises ValueError naming the parameter unless t > 0."""
    if not t > 0.0:
        raise ValueError(f"temperature: t must be greater than 0, got {t}")
    x = check_logits(logits)
    # BEGIN SOLUTION task 2: temperature
    return x / t
    # END SOLUTION


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep logits >= the k-th largest: tokens tied with it stay too. k > V keeps all.

    Raises ValueError naming the parameter if k < 1.
    """
    if k < 1:
        raise ValueError(f"top_k: k must be at least 1, got {k}")
    x = check_logits(logits)
    # BEGIN SOLUTION task 2: the k most likely tokens
    kth = x.topk(min(k, x.shape[-1]), dim=-1).values[..., -1:]
    return x.masked_fill(x < kth, NEG_INF)
    # END SOLUTION


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus: in descending order, each token before which the mass is < p (so also the one that crosses p).

    On ties the lower id comes first. Probabilities in the dtype of the logits, their sums in float64. p = 1 keeps all.
    Raises ValueError naming the parameter unless 0 < p <= 1.
    """
    check_fraction("top_p: p", p)
    x = check_logits(logits)
    # BEGIN SOLUTION task 2: the nucleus
    order = x.sort(dim=-1, descending=True, stable=True).indices
    return x.masked_fill(~_prefix(x.softmax(-1), order, p), NEG_INF)
    # END SOLUTION


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens whose probability is at least p times the largest one.

    Raises ValueError naming the parameter unless 0 < p <= 1.
    """
    check_fraction("min_p: p", p)
    x = check_logits(logits)
    # BEGIN SOLUTION task 2: a bar relative to the most likely token
    prob = x.softmax(-1)
    return x.masked_fill(prob < p * prob.amax(-1, keepdim=True), NEG_INF)
    # END SOLUTION


def typical_p(logits: Tensor, mass: float) -> Tensor:
    """Keep tokens of typical surprisal: ordered by |surprisal - entropy|, ascending, lower id first on ties.

    As for top_p, a token stays if the mass before it is < mass; mass = 1 keeps all.
    Raises ValueError naming the parameter unless 0 < mass <= 1.
    """
    check_fraction("typical_p: mass", mass)
    x = check_logits(logits)
    # BEGIN SOLUTION task 5: tokens whose surprisal is near the entropy
    logp = log_softmax(x)
    prob = logp.exp()
    entropy = -(prob * logp).masked_fill(logp == NEG_INF, 0.0).sum(-1, keepdim=True)
    order = (-logp - entropy).abs().sort(dim=-1, stable=True).indices
    return x.masked_fill(~_prefix(prob, order, mass), NEG_INF)
    # END SOLUTION


def apply_strategy(logits: Tensor, s: Strategy) -> Tensor:
    """temperature, top_k, top_p, min_p, typical_p in that order, each on what the one before it returned.

    `greedy` keeps only the largest logit as it was given (the lowest id on ties); the other fields do not count then.
    """
    # BEGIN SOLUTION task 2: one strategy
    if s.greedy:
        x = check_logits(logits)
        ids = torch.arange(x.shape[-1], device=x.device)
        return x.masked_fill(ids != x.argmax(-1, keepdim=True), NEG_INF)
    x = temperature(logits, s.temperature)
    if s.top_k is not None:
        x = top_k(x, s.top_k)
    if s.top_p is not None:
        x = top_p(x, s.top_p)
    if s.min_p is not None:
        x = min_p(x, s.min_p)
    if s.typical_p is not None:
        x = typical_p(x, s.typical_p)
    return x
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------------
# Task 3: statistics.
# --------------------------------------------------------------------------------------------------------------------


def distribution_stats(logits: Tensor, targets: Tensor, *, top_p: float = 0.9) -> DistributionStats:
    """The statistics of `DistributionStats` for logits [..., V] and target ids [...]; 0·log 0 counts as 0.

    Here the parameter `top_p` hides the function: let a helper of yours do what both need.
    `nucleus_size` counts tokens with finite logits only. Raises ValueError unless 0 < top_p <= 1.
    """
    check_fraction("top_p", top_p)
    x = check_logits(logits)
    # BEGIN SOLUTION task 3: entropy, surprisal, rank, nucleus, margin
    logp = log_softmax(x)
    prob = logp.exp()
    at = targets[..., None]
    own = x.gather(-1, at)
    ids = torch.arange(x.shape[-1], device=x.device)
    order = x.sort(dim=-1, descending=True, stable=True).indices
    best = x.topk(min(2, x.shape[-1]), dim=-1).values
    margin = best[..., 0] - best[..., 1] if best.shape[-1] == 2 else torch.full_like(best[..., 0], math.inf)
    return DistributionStats(
        entropy=-(prob * logp).masked_fill(logp == NEG_INF, 0.0).sum(-1),
        surprisal=-logp.gather(-1, at).squeeze(-1),
        rank=((x > own) | ((x == own) & (ids < at))).sum(-1),
        nucleus_size=(_prefix(x.softmax(-1), order, top_p) & (x > NEG_INF)).sum(-1),
        margin=margin,
        max_prob=prob.amax(-1),
    )
    # END SOLUTION


def rank_curve(logits: Tensor) -> Tensor:
    """[..., V] -> [V]: the mean over all leading axes of the log-probability at rank 0, 1, ..., V-1."""
    # BEGIN SOLUTION task 3: mean log-probability at each rank
    curves = log_softmax(logits).sort(dim=-1, descending=True).values
    return curves.reshape(-1, curves.shape[-1]).mean(0)
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------------
# Task 4 (and 5): samplers, and generation.
# --------------------------------------------------------------------------------------------------------------------


def inverse_cdf_sample(logits: Tensor, u: Tensor) -> Tensor:
    """logits [..., V], u [...] in [0, 1) -> ids [...] int64: the smallest i with cdf[i] > u.

    The cdf is computed in float64 and divided by its last entry. A token of probability 0 is never returned.
    """
    x = check_logits(logits)
    # BEGIN SOLUTION task 4: the inverse of the cumulative distribution
    cdf = x.double().softmax(-1).cumsum(-1)
    cdf = cdf / cdf[..., -1:]  # the last entry is exactly 1, and u < 1
    return torch.searchsorted(cdf, u.double()[..., None].contiguous(), right=True).squeeze(-1)
    # END SOLUTION


def gumbel_sample(logits: Tensor, u: Tensor) -> Tensor:
    """logits [..., V], u [..., V] in (0, 1) -> ids [...] int64: `argmax(logits - log(-log u))`, in the wider dtype."""
    x = check_logits(logits)
    # BEGIN SOLUTION task 5: the Gumbel-max trick
    return (x - (-u.log()).log()).argmax(-1)
    # END SOLUTION


# BEGIN HIDDEN
def _steps(
    lm: LM, prompt: Tensor, s: Strategy, n: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor, list[Tensor]]]:
    """Endless steps (next ids [n], log p [n, V], log q [n, V], override): put ids into `override` to feed those."""
    ids = prompt_rows(prompt, n)
    while True:
        logits = lm(ids)[:, -1]
        filtered = apply_strategy(logits, s)
        if s.greedy:
            chosen = filtered.argmax(-1)
        else:
            chosen = inverse_cdf_sample(filtered, torch.rand(n, generator=generator, dtype=torch.float64))
        fed = [chosen]
        yield chosen, log_softmax(logits), log_softmax(filtered), fed
        ids = torch.cat((ids, fed[-1][:, None]), dim=1)


# END HIDDEN
@torch.no_grad()
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
    """Sample n continuations of a prompt ([T], [1, T] or [n, T]), at most `max_new_tokens` each.

    One `lm` call a step, on all n rows (ended ones too). A step that is not greedy draws exactly
    `torch.rand(n, generator=generator, dtype=torch.float64)` and uses `inverse_cdf_sample` on the filtered logits; a
    greedy one draws nothing. The eos token itself is a token with its log-probabilities and counts in `lengths`; after
    it, a row is filled with `pad_id` and 0.0. Stops as soon as every row has ended: then L < max_new_tokens.
    max_new_tokens = 0 calls nothing and gives [n, 0].
    """
    # BEGIN SOLUTION task 4: generation, all rows at once
    tokens, base, own = [], [], []
    alive = torch.ones(n, dtype=torch.bool)
    lengths = torch.zeros(n, dtype=torch.int64)
    steps = _steps(lm, prompt, s, n, generator)
    while len(tokens) < max_new_tokens and bool(alive.any()):
        chosen, logp, logq, fed = next(steps)
        fed.append(torch.where(alive, chosen, pad_id))
        tokens.append(fed[-1])
        base.append(torch.where(alive, logp.gather(-1, chosen[:, None]).squeeze(-1), 0.0))
        own.append(torch.where(alive, logq.gather(-1, chosen[:, None]).squeeze(-1), 0.0))
        lengths += alive
        if eos_id is not None:
            alive = alive & (chosen != eos_id)
    if not tokens:
        return Generation(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0), torch.zeros(n, 0), lengths)
    return Generation(torch.stack(tokens, 1), torch.stack(base, 1), torch.stack(own, 1), lengths)
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------------
# Task 7: the exact distribution of sequences.
# --------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def exact_sequences(lm: LM, prompt: Tensor, s: Strategy, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """All V**length continuations in lexicographic order: tokens [V**L, L] int64, log q and log p [V**L], float64.

    The prompt is [T] or [1, T]. One `lm` call a level, on the V**l prefixes of that level. Filters see the logits in
    the dtype the LM gives (as in `generate`); logs are then taken in float64. log q is -inf where a token is filtered.
    length = 0 gives one empty sequence of probability 1. Raises ValueError if V**length > 2**20 (V is known after one
    call: no more calls are made).
    """
    # BEGIN SOLUTION task 7: breadth-first enumeration
    start = prompt_rows(prompt, 1)
    tokens = torch.zeros(1, 0, dtype=torch.int64)
    log_q = log_p = torch.zeros(1, dtype=torch.float64)
    for _ in range(length):
        logits = lm(torch.cat((start.expand(len(tokens), -1), tokens), dim=1))[:, -1]
        vocabulary = logits.shape[-1]
        if vocabulary**length > 2**20:
            raise ValueError(f"{vocabulary}**{length} sequences are more than 2**20")
        # log p(prefix, token) = log p(prefix) + log p(token | prefix): a chain of sums.
        log_p = (log_p[:, None] + log_softmax(logits.double())).flatten()
        log_q = (log_q[:, None] + log_softmax(apply_strategy(logits, s).double())).flatten()
        last = torch.arange(vocabulary).repeat(len(tokens))
        tokens = torch.cat((tokens.repeat_interleave(vocabulary, 0), last[:, None]), dim=1)
    return tokens, log_q, log_p
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------------
# Task 8: the comparison.
# --------------------------------------------------------------------------------------------------------------------


# BEGIN HIDDEN
def _distinct(sequences: list[list[int]], k: int) -> float:
    """Distinct k-grams / k-grams, over all sequences together."""
    grams = [tuple(row[i : i + k]) for row in sequences for i in range(len(row) - k + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


# END HIDDEN
@torch.no_grad()
def compare_strategies(
    lm: LM, prompt: Tensor, strategies: Sequence[Strategy], n: int, length: int, seed: int
) -> list[StrategyReport]:
    """One `StrategyReport` for each strategy, in order: n continuations of `length` >= 1 tokens, without eos.

    Every strategy starts from a fresh `torch.Generator().manual_seed(seed)` and draws as `generate` does (common random
    numbers). `length` calls of `lm` a strategy: the statistics come from the logits that were sampled from.
    """
    # BEGIN SOLUTION task 8: the comparison
    reports = []
    for s in strategies:
        steps = _steps(lm, prompt, s, n, torch.Generator().manual_seed(seed))
        tokens, surprisal, entropy, kl, support = [], [], [], [], []
        for _ in range(length):
            chosen, logp, logq, _ = next(steps)
            kept = logq > NEG_INF
            tokens.append(chosen)
            surprisal.append(-logp.gather(-1, chosen[:, None]))
            entropy.append(-(logp.exp() * logp).masked_fill(logp == NEG_INF, 0.0).sum(-1))
            # KL(q || p) = Σ q (log q - log p), over the tokens that q has.
            kl.append((logq.exp() * (logq - logp)).masked_fill(~kept, 0.0).sum(-1))
            support.append(kept.sum(-1).double())
        rows = torch.stack(tokens, 1).tolist()
        counts = [rows.count(row) for row in rows]

        def mean(parts: list[Tensor]) -> float:
            return float(torch.stack(parts).double().mean())

        reports.append(
            StrategyReport(
                name=s.name,
                mean_surprisal=mean(surprisal),
                mean_entropy=mean(entropy),
                mean_kl=mean(kl),
                mean_support=mean(support),
                distinct_1=_distinct(rows, 1),
                distinct_2=_distinct(rows, 2),
                unique_fraction=len({tuple(row) for row in rows}) / n,
                top_sequence_share=max(counts) / n,
            )
        )
    return reports
    # END SOLUTION
