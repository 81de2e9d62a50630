"""Multi-head attention with shared key/value heads, and an honest comparison of its variants on sequence tasks.

Conventions of this module, used by every function below:

* Masks are boolean and ``True`` means "this key may be read" / "this is a real token"
  (``F.scaled_dot_product_attention`` reads masks this way; ``nn.MultiheadAttention`` means the opposite).
* Causal order is aligned bottom-right: query ``i`` sees key ``j`` iff ``j <= i + Tk - Tq``, so the last query sees
  every key. With ``Tq > Tk`` the first ``Tq - Tk`` queries see nothing.
* A query that sees nothing gets zero weights, and zeros where the heads' outputs are merged (so the layer returns
  the bias of ``out_proj`` there). There is never a NaN, in no value and in no gradient.
* B sequences, Tq queries, Tk (or S) keys, H = n_heads query heads, K = n_kv_heads key/value heads, G = H / K query
  heads that share one of them, D = head_dim = d_model / H.

Not to be called here, because they are what you are building: ``nn.MultiheadAttention``, ``nn.Transformer*``,
``F.multi_head_attention_forward``, ``F.scaled_dot_product_attention``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

# --------------------------------------------------------------------------------------------------------------
# Tasks 1, 2 and 6: the layer
# --------------------------------------------------------------------------------------------------------------


def split_heads(x: Tensor, n: int) -> Tensor:
    """(B, T, n·D) -> (B, n, T, D): head h owns the features h·D .. (h+1)·D - 1 of every position.

    A helper for you; checks only look at the layer.
    """
    # BEGIN SOLUTION task 1: cut the feature axis into heads
    batch, t, width = x.shape
    # view cuts the last axis into (n, D) where it lies; only then may the head axis move in front of time.
    return x.view(batch, t, n, width // n).transpose(1, 2)
    # END SOLUTION


def merge_heads(x: Tensor) -> Tensor:
    """(B, n, T, D) -> (B, T, n·D), the inverse of :func:`split_heads`."""
    # BEGIN SOLUTION task 1: put the heads side by side again
    batch, n, t, d = x.shape
    return x.transpose(1, 2).reshape(batch, t, n * d)
    # END SOLUTION


class MultiHeadAttention(nn.Module):
    """H attentions side by side on H slices of the features, over K <= H key/value heads.

    Parameters (``nn.Linear``; ``bias`` is for all four): ``q_proj`` d_model -> H·D, ``k_proj`` and ``v_proj``
    d_model -> K·D, ``out_proj`` H·D -> d_model. Query head h reads key/value head ``h // (H // K)``: with K = H every
    head has its own (multi-head attention), with K = 1 all share one (multi-query attention), between them are
    grouped queries.

    Tasks 1 to 5 use K = H only (``n_kv_heads`` None or equal to ``n_heads``); task 6 is about K < H.

    Source: Vaswani et al. 2017, section 3.2.2; Shazeer 2019 (K = 1); Ainslie et al. 2023 (1 < K < H).
    """

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int | None = None, *, bias: bool = True) -> None:
        """Raises ``ValueError`` ("divisible") unless n_heads divides d_model and n_kv_heads divides n_heads."""
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if min(n_heads, n_kv_heads) < 1 or d_model % n_heads or n_heads % n_kv_heads:
            raise ValueError(f"d_model={d_model} must be divisible by n_heads={n_heads}, and that by {n_kv_heads}")
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, d_model // n_heads
        kv_dim = n_kv_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, kv_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, kv_dim, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def project_kv(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``memory`` (B, S, d_model), to be handed to :meth:`forward` as ``kv`` any number of times.

        Returns:
            keys and values, each (B, n_kv_heads, S, head_dim).
        """
        # BEGIN SOLUTION task 1: project and cut into key/value heads
        return split_heads(self.k_proj(memory), self.n_kv_heads), split_heads(self.v_proj(memory), self.n_kv_heads)
        # END SOLUTION

    def forward(
        self,
        query: Tensor,
        memory: Tensor | None = None,
        *,
        kv: tuple[Tensor, Tensor] | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Each head attends, ``softmax(Q Kᵀ / sqrt(head_dim)) V``; the results are joined and projected.

        Args:
            query: (B, Tq, d_model).
            memory: (B, Tk, d_model), what keys and values are made of; None: the query itself (self-attention).
            kv: keys and values from :meth:`project_kv`, instead of ``memory``: they are not projected again.
            key_padding_mask: boolean (B, Tk), True = real token; False keys are read by nobody.
            attn_mask: boolean, broadcastable to (B, n_heads, Tq, Tk), True = may be read.
            is_causal: query i sees key j iff ``j <= i + Tk - Tq``. A key must pass every mask that is given.
            need_weights: also return the weights of each head, (B, n_heads, Tq, Tk). The output is the same.

        Returns:
            output (B, Tq, d_model), or (output, weights), in the dtype of query. Hidden keys have weight exactly 0.

        Raises:
            ValueError: memory and kv are both given ("not both").
        """
        if memory is not None and kv is not None:
            raise ValueError("pass memory or kv, not both")
        # BEGIN SOLUTION task 1: project, attend per head, merge (task 2: keys of a memory; task 6: shared heads)
        batch, tq, _ = query.shape
        k, v = self.project_kv(query if memory is None else memory) if kv is None else kv
        tk, groups = k.shape[2], self.n_heads // self.n_kv_heads
        q = split_heads(self.q_proj(query), self.n_heads) * (1.0 / math.sqrt(self.head_dim))  # (B, H, Tq, D)

        # Heads g·G .. g·G + G - 1 ask the same keys. Head h = g·G + i is row block i of group g, so the queries of a
        # group are stacked as (B, K, G·Tq, D) and every key is read where it lies: nothing is repeated per head.
        q = q.reshape(batch, self.n_kv_heads, groups * tq, self.head_dim)
        scores = (q @ k.mT).view(batch, self.n_heads, tq, tk)

        visible = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
        if attn_mask is not None:
            visible = attn_mask if visible is None else visible & attn_mask
        if is_causal:
            causal = torch.ones(tq, tk, dtype=torch.bool, device=query.device).tril(tk - tq)
            visible = causal if visible is None else visible & causal
        if visible is None:
            weights = scores.softmax(dim=-1)
        else:
            # A query that sees nothing would get softmax(-inf, ...) = NaN. It is given finite scores before the
            # softmax, and loses its weights after it, so that no NaN arises in value or gradient.
            empty = ~visible.any(dim=-1, keepdim=True)
            weights = scores.masked_fill(~(visible | empty), float("-inf")).softmax(dim=-1).masked_fill(empty, 0.0)

        context = weights.view(batch, self.n_kv_heads, groups * tq, tk) @ v  # (B, K, G·Tq, D)
        output = self.out_proj(merge_heads(context.view(batch, self.n_heads, tq, self.head_dim)))
        return (output, weights) if need_weights else output
        # END SOLUTION


def kv_bytes_per_token(d_model: int, n_heads: int, n_kv_heads: int, itemsize: int = 4) -> int:
    """Bytes of keys and values that one layer keeps for one token: ``2 · n_kv_heads · head_dim · itemsize``."""
    # BEGIN SOLUTION task 4: bytes of K and V per token
    return 2 * n_kv_heads * (d_model // n_heads) * itemsize
    # END SOLUTION


def attention_flops(batch: int, tq: int, tk: int, d_model: int, n_heads: int, n_kv_heads: int) -> int:
    """FLOPs of the matrix products of one call with a memory: a product (m, k) x (k, n) takes 2·m·k·n.

    Four projections, the scores and the weighted sum; hidden keys are counted like others.
    """
    # BEGIN SOLUTION task 6: count the six products
    kv_dim = n_kv_heads * (d_model // n_heads)
    queries_and_output = 2 * (2 * batch * tq * d_model * d_model)
    keys_and_values = 2 * (2 * batch * tk * d_model * kv_dim)
    # Scores and weighted sum: H heads of head_dim features are d_model features, however many of them share keys.
    scores_and_sum = 2 * (2 * batch * tq * tk * d_model)
    return queries_and_output + keys_and_values + scores_and_sum
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Given: tasks, model and training
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskSize:
    """Vocabularies and lengths of source and target."""

    src_vocab: int
    tgt_vocab: int
    src_len: int
    tgt_len: int


TASKS = {"copy": TaskSize(8, 8, 8, 8), "reverse": TaskSize(8, 8, 8, 8), "gather4": TaskSize(2, 16, 8, 2)}

#: gather4: target 0 is the number whose bits (most significant first) stand at the first four of these positions,
#: target 1 that of the other four.
GATHER_ORDER = (5, 0, 6, 3, 2, 7, 1, 4)

#: How many sequences the test batch of a trial holds.
TEST_SIZE = 256

BatchFn = Callable[[str, int, torch.Generator], tuple[Tensor, Tensor]]


def make_batch(task: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Given: n random sequences of a task -> src (n, src_len), tgt (n, tgt_len), int64."""
    size = TASKS[task]
    src = torch.randint(0, size.src_vocab, (n, size.src_len), generator=generator)
    if task == "copy":
        return src, src.clone()
    if task == "reverse":
        return src, src.flip(1)
    bits = src[:, list(GATHER_ORDER)].view(n, 2, 4)
    return src, (bits * torch.tensor([8, 4, 2, 1])).sum(-1)


class EncoderBlock(nn.Module):
    """Given: pre-norm block, x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, n_heads, n_kv_heads)
        self.ff = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.ReLU(), nn.Linear(2 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, d_model) -> (B, S, d_model)."""
        x = x + self.attention(self.norm1(x))
        return x + self.ff(self.norm2(x))


class DecoderBlock(nn.Module):
    """Given: pre-norm block with causal self-attention, cross-attention to the source, feed-forward."""

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.attention = MultiHeadAttention(d_model, n_heads, n_kv_heads)
        self.cross = MultiHeadAttention(d_model, n_heads, n_kv_heads)
        self.ff = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.ReLU(), nn.Linear(2 * d_model, d_model))

    def forward(self, x: Tensor, memory: Tensor | None = None, kv: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, t, d_model); the source is the encoder's output ``memory`` (B, S, d_model), or the ``kv`` that this
        block's ``cross.project_kv`` made of it."""
        x = x + self.attention(self.norm1(x), is_causal=True)
        x = x + self.cross(self.norm2(x), memory, kv=kv)
        return x + self.ff(self.norm3(x))


class Seq2Seq(nn.Module):
    """Given: a small encoder-decoder with learned positions.

    ``start`` is the id of the start symbol, which the decoder reads first and never writes.
    """

    def __init__(
        self, size: TaskSize, n_heads: int, n_kv_heads: int, *, d_model: int = 32, n_enc: int = 1, n_dec: int = 1
    ) -> None:
        super().__init__()
        self.start = size.tgt_vocab
        self.src_embed = nn.Embedding(size.src_vocab, d_model)
        self.tgt_embed = nn.Embedding(size.tgt_vocab + 1, d_model)
        self.src_positions = nn.Parameter(torch.randn(size.src_len, d_model))
        self.tgt_positions = nn.Parameter(torch.randn(size.tgt_len, d_model))
        self.encoder = nn.ModuleList(EncoderBlock(d_model, n_heads, n_kv_heads) for _ in range(n_enc))
        self.decoder = nn.ModuleList(DecoderBlock(d_model, n_heads, n_kv_heads) for _ in range(n_dec))
        self.src_norm, self.tgt_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.unembed = nn.Linear(d_model, size.tgt_vocab)

    def encode(self, src: Tensor) -> Tensor:
        """Source ids (B, S) -> memory (B, S, d_model)."""
        x = self.src_embed(src) + self.src_positions[: src.shape[1]]
        for block in self.encoder:
            x = block(x)
        return self.src_norm(x)

    def decode(
        self, tokens: Tensor, memory: Tensor | None = None, *, kv: Sequence[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """Logits (B, t, tgt_vocab) of what follows each of the target ids ``tokens`` (B, t), the first of which is
        ``start``. The source is ``memory``, or ``kv``: for each decoder block what its ``cross.project_kv`` made of
        the memory."""
        x = self.tgt_embed(tokens) + self.tgt_positions[: tokens.shape[1]]
        for n, block in enumerate(self.decoder):
            x = block(x, memory) if kv is None else block(x, kv=kv[n])
        return self.unembed(self.tgt_norm(x))

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """Teacher forcing: logits (B, T, tgt_vocab), position t having read ``start`` and tgt[:, :t]."""
        start = torch.full_like(tgt[:, :1], self.start)
        return self.decode(torch.cat([start, tgt[:, :-1]], dim=1), self.encode(src))


def fit(
    model: Seq2Seq,
    task: str,
    steps: int,
    generator: torch.Generator,
    make_batch: BatchFn = make_batch,
    *,
    batch_size: int = 32,
    peak_lr: float = 8e-3,
) -> float:
    """Given: train with teacher forcing on ``steps`` batches drawn from ``generator`` -> loss of the last step.

    Adam on one flat vector of all parameters (a step is then a handful of operators, however many there are); the
    learning rate rises for 50 steps and falls to zero along a cosine.
    """
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    grad, m, v = torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros_like(flat)
    at = 0
    for p in model.parameters():
        p.data, p.grad = (x[at : at + p.numel()].view_as(p) for x in (flat, grad))
        at += p.numel()
    for step in range(steps):
        src, tgt = make_batch(task, batch_size, generator)
        loss = F.cross_entropy(model(src, tgt).flatten(0, 1), tgt.flatten())
        grad.zero_()
        loss.backward()
        m.lerp_(grad, 1 - 0.9)
        v.lerp_(grad.square(), 1 - 0.98)
        lr = peak_lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        lr *= math.sqrt(1 - 0.98 ** (step + 1)) / (1 - 0.9 ** (step + 1))  # the averages started at zero
        flat.addcdiv_(m, v.sqrt().add_(1e-8), value=-lr)
    return loss.item()


@dataclass(frozen=True)
class Variant:
    """Given: what is compared."""

    name: str
    n_heads: int
    n_kv_heads: int


@dataclass(frozen=True)
class Trial:
    """Given: what came out of training one variant on one task with one seed."""

    variant: str
    task: str
    seed: int
    steps: int
    #: Training loss of the last step.
    final_loss: float
    #: Free-running, on the test batch.
    token_accuracy: float
    exact_match: float
    #: Number of parameters of the whole model.
    n_params: int
    #: Bytes of K and V per token and layer in float32, :func:`kv_bytes_per_token`.
    kv_bytes: int


@dataclass(frozen=True)
class Row:
    """Given: a variant on a task, over its seeds, against the baseline."""

    variant: str
    task: str
    #: Number of seeds; mean and sample standard deviation (ddof = 1, NaN for n = 1) of the metric over them.
    n: int
    mean: float
    sd: float
    #: The metric of each seed, in the order of seeds.
    values: tuple[float, ...]
    #: Mean of (variant - baseline) over the seeds, and its sign-flip p-value; 0.0 and 1.0 for the baseline.
    diff_mean: float
    p_value: float
    verdict: Literal["better", "worse", "indistinguishable", "baseline"]
    kv_bytes: int
    n_params: int
    #: Name of the field of Trial that was compared.
    metric: str


# --------------------------------------------------------------------------------------------------------------
# Task 3: decode and score
# --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy_decode(model: Seq2Seq, src: Tensor, length: int) -> Tensor:
    """Write ``length`` tokens, each the likeliest after those written before.

    Args:
        model: read through ``start``, ``encode``, ``decode`` and each ``decoder[n].cross.project_kv``.
        src: source ids (B, S).
        length: tokens to write, at most the model's target length.

    Returns:
        (B, length) int64, without the start symbol.

    The source is encoded once, and its keys and values are projected once per decoder block, whatever the length.
    """
    # BEGIN SOLUTION task 3: encode once, then one argmax per step
    memory = model.encode(src)
    kv = [block.cross.project_kv(memory) for block in model.decoder]
    tokens = torch.full((src.shape[0], 1), model.start, device=src.device)
    for _ in range(length):
        logits = model.decode(tokens, kv=kv)  # (B, t, V); only what follows the last token is new
        tokens = torch.cat([tokens, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens[:, 1:]
    # END SOLUTION


def evaluate(model: Seq2Seq, src: Tensor, tgt: Tensor) -> tuple[float, float]:
    """Decode freely and compare with ``tgt`` (B, T).

    Returns:
        token accuracy (share of all B·T tokens that are right) and exact match (share of the B sequences that are
        right throughout), two floats between 0 and 1.
    """
    # BEGIN SOLUTION task 3: share of right tokens and of right sequences, free-running
    right = greedy_decode(model, src, tgt.shape[1]) == tgt
    return right.float().mean().item(), right.all(dim=1).float().mean().item()
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 4: a fair trial
# --------------------------------------------------------------------------------------------------------------


def run_trial(
    variant: Variant, task: str, seed: int, *, steps: int = 150, make_batch: BatchFn = make_batch
) -> Trial:
    """Train a new ``Seq2Seq`` (its default sizes) of a variant with :func:`fit`, test it with :func:`evaluate`.

    Seeds, so that two variants with the same seed differ in nothing but their heads, and a repetition gives the same
    Trial (on one thread of one machine):

    * ``torch.manual_seed(seed)`` right before the model is built;
    * training batches from a generator seeded with ``seed`` alone;
    * a test batch of ``TEST_SIZE`` sequences from a generator seeded with ``10_000 + seed``.

    All data come from ``make_batch(task, n, generator)``: ``steps`` calls by :func:`fit`, one for the test.
    """
    # BEGIN SOLUTION task 4: build, fit, test, with three independent seeds
    torch.manual_seed(seed)
    model = Seq2Seq(TASKS[task], variant.n_heads, variant.n_kv_heads)
    final_loss = fit(model, task, steps, torch.Generator().manual_seed(seed), make_batch)
    src, tgt = make_batch(task, TEST_SIZE, torch.Generator().manual_seed(10_000 + seed))
    token_accuracy, exact_match = evaluate(model, src, tgt)
    return Trial(
        variant=variant.name,
        task=task,
        seed=seed,
        steps=steps,
        final_loss=final_loss,
        token_accuracy=token_accuracy,
        exact_match=exact_match,
        n_params=sum(p.numel() for p in model.parameters()),
        kv_bytes=kv_bytes_per_token(model.unembed.in_features, variant.n_heads, variant.n_kv_heads),
    )
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 5: is the difference more than luck?
# --------------------------------------------------------------------------------------------------------------


def sign_flip_pvalue(differences: Sequence[float]) -> float:
    """Exact two-sided paired permutation test of "the differences are symmetric around 0".

    If a variant were no different from its baseline, each difference could as well have had the other sign. The
    p-value is the share of all 2ⁿ sign patterns (that of the data is one of them) whose ``|mean|`` is at least
    ``|observed mean| - 1e-12``.

    Raises:
        ValueError: no difference, or more than 20.

    Source: Fisher 1935, *The Design of Experiments*, section 21.
    """
    # BEGIN SOLUTION task 5: all 2^n signed sums
    n = len(differences)
    if not 1 <= n <= 20:
        raise ValueError(f"needs 1 to 20 differences, got {n}")
    sums = np.zeros(1)
    for d in differences:  # each difference doubles the list: every sum so far, with + d and with - d
        sums = np.concatenate([sums + d, sums - d])
    observed = abs(sum(differences)) / n
    return float((np.abs(sums) / n >= observed - 1e-12).mean())
    # END SOLUTION


def compare(
    trials: Sequence[Trial], baseline: str, *, metric: str = "exact_match", alpha: float = 0.05
) -> list[Row]:
    """One Row per (task, variant), in the order in which these first appear in ``trials``.

    Args:
        trials: in any order. For each task, every variant must have exactly the seeds that the baseline has.
        baseline: name of the variant that the others are compared with.
        metric: a field of Trial of which more is better ("exact_match" or "token_accuracy").
        alpha: a difference counts when ``p_value < alpha``; its sign decides between "better" and "worse".

    Raises:
        ValueError: a trial without its pair, or a task without the baseline ("unpaired"); two trials of one variant
            on one task with one seed.
    """
    # BEGIN SOLUTION task 5: pair by task and seed, summarise, test
    runs: dict[tuple[str, str], dict[int, Trial]] = {}
    for trial in trials:
        seeds = runs.setdefault((trial.task, trial.variant), {})
        if trial.seed in seeds:
            raise ValueError(f"two trials of {trial.variant} on {trial.task} with seed {trial.seed}")
        seeds[trial.seed] = trial

    rows = []
    for (task, variant), seeds in runs.items():
        pairs = runs.get((task, baseline), {})
        if seeds.keys() != pairs.keys():
            raise ValueError(f"unpaired: {variant} and {baseline} have different seeds on {task}")
        values = [getattr(seeds[s], metric) for s in sorted(seeds)]
        # The same seed means the same data, so what both found easy or hard drops out of the difference.
        differences = [getattr(seeds[s], metric) - getattr(pairs[s], metric) for s in sorted(seeds)]
        diff_mean = float(np.mean(differences))
        p_value = 1.0 if variant == baseline else sign_flip_pvalue(differences)
        if variant == baseline:
            verdict = "baseline"
        elif p_value >= alpha:
            verdict = "indistinguishable"
        else:
            verdict = "better" if diff_mean > 0 else "worse"
        first = next(iter(seeds.values()))
        rows.append(
            Row(
                variant=variant,
                task=task,
                n=len(values),
                mean=float(np.mean(values)),
                # From a sample, divide by n - 1; one value says nothing about spread.
                sd=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                values=tuple(values),
                diff_mean=diff_mean,
                p_value=p_value,
                verdict=verdict,
                kv_bytes=first.kv_bytes,
                n_params=first.n_params,
                metric=metric,
            )
        )
    return rows
    # END SOLUTION


def render_table(rows: Sequence[Row]) -> str:
    """Given: the rows as text."""
    head = ("task", "variant", "n", "mean", "sd", "diff", "p", "KV B", "verdict")
    lines = ["{:9s} {:12s} {:>2s} {:>6s} {:>6s} {:>7s} {:>7s}  {:>5s}  {}".format(*head)]
    for r in rows:
        lines.append(
            f"{r.task:9s} {r.variant:12s} {r.n:2d} {r.mean:6.3f} {r.sd:6.3f} {r.diff_mean:+7.3f} {r.p_value:7.4f}  "
            f"{r.kv_bytes:5d}  {r.verdict}"
        )
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------
# Task 7: the front and the figure
# --------------------------------------------------------------------------------------------------------------


def pareto_front(rows: Sequence[Row]) -> list[str]:
    """Variants that no other variant beats: more of the metric is better, fewer ``kv_bytes`` are better.

    A variant's quality is the mean of ``mean`` over its rows (one per task). Variant b beats variant a if it is at
    least as good in both respects and better in one; of two that are equal in both, neither beats the other.

    Returns:
        names, cheapest first; equally cheap ones (these are equally good) in the order of ``rows``.
    """
    # BEGIN SOLUTION task 7: keep what is not dominated
    quality, cost = {}, {}
    for name in dict.fromkeys(r.variant for r in rows):
        own = [r for r in rows if r.variant == name]
        quality[name], cost[name] = float(np.mean([r.mean for r in own])), own[0].kv_bytes

    def beats(b: str, a: str) -> bool:
        as_good = quality[b] >= quality[a] and cost[b] <= cost[a]
        return as_good and (quality[b] > quality[a] or cost[b] < cost[a])

    front = [a for a in quality if not any(beats(b, a) for b in quality)]
    return sorted(front, key=cost.__getitem__)
    # END SOLUTION


def new_figure(n_bars: int) -> Figure:
    """Given: an Agg figure outside pyplot (nothing to close), wide enough for the bars."""
    figure = Figure(figsize=(max(4.0, 0.9 * n_bars + 1.5), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_comparison(rows: Sequence[Row], path: str | Path) -> Figure:
    """Bar chart of one task's rows: a bar of height ``mean`` per row, in order, with its standard error.

    The standard error of a mean is ``sd / sqrt(n)``; with one seed there is none to draw. One axes; the x tick labels
    are the variants, the y label is the metric. Written to ``path`` as PNG; returns the figure, and leaves none open in
    pyplot.
    """
    # BEGIN SOLUTION task 7: bars, standard errors, labels
    figure = new_figure(len(rows))
    ax = figure.subplots()
    errors = [r.sd / math.sqrt(r.n) if r.n > 1 else 0.0 for r in rows]
    ax.bar(range(len(rows)), [r.mean for r in rows], yerr=errors, capsize=4)
    ax.set_xticks(range(len(rows)), labels=[r.variant for r in rows])
    ax.set_ylabel(rows[0].metric)
    ax.set_title(rows[0].task)
    figure.savefig(path, format="png")
    return figure
    # END SOLUTION
