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
    raise NotImplementedError("task 1: stable log-softmax")


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
    raise NotImplementedError("task 1: the log-probability of each next token")


# --------------------------------------------------------------------------------------------------------------------
# Task 2 (and 5): filters. Each keeps the surviving logits as they are and sets all others to -inf.
# --------------------------------------------------------------------------------------------------------------------


def temperature(logits: Tensor, t: float) -> Tensor:
    """logits / t. Raises ValueError naming the parameter unless t > 0."""
    if not t > 0.0:
        raise ValueError(f"temperature: t must be greater than 0, got {t}")
    x = check_logits(logits)
    raise NotImplementedError("task 2: temperature")


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep logits >= the k-th largest: tokens tied with it stay too. k > V keeps all.

    Raises ValueError naming the parameter if k < 1.
    """
    if k < 1:
        raise ValueError(f"top_k: k must be at least 1, got {k}")
    x = check_logits(logits)
    raise NotImplementedError("task 2: the k most likely tokens")


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus: in descending order, each token before which the mass is < p (so also the one that crosses p).

    On ties the lower id comes first. Probabilities in the dtype of the logits, their sums in float64. p = 1 keeps all.
    Raises ValueError naming the parameter unless 0 < p <= 1.
    """
    check_fraction("top_p: p", p)
    x = check_logits(logits)
    raise NotImplementedError("task 2: the nucleus")


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens whose probability is at least p times the largest one.

    Raises ValueError naming the parameter unless 0 < p <= 1.
    """
    check_fraction("min_p: p", p)
    x = check_logits(logits)
    raise NotImplementedError("task 2: a bar relative to the most likely token")


def typical_p(logits: Tensor, mass: float) -> Tensor:
    """Keep tokens of typical surprisal: ordered by |surprisal - entropy|, ascending, lower id first on ties.

    As for top_p, a token stays if the mass before it is < mass; mass = 1 keeps all.
    Raises ValueError naming the parameter unless 0 < mass <= 1.
    """
    check_fraction("typical_p: mass", mass)
    x = check_logits(logits)
    raise NotImplementedError("task 5: tokens whose surprisal is near the entropy")


def apply_strategy(logits: Tensor, s: Strategy) -> Tensor:
    """temperature, top_k, top_p, min_p, typical_p in that order, each on what the one before it returned.

    `greedy` keeps only the largest logit as it was given (the lowest id on ties); the other fields do not count then.
    """
    raise NotImplementedError("task 2: one strategy")


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
    raise NotImplementedError("task 3: entropy, surprisal, rank, nucleus, margin")


def rank_curve(logits: Tensor) -> Tensor:
    """[..., V] -> [V]: the mean over all leading axes of the log-probability at rank 0, 1, ..., V-1."""
    raise NotImplementedError("task 3: mean log-probability at each rank")


# --------------------------------------------------------------------------------------------------------------------
# Task 4 (and 5): samplers, and generation.
# --------------------------------------------------------------------------------------------------------------------


def inverse_cdf_sample(logits: Tensor, u: Tensor) -> Tensor:
    """logits [..., V], u [...] in [0, 1) -> ids [...] int64: the smallest i with cdf[i] > u.

    The cdf is computed in float64 and divided by its last entry. A token of probability 0 is never returned.
    """
    x = check_logits(logits)
    raise NotImplementedError("task 4: the inverse of the cumulative distribution")


def gumbel_sample(logits: Tensor, u: Tensor) -> Tensor:
    """logits [..., V], u [..., V] in (0, 1) -> ids [...] int64: `argmax(logits - log(-log u))`, in the wider dtype."""
    x = check_logits(logits)
    raise NotImplementedError("task 5: the Gumbel-max trick")


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
    raise NotImplementedError("task 4: generation, all rows at once")


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
    raise NotImplementedError("task 7: breadth-first enumeration")


# --------------------------------------------------------------------------------------------------------------------
# Task 8: the comparison.
# --------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def compare_strategies(
    lm: LM, prompt: Tensor, strategies: Sequence[Strategy], n: int, length: int, seed: int
) -> list[StrategyReport]:
    """One `StrategyReport` for each strategy, in order: n continuations of `length` >= 1 tokens, without eos.

    Every strategy starts from a fresh `torch.Generator().manual_seed(seed)` and draws as `generate` does (common random
    numbers). `length` calls of `lm` a strategy: the statistics come from the logits that were sampled from.
    """
    raise NotImplementedError("task 8: the comparison")
