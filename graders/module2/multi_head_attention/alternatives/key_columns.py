"""A correct solution in a mathematical style: products by einsum on five-dimensional arrays (batch, shared head, member
of its group, position, feature), a softmax written out over the visible keys, statistics in plain Python.

The given parts (tasks, model, training, table) are those of the stub.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor, einsum, nn
from torch.nn import functional as F


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int | None = None, *, bias: bool = True) -> None:
        super().__init__()
        shared = n_kv_heads or n_heads
        if n_kv_heads == 0 or d_model % n_heads or n_heads % shared:
            raise ValueError("heads must be divisible")
        self.shared, self.group, self.head_dim = shared, n_heads // shared, d_model // n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias)
        self.k_proj = nn.Linear(d_model, shared * self.head_dim, bias)
        self.v_proj = nn.Linear(d_model, shared * self.head_dim, bias)
        self.out_proj = nn.Linear(d_model, d_model, bias)

    def project_kv(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*memory.shape[:2], self.shared, self.head_dim)
        keys, values = self.k_proj(memory).reshape(shape), self.v_proj(memory).reshape(shape)
        return keys.permute(0, 2, 1, 3), values.permute(0, 2, 1, 3)

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
    ):
        if kv is None:
            kv = self.project_kv(query if memory is None else memory)
        elif memory is not None:
            raise ValueError("memory is given already by kv: not both")
        k, v = kv
        b, tq, d_model = query.shape
        tk = k.shape[-2]

        # n = batch, s = shared head, r = (member of the group, query), k = key, d = feature.
        q = self.q_proj(query).reshape(b, tq, self.shared, self.group, self.head_dim)
        q = einsum("nqsgd->nsgqd", q).reshape(b, self.shared, self.group * tq, self.head_dim)
        scores = einsum("nsrd,nskd->nsrk", q, k).reshape(b, -1, tq, tk) / math.sqrt(self.head_dim)

        see = torch.ones(tq, tk, dtype=torch.bool, device=query.device)
        if is_causal:
            see = see.tril(tk - tq)
        if attn_mask is not None:
            see = see & attn_mask
        if key_padding_mask is not None:
            see = see & key_padding_mask[:, None, None]

        top = torch.where(see, scores, -math.inf).amax(-1, keepdim=True).detach()
        top = torch.where(top.isfinite(), top, 0.0)
        mass = torch.where(see, scores - top, -math.inf).exp()
        total = mass.sum(-1, keepdim=True)
        weights = mass / torch.where(total == 0, 1.0, total)

        rows = weights.reshape(b, self.shared, self.group * tq, tk)
        heads = einsum("nsrk,nskd->nsrd", rows, v).reshape(b, -1, tq, self.head_dim)
        output = self.out_proj(einsum("nhqd->nqhd", heads).reshape(b, tq, d_model))
        return (output, weights) if need_weights else output


def kv_bytes_per_token(d_model: int, n_heads: int, n_kv_heads: int, itemsize: int = 4) -> int:
    head_dim = d_model // n_heads
    keys = values = n_kv_heads * head_dim * itemsize
    return keys + values


def attention_flops(batch: int, tq: int, tk: int, d_model: int, n_heads: int, n_kv_heads: int) -> int:
    def matmul(m: int, k: int, n: int) -> int:
        return 2 * m * k * n

    head_dim = d_model // n_heads
    projections = [
        matmul(tokens, d_model, heads * head_dim)
        for tokens, heads in ((tq, n_heads), (tk, n_kv_heads), (tk, n_kv_heads), (tq, n_heads))
    ]
    per_head = matmul(tq, head_dim, tk) + matmul(tq, tk, head_dim)
    return batch * (sum(projections) + n_heads * per_head)


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


@torch.no_grad()
def greedy_decode(model: Seq2Seq, src: Tensor, length: int) -> Tensor:
    memory = model.encode(src)
    kv = [block.cross.project_kv(memory) for block in model.decoder]
    columns = [torch.full((len(src),), model.start)]
    while len(columns) <= length:
        after_last = model.decode(torch.stack(columns, 1), kv=kv).select(1, -1)
        columns.append(after_last.max(1).indices)
    return torch.stack(columns, 1)[:, 1:]


def evaluate(model: Seq2Seq, src: Tensor, tgt: Tensor) -> tuple[float, float]:
    written, wanted = greedy_decode(model, src, tgt.shape[1]).tolist(), tgt.tolist()
    tokens = [a == b for row, want in zip(written, wanted, strict=True) for a, b in zip(row, want, strict=True)]
    return sum(tokens) / len(tokens), sum(row == want for row, want in zip(written, wanted, strict=True)) / len(wanted)


def run_trial(variant: Variant, task: str, seed: int, *, steps: int = 150, make_batch: BatchFn = make_batch) -> Trial:
    def generator(n: int) -> torch.Generator:
        return torch.Generator().manual_seed(n)

    torch.manual_seed(seed)
    model = Seq2Seq(TASKS[task], n_heads=variant.n_heads, n_kv_heads=variant.n_kv_heads)
    loss = fit(model, task, steps, generator(seed), make_batch=make_batch)
    accuracy, exact = evaluate(model, *make_batch(task, TEST_SIZE, generator(seed + 10_000)))
    return Trial(
        variant.name,
        task,
        seed,
        steps,
        float(loss),
        accuracy,
        exact,
        n_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        kv_bytes=kv_bytes_per_token(32, variant.n_heads, variant.n_kv_heads),
    )


def sign_flip_pvalue(differences: Sequence[float]) -> float:
    n = len(differences)
    if n < 1 or n > 20:
        raise ValueError("one to twenty differences, please")
    limit = abs(statistics.fmean(differences)) - 1e-12
    extreme = sum(
        abs(math.fsum(d if plus else -d for d, plus in zip(differences, pattern, strict=True)) / n) >= limit
        for pattern in product((True, False), repeat=n)
    )
    return extreme / 2**n


def compare(
    trials: Sequence[Trial], baseline: str, *, metric: str = "exact_match", alpha: float = 0.05
) -> list[Row]:
    table: dict[str, dict[str, dict[int, Trial]]] = defaultdict(lambda: defaultdict(dict))
    order = []
    for t in trials:
        if t.seed in table[t.task][t.variant]:
            raise ValueError(f"repeated: {t}")
        table[t.task][t.variant][t.seed] = t
        if (t.task, t.variant) not in order:
            order.append((t.task, t.variant))

    def row(task: str, variant: str) -> Row:
        mine, theirs = table[task][variant], table[task].get(baseline, {})
        if set(mine) != set(theirs):
            raise ValueError(f"{task}: {variant} and {baseline} are unpaired")
        values = tuple(getattr(mine[s], metric) for s in sorted(mine))
        differences = [getattr(mine[s], metric) - getattr(theirs[s], metric) for s in sorted(mine)]
        p = sign_flip_pvalue(differences)
        mean = statistics.fmean(differences)
        if variant == baseline:
            verdict = "baseline"
        else:
            verdict = ("better" if mean > 0 else "worse") if p < alpha else "indistinguishable"
        any_trial = mine[min(mine)]
        return Row(
            variant,
            task,
            len(values),
            statistics.fmean(values),
            statistics.stdev(values) if len(values) > 1 else math.nan,
            values,
            mean,
            p,
            verdict,
            any_trial.kv_bytes,
            any_trial.n_params,
            metric,
        )

    return [row(*key) for key in order]


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


def pareto_front(rows: Sequence[Row]) -> list[str]:
    means = defaultdict(list)
    cost = {}
    for r in rows:
        means[r.variant].append(r.mean)
        cost.setdefault(r.variant, r.kv_bytes)
    quality = {name: statistics.fmean(v) for name, v in means.items()}
    # Walk from cheap to dear: a variant stays if it is better than all that are cheaper and the best at its price.
    front: list[str] = []
    best = -math.inf
    for price in sorted(set(cost.values())):
        here = [n for n in quality if cost[n] == price]
        top = max(quality[n] for n in here)
        if top > best:
            front += [n for n in here if quality[n] == top]
            best = top
    return front


def plot_comparison(rows: Sequence[Row], path: str | Path) -> Figure:
    figure, ax = plt.subplots()
    names = [r.variant for r in rows]
    errors = [math.nan if r.n < 2 else r.sd / math.sqrt(r.n) for r in rows]
    ax.bar(range(len(rows)), [r.mean for r in rows], tick_label=names)
    ax.errorbar(range(len(rows)), [r.mean for r in rows], yerr=errors, fmt="none", ecolor="k")
    ax.set_ylabel(rows[0].metric)
    figure.savefig(path)
    plt.close(figure)
    return figure
