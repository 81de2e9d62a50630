"""An alternative: one function for both norms that keeps the normalised row and 1/std; classes and loops throughout."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["layernorm", "rmsnorm", "none"]
Placement = Literal["pre", "post"]


class Standardise(torch.autograd.Function):
    """x -> gain * x_hat + shift. Keeps x_hat in the dtype of x, and 1/std."""

    @staticmethod
    def forward(ctx, x, gain, shift, eps, centre):
        wide = x if x.dtype == torch.float64 else x.float()
        if centre:
            variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
            wide = wide - mean
        else:
            variance = (wide * wide).mean(-1, keepdim=True)
        inverse = 1.0 / torch.sqrt(variance + eps)
        hat = wide * inverse
        ctx.save_for_backward(hat.to(x.dtype), gain, inverse)
        ctx.has_shift, ctx.centre = shift is not None, centre
        ctx.shift_dtype = shift.dtype if shift is not None else None
        out = hat
        if gain is not None:
            out = out * gain
        if shift is not None:
            out = out + shift
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, up):
        narrow, gain, inverse = ctx.saved_tensors
        hat, up = narrow.to(inverse.dtype), up.to(inverse.dtype)
        d = hat.shape[-1]
        flat_up, flat_hat = up.reshape(-1, d), hat.reshape(-1, d)
        d_gain = (flat_up * flat_hat).sum(0).to(gain.dtype) if gain is not None else None
        d_shift = flat_up.sum(0).to(ctx.shift_dtype) if ctx.has_shift else None
        if gain is not None:
            up = up * gain
        d_x = up - hat * (up * hat).mean(-1, keepdim=True)
        if ctx.centre:
            d_x = d_x - up.mean(-1, keepdim=True)
        return (d_x * inverse).to(narrow.dtype), d_gain, d_shift, None, None


def _validate(x, *vectors):
    d = x.shape[-1]
    if d < 1:
        raise ValueError(f"no features in {tuple(x.shape)}")
    for vector in vectors:
        if vector is not None and tuple(vector.shape) != (d,):
            raise ValueError(f"shapes {tuple(x.shape)} and {tuple(vector.shape)} do not fit")


def layer_norm(x, weight, bias, eps=1e-5):
    _validate(x, weight, bias)
    return Standardise.apply(x, weight, bias, eps, True)


def rms_norm(x, weight, eps=1e-6):
    _validate(x, weight)
    return Standardise.apply(x, weight, None, eps, False)


class RMSNorm(nn.Module):
    def __init__(self, d, eps=1e-6, *, affine=True):
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(d)) if affine else None)

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    def __init__(self, d, eps=1e-5, *, affine=True):
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(d)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(d)) if affine else None)

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias, self.eps)


def make_norm(kind, d):
    if kind == "layernorm":
        return LayerNorm(d)
    if kind == "rmsnorm":
        return RMSNorm(d)
    if kind == "none":
        return nn.Identity()
    raise ValueError("kind must be layernorm, rmsnorm or none")


def sublayer(x, f, norm, placement):
    if placement not in {"pre", "post"}:
        raise ValueError("placement must be 'pre' or 'post'")
    pre = placement == "pre"
    branch = f(norm(x) if pre else x)
    total = branch + x
    return total if pre else norm(total)


# --------------------------------------------------------------------------------------------------------------
# As given: a tiny language model, its data and its training
# --------------------------------------------------------------------------------------------------------------

VOCABULARY, CONTEXT = 16, 16


class CausalAttention(nn.Module):
    """Given: multi-head causal self-attention without biases; ``out_proj`` writes to the residual stream."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_proj = nn.Linear(d, 3 * d, bias=False)
        self.out_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv_proj(x).chunk(3, dim=-1))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Given: attention and an MLP, each inside your :func:`sublayer`."""

    def __init__(self, kind: Kind, placement: Placement, d: int, n_heads: int) -> None:
        super().__init__()
        self.placement = placement
        self.norm1, self.norm2 = make_norm(kind, d), make_norm(kind, d)
        self.attention = CausalAttention(d, n_heads)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d, bias=False), nn.GELU(), nn.Linear(4 * d, d, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = sublayer(x, self.attention, self.norm1, self.placement)
        return sublayer(x, self.mlp, self.norm2, self.placement)


class TinyLM(nn.Module):
    """Given: ids (B, T) to logits (B, T, 16), T <= 16.

    ``embed(ids)`` gives the residual stream (B, T, d) that the first block reads; each of ``blocks`` maps a stream to a
    stream; ``final_norm`` and ``unembed`` make logits of the last one. A "post" model has no final norm
    (``nn.Identity``): its last block ends with one.
    """

    def __init__(self, kind: Kind, placement: Placement, *, d: int = 32, n_heads: int = 2, n_layers: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, d)
        self.position = nn.Embedding(CONTEXT, d)
        self.blocks = nn.ModuleList(Block(kind, placement, d, n_heads) for _ in range(n_layers))
        self.final_norm = make_norm(kind if placement == "pre" else "none", d)
        self.unembed = nn.Linear(d, VOCABULARY, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.position.weight[: ids.shape[1]]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.final_norm(x))


@functools.cache
def markov_data(seed: int = 3) -> tuple[Tensor, Tensor]:
    """Given: sequences of an order-1 Markov chain over 16 symbols, int64: 1 024 to train on and 256 to validate on.

    Each row of the transition matrix is a draw from Dirichlet(0.15), so a symbol has few likely successors. A sequence
    has 17 symbols (16 inputs and their successors), the first from the uniform distribution. For seed 3 a model that
    knows only how often symbols occur reaches a loss of about 2.6 nats, one that knows the chain about 1.45.
    """
    rng = np.random.default_rng(seed)
    cumulative = rng.dirichlet(np.full(VOCABULARY, 0.15), size=VOCABULARY).cumsum(axis=1)
    ids = np.empty((1280, CONTEXT + 1), dtype=np.int64)
    ids[:, 0] = rng.integers(VOCABULARY, size=len(ids))
    for t in range(CONTEXT):
        # The successor is the first symbol whose cumulative probability exceeds a uniform number.
        ids[:, t + 1] = (cumulative[ids[:, t]] < rng.random((len(ids), 1))).sum(axis=1).clip(max=VOCABULARY - 1)
    ids = torch.from_numpy(ids)
    return ids[:1024], ids[1024:]


@dataclass(frozen=True)
class NormRun:
    """One training run: what was trained, the training loss of every step, and the loss on the validation set."""

    kind: str
    placement: str
    lr: float
    seed: int
    losses: tuple[float, ...]
    val_loss: float
    #: a loss was not finite, or val_loss exceeds 2·log 16, twice the loss of knowing nothing.
    diverged: bool


#: ``train_fn(kind, placement, lr, seed)``, called with these four positions.
TrainFn = Callable[[str, str, float, int], NormRun]


def train_tiny_lm(kind: Kind, placement: Placement, lr: float, seed: int, steps: int = 80) -> NormRun:
    """Given: train a :class:`TinyLM` with Adam on batches of 32 sequences; the same arguments give the same run."""
    train, val = markov_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyLM(kind, placement)
        optimiser = torch.optim.Adam(model.parameters(), lr=lr)
        losses = []
        for _ in range(steps):
            batch = train[torch.randint(len(train), (32,))]
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    with torch.no_grad():
        val_loss = F.cross_entropy(model(val[:, :-1]).flatten(0, 1), val[:, 1:].flatten()).item()
    diverged = not all(map(math.isfinite, (*losses, val_loss))) or val_loss > 2 * math.log(VOCABULARY)
    return NormRun(kind, placement, lr, seed, tuple(losses), val_loss, diverged)


@dataclass(frozen=True)
class Invariances:
    """Measured properties of a norm on given rows, computed in float64."""

    #: max |norm(x + shift) - norm(x)|
    shift_error: float
    #: max |norm(scale · x) - norm(x)|
    scale_error: float
    #: mean over the rows of the mean of an output row
    output_mean: float
    #: mean over the rows of the root mean square of an output row
    output_rms: float
    #: rank of the Jacobian d norm(x_0) / d x_0 at the first row: singular values above 1e-9 of the largest
    jacobian_rank: int


def measure_invariances(norm, x, *, shift=3.0, scale=7.0):
    state = {key: value.double() for key, value in norm.state_dict().items()}

    def apply(rows):
        return torch.func.functional_call(norm, state, (rows,)) if state else norm(rows)

    rows = x.detach().double().reshape(-1, x.shape[-1])
    out = apply(rows)
    row = rows[0].clone().requires_grad_()
    value = apply(row)
    jacobian = torch.stack([torch.autograd.grad(value[i], row, retain_graph=True)[0] for i in range(len(row))])
    singular = np.linalg.svd(jacobian.numpy(), compute_uv=False)
    return Invariances(
        float((apply(rows + shift) - out).abs().max()),
        float((apply(rows * scale) - out).abs().max()),
        float(out.mean()),
        float((out.norm(dim=-1) / math.sqrt(out.shape[-1])).mean()),
        int(np.count_nonzero(singular > 1e-9 * singular.max())),
    )


def residual_rms_profile(model, ids):
    stream, profile = model.embed(ids), []
    for step in [lambda t: t, *model.blocks]:
        stream = step(stream)
        profile.append(float(stream.detach().norm() / math.sqrt(stream.numel())))
    return profile


def norm_experiment(kinds, placements, lrs, seeds, *, train_fn=train_tiny_lm):
    runs = []
    for kind in kinds:
        for placement in placements:
            if kind == "none" and placement == "post":
                continue
            for lr in lrs:
                for seed in seeds:
                    runs.append(train_fn(kind, placement, lr, seed))
    return runs


def lr_tolerance(runs, threshold):
    losses = defaultdict(lambda: defaultdict(list))
    for run in runs:
        losses[run.kind, run.placement][run.lr].append(run.val_loss)
    result = {}
    for pair, by_lr in losses.items():
        bad = [lr for lr, values in by_lr.items() if not all(v < threshold for v in values)]
        result[pair] = max([lr for lr in by_lr if not bad or lr < min(bad)], default=None)
    return result


def plot_lr_sweep(runs, path):
    figure = Figure()
    ax = figure.add_subplot()
    pairs = list(dict.fromkeys((r.kind, r.placement) for r in runs))
    table = {}
    for pair in pairs:
        own = [r for r in runs if (r.kind, r.placement) == pair]
        for lr in sorted({r.lr for r in own}):
            cell = [r for r in own if r.lr == lr]
            fine = not any(r.diverged for r in cell) and all(math.isfinite(r.val_loss) for r in cell)
            table.setdefault(pair, {})[lr] = float(np.mean([r.val_loss for r in cell])) if fine else None
    heights = [y for points in table.values() for y in points.values() if y is not None]
    ceiling = 1.2 * max(heights, default=1.0)
    for pair, points in table.items():
        ax.semilogx(list(points), [ceiling if y is None else y for y in points.values()], "o-", label="/".join(pair))
        crossed = [lr for lr, y in points.items() if y is None]
        if crossed:
            ax.plot(crossed, [ceiling] * len(crossed), linestyle="none", marker="x", color="black")
    ax.set_ylim(0.0, ceiling)
    ax.legend()
    figure.savefig(path, format="png")
    return figure


def fold_norm(norm, linear):
    w = linear.weight.detach().clone()
    b = torch.zeros(w.shape[0], dtype=w.dtype) if linear.bias is None else linear.bias.detach().clone()
    needs_bias = linear.bias is not None
    if isinstance(norm, LayerNorm) and norm.bias is not None:
        b += (w * norm.bias.detach()).sum(1)
        needs_bias = True
    if norm.weight is not None:
        w = w @ torch.diag(norm.weight.detach())
    new = nn.Linear(w.shape[1], w.shape[0], bias=needs_bias).to(w.dtype)
    new.load_state_dict({"weight": w, "bias": b} if needs_bias else {"weight": w})
    return type(norm)(w.shape[1], norm.eps, affine=False), new


def center_writer(linear):
    n = linear.out_features
    project = torch.eye(n, dtype=linear.weight.dtype) - 1.0 / n
    new = nn.Linear(linear.in_features, n, bias=linear.bias is not None).to(linear.weight.dtype)
    new.load_state_dict({key: project @ value for key, value in linear.state_dict().items()})
    return new


@dataclass(frozen=True)
class NormCost:
    """What one norm over d features costs."""

    #: trainable numbers
    params: int
    #: bytes kept per row between forward and backward, by an implementation as in task 5 (statistics in float32)
    saved_bytes_per_token: int
    #: sums over a row in one forward pass
    row_reductions: int


def norm_cost(kind, d, itemsize):
    statistics = {"none": 0, "rmsnorm": 1, "layernorm": 2}
    if kind not in statistics:
        raise ValueError(f"{kind} is none of {list(statistics)}")
    n = statistics[kind]
    return NormCost(n * d, d * itemsize + 4 * n if n else 0, n)


class GPT2Block(nn.Module):
    """Given: a pre-norm block of GPT-2, of your LayerNorm and :func:`sublayer`; every linear layer has a bias."""

    def __init__(self, d: int, n_heads: int, d_ff: int, eps: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = LayerNorm(d, eps), LayerNorm(d, eps)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, d_ff), nn.Linear(d_ff, d)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))

    def forward(self, x: Tensor) -> Tensor:
        return sublayer(sublayer(x, self.attention, self.norm1, "pre"), self.mlp, self.norm2, "pre")


class GPT2(nn.Module):
    """Given: ids (B, T) to logits (B, T, vocabulary). The unembedding is a matrix of its own."""

    def __init__(
        self, vocabulary: int, context: int, d: int, n_heads: int, d_ff: int, n_layers: int, eps: float
    ) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, d), nn.Embedding(context, d)
        self.blocks = nn.ModuleList(GPT2Block(d, n_heads, d_ff, eps) for _ in range(n_layers))
        self.final_norm = LayerNorm(d, eps)
        self.unembed = nn.Linear(d, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.final_norm(x))


def load_gpt2(directory: str | Path) -> GPT2:
    """Given: the GPT-2 of a local directory (``config.json``, ``model.safetensors``), without transformers.

    Raises ``ValueError`` for a model with another activation or other scores than GPT-2's.
    """
    from safetensors.torch import load_file

    config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
    if config.get("activation_function") != "gelu_new" or config.get("scale_attn_by_inverse_layer_idx"):
        raise ValueError(f"not a plain GPT-2: {config.get('activation_function')}")
    d, n_layers = config["n_embd"], config["n_layer"]
    sizes = (config["n_head"], config.get("n_inner") or 4 * d, n_layers, config["layer_norm_epsilon"])
    model = GPT2(config["vocab_size"], config["n_positions"], d, *sizes)

    # The file of the released model has no prefix, and no unembedding: it is the embedding.
    tensors = load_file(Path(directory) / "model.safetensors")
    theirs = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    ours = {"token.weight": theirs["wte.weight"], "position.weight": theirs["wpe.weight"]}
    ours["unembed.weight"] = theirs.get("lm_head.weight", theirs["wte.weight"])
    names = {"ln_f": "final_norm"}
    for i in range(n_layers):
        names |= {f"h.{i}.ln_{n}": f"blocks.{i}.norm{n}" for n in (1, 2)}
        names |= {f"h.{i}.attn.c_attn": f"blocks.{i}.qkv", f"h.{i}.attn.c_proj": f"blocks.{i}.out"}
        names |= {f"h.{i}.mlp.c_fc": f"blocks.{i}.up", f"h.{i}.mlp.c_proj": f"blocks.{i}.down"}
    for their_name, our_name in names.items():
        # GPT-2 keeps its matrices as (in, out), nn.Linear as (out, in); gains and biases have one dimension.
        weight = theirs[f"{their_name}.weight"]
        ours |= {f"{our_name}.weight": weight.T if weight.dim() == 2 else weight}
        ours |= {f"{our_name}.bias": theirs[f"{their_name}.bias"]}
    model.load_state_dict(ours)
    return model


def as_rmsnorm_model(model: GPT2) -> GPT2:
    """Given: the same function with RMSNorm in the place of every LayerNorm, by your two functions. A new model.

    Each norm's gain and bias move into what reads it; everything that writes to the stream is centred. What is left of
    a LayerNorm is then an RMSNorm without parameters.
    """
    model = copy.deepcopy(model)

    def fold(norm: nn.Module, reader: nn.Linear) -> tuple[nn.Module, nn.Linear]:
        _, folded = fold_norm(norm, reader)
        return RMSNorm(reader.in_features, norm.eps, affine=False), folded

    with torch.no_grad():
        for table in (model.token.weight, model.position.weight):
            table -= table.mean(dim=-1, keepdim=True)
    for block in model.blocks:
        block.norm1, block.qkv = fold(block.norm1, block.qkv)
        block.norm2, block.up = fold(block.norm2, block.up)
        block.out, block.down = center_writer(block.out), center_writer(block.down)
    model.final_norm, model.unembed = fold(model.final_norm, model.unembed)
    return model
