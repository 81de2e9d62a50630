"""A correct solution in a low-level style: one flat batch of B·K products, masks as an additive bias, a fused
multiply-add for the scores, statistics by bit patterns, the comparison by sorting.

The given parts (tasks, model, training, table) are those of the stub.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads=None, *, bias=True):
        super().__init__()
        self.h = n_heads
        self.kv = n_heads if n_kv_heads is None else n_kv_heads
        if self.h < 1 or self.kv < 1 or d_model % self.h != 0 or self.h % self.kv != 0:
            raise ValueError(f"not divisible: {d_model} features, {self.h} heads, {self.kv} shared heads")
        self.d = d_model // n_heads
        for name, rows in (("q", n_heads), ("k", self.kv), ("v", self.kv), ("out", n_heads)):
            setattr(self, f"{name}_proj", nn.Linear(d_model, rows * self.d, bias=bias))

    def project_kv(self, memory):
        def heads(y):  # a view: nothing is copied before the products ask for it
            return y.unflatten(-1, (self.kv, self.d)).movedim(-2, -3)

        return heads(self.k_proj(memory)), heads(self.v_proj(memory))

    def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
                need_weights=False):
        if memory is not None and kv is not None:
            raise ValueError("memory and kv: not both")
        keys, values = kv if kv is not None else self.project_kv(query if memory is None else memory)
        b, tq, _ = query.shape
        tk, g = keys.size(-2), self.h // self.kv
        keys, values = keys.reshape(b * self.kv, tk, self.d), values.reshape(b * self.kv, tk, self.d)
        # (b, tq, kv, g, d) -> (b, kv, g, tq, d) -> (b·kv, g·tq, d)
        rows = self.q_proj(query).unflatten(-1, (self.kv, g, self.d)).permute(0, 2, 3, 1, 4)
        rows = rows.reshape(b * self.kv, g * tq, self.d)

        hidden = None
        for mask in self._hidden(key_padding_mask, attn_mask, is_causal, tq, tk, query.device):
            hidden = mask if hidden is None else hidden | mask
        if hidden is None:
            bias = query.new_zeros(())
        else:
            hidden = hidden.expand(b, self.h, tq, tk)
            blind = hidden.all(-1, keepdim=True)
            # A blind query keeps a bias of zero, so that its softmax is finite; it is silenced below.
            bias = query.new_zeros(b, self.h, tq, tk).masked_fill_(hidden & ~blind, -math.inf)
            bias = bias.reshape(b * self.kv, g * tq, tk)
        scores = torch.baddbmm(bias, rows, keys.transpose(1, 2), alpha=self.d**-0.5)
        p = torch.softmax(scores, dim=2)
        if hidden is not None:
            p = p * (~blind).expand(b, self.h, tq, 1).reshape(b * self.kv, g * tq, 1)
        context = torch.bmm(p, values).unflatten(0, (b, self.kv)).unflatten(2, (g, tq))  # (b, kv, g, tq, d)
        out = self.out_proj(context.permute(0, 3, 1, 2, 4).flatten(2))
        return (out, p.reshape(b, self.h, tq, tk)) if need_weights else out

    @staticmethod
    def _hidden(key_padding_mask, attn_mask, is_causal, tq, tk, device):
        if key_padding_mask is not None:
            yield ~key_padding_mask.unsqueeze(1).unsqueeze(2)
        if attn_mask is not None:
            yield ~attn_mask
        if is_causal:
            i, j = torch.arange(tq, device=device), torch.arange(tk, device=device)
            yield j > i.unsqueeze(1) + (tk - tq)


def kv_bytes_per_token(d_model, n_heads, n_kv_heads, itemsize=4):
    return d_model * 2 * itemsize * n_kv_heads // n_heads


def attention_flops(batch, tq, tk, d_model, n_heads, n_kv_heads):
    narrow = d_model * n_kv_heads // n_heads
    multiply_adds = batch * (2 * tq * d_model**2 + 2 * tk * d_model * narrow + 2 * tq * tk * d_model)
    return 2 * multiply_adds


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


def greedy_decode(model, src, length):
    with torch.inference_mode():
        memory = model.encode(src)
        source = tuple(block.cross.project_kv(memory) for block in model.decoder)
        line = src.new_full((src.size(0), length + 1), model.start)
        for t in range(length):
            line[:, t + 1] = model.decode(line[:, : t + 1], kv=source)[:, t].argmax(1)
        return line[:, 1:].clone()


def evaluate(model, src, tgt):
    wrong = (greedy_decode(model, src, tgt.size(1)) != tgt).sum(1)  # wrong tokens of each sequence
    return 1 - wrong.sum().item() / tgt.numel(), (wrong == 0).sum().item() / len(tgt)


def run_trial(variant, task, seed, *, steps=150, make_batch=make_batch):
    test = make_batch(task, TEST_SIZE, torch.Generator().manual_seed(10_000 + seed))
    data = torch.Generator()
    data.manual_seed(seed)
    torch.manual_seed(seed)
    model = Seq2Seq(TASKS[task], variant.n_heads, variant.n_kv_heads)
    loss = fit(model, task, steps, data, make_batch)
    scores = evaluate(model, *test)
    size = sum(t.numel() for t in model.state_dict().values())
    width = kv_bytes_per_token(model.src_positions.shape[1], variant.n_heads, variant.n_kv_heads)
    return Trial(variant.name, task, seed, steps, loss, *scores, size, width)


def sign_flip_pvalue(differences):
    d = np.asarray(differences, dtype=float)
    if d.size == 0 or d.size > 20:
        raise ValueError("1 to 20 differences")
    patterns = np.arange(2**d.size)
    total = np.zeros(patterns.size)
    for bit, x in enumerate(d):
        total += np.where(patterns >> bit & 1, x, -x)
    hits = np.count_nonzero(abs(total / d.size) >= abs(d.mean()) - 1e-12)
    return hits / patterns.size


def compare(trials, baseline, *, metric="exact_match", alpha=0.05):
    order = {}
    for t in trials:
        order.setdefault((t.task, t.variant), len(order))
    ranked = sorted(trials, key=lambda t: (order[t.task, t.variant], t.seed))
    cells = [(key, list(own)) for key, own in groupby(ranked, key=lambda t: (t.task, t.variant))]
    by_seed = {key: [t.seed for t in own] for key, own in cells}
    values = {key: tuple(getattr(t, metric) for t in own) for key, own in cells}
    rows = []
    for (task, variant), own in cells:
        seeds = by_seed[task, variant]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"a seed of {variant} on {task} occurs twice")
        if by_seed.get((task, baseline)) != seeds:
            raise ValueError(f"unpaired trials: {variant} against {baseline} on {task}")
        x, y = np.array(values[task, variant]), np.array(values[task, baseline])
        if variant == baseline:
            difference, p, verdict = 0.0, 1.0, "baseline"
        else:
            difference, p = float((x - y).mean()), sign_flip_pvalue(x - y)
            verdict = "indistinguishable" if not p < alpha else "worse" if difference < 0 else "better"
        sd = float(x.std(ddof=1)) if len(x) > 1 else float("nan")
        rows.append(Row(variant, task, len(x), float(x.mean()), sd, values[task, variant], difference, p, verdict,
                        own[0].kv_bytes, own[0].n_params, metric))
    return rows


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


def pareto_front(rows):
    names = list(dict.fromkeys(r.variant for r in rows))
    means = np.array([np.mean([r.mean for r in rows if r.variant == n]) for n in names])
    costs = np.array([next(r.kv_bytes for r in rows if r.variant == n) for n in names])
    at_least = (means[:, None] >= means) & (costs[:, None] <= costs)  # [b, a]: b is as good as a in both
    beaten = (at_least & ~at_least.T).any(0)
    return [names[i] for i in np.argsort(costs, kind="stable") if not beaten[i]]


def new_figure(n_bars: int) -> Figure:
    """Given: an Agg figure outside pyplot (nothing to close), wide enough for the bars."""
    figure = Figure(figsize=(max(4.0, 0.9 * n_bars + 1.5), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_comparison(rows, path):
    figure = new_figure(len(rows))
    axes = figure.add_subplot()
    x = np.arange(len(rows))
    means = np.array([r.mean for r in rows])
    axes.bar(x, means, color="tab:blue")
    for at, row in zip(x, rows, strict=True):
        if row.n > 1:
            half = row.sd / row.n**0.5
            axes.vlines(at, row.mean - half, row.mean + half, color="black")
    axes.set(ylabel=rows[0].metric, xticks=x, xticklabels=[r.variant for r in rows])
    figure.savefig(path, format="png")
    return figure
