"""An alternative: composed forward passes in plain functions, backward passes by vector algebra on flattened rows."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["layernorm", "rmsnorm", "none"]
Placement = Literal["pre", "post"]


def _rows(x):
    """x as (rows, d) in the dtype of sums."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.dtype == torch.float64 else flat.to(torch.float32)


def _scale(rows, eps):
    return torch.rsqrt(torch.linalg.vector_norm(rows, dim=1).square() / rows.shape[1] + eps)


def _value(x, weight, bias, mean, scale):
    rows = _rows(x)
    rows = (rows if mean is None else rows - mean[:, None]) * scale[:, None]
    if weight is not None:
        rows = rows * weight
    if bias is not None:
        rows = rows + bias
    return rows.to(x.dtype).reshape(x.shape)


def _pull_back(x, weight, mean, scale, grad):
    """Gradient of x and of the gain: the incoming row minus what lies along the directions the norm cannot see."""
    rows, up = _rows(x), _rows(grad)
    hat = (rows if mean is None else rows - mean[:, None]) * scale[:, None]
    d_weight = None if weight is None else (up * hat).sum(0).to(weight.dtype)
    v = up if weight is None else up * weight
    along = (v * hat).sum(1, keepdim=True) / v.shape[1]
    d_rows = v - along * hat
    if mean is not None:
        d_rows = d_rows - v.sum(1, keepdim=True) / v.shape[1]
    return (d_rows * scale[:, None]).to(x.dtype).reshape(x.shape), d_weight


class _Centred(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        rows = _rows(x)
        mean = rows.sum(1) / rows.shape[1]
        scale = _scale(rows - mean[:, None], eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.bias = None if bias is None else bias.dtype
        return _value(x, weight, bias, mean, scale)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mean, scale = ctx.saved_tensors
        d_x, d_weight = _pull_back(x, weight, mean, scale, grad)
        return d_x, d_weight, None if ctx.bias is None else _rows(grad).sum(0).to(ctx.bias), None


class _Uncentred(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = _scale(_rows(x), eps)
        ctx.save_for_backward(x, weight, scale)
        return _value(x, weight, None, None, scale)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        return *_pull_back(x, weight, None, scale, grad), None


def _refuse(x, vectors):
    if not x.shape[-1]:
        raise ValueError(f"x of shape {tuple(x.shape)} is empty along its features")
    wrong = [tuple(v.shape) for v in vectors if v is not None and v.shape != x.shape[-1:]]
    if wrong:
        raise ValueError(f"x has shape {tuple(x.shape)}, parameters have {wrong}")


def layer_norm(x, weight, bias, eps=1e-5):
    _refuse(x, (weight, bias))
    return _Centred.apply(x, weight, bias, eps)


def rms_norm(x, weight, eps=1e-6):
    _refuse(x, (weight,))
    return _Uncentred.apply(x, weight, eps)


class _Norm(nn.Module):
    names: tuple[str, ...] = ()

    def __init__(self, d, eps, affine):
        super().__init__()
        self.eps = eps
        for name in self.names:
            value = torch.full((d,), float(name == "weight"))
            setattr(self, name, nn.Parameter(value) if affine else None)


class LayerNorm(_Norm):
    names = ("weight", "bias")

    def __init__(self, d, eps=1e-5, *, affine=True):
        super().__init__(d, eps, affine)

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(_Norm):
    names = ("weight",)

    def __init__(self, d, eps=1e-6, *, affine=True):
        super().__init__(d, eps, affine)

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


def make_norm(kind, d):
    makers = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "none": lambda _: nn.Identity()}
    if kind not in makers:
        raise ValueError(f"{kind}: not one of {', '.join(makers)}")
    return makers[kind](d)


def sublayer(x, f, norm, placement):
    match placement:
        case "pre":
            return f(norm(x)) + x
        case "post":
            return norm(f(x) + x)
    raise ValueError("pre or post")


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
    with torch.enable_grad():
        twin, rows = copy.deepcopy(norm).to(torch.float64), x.detach().to(torch.float64)
        base = twin(rows).detach()
        moved, grown = twin(rows + shift).detach(), twin(rows * scale).detach()
        first = rows.reshape(-1, rows.shape[-1])[:1].expand(rows.shape[-1], -1).clone().requires_grad_()
        # Output i of copy i: all rows of the Jacobian in one backward pass.
        (jacobian,) = torch.autograd.grad(twin(first).diagonal().sum(), first)
    values = torch.linalg.svdvals(jacobian)
    return Invariances(
        shift_error=(moved - base).abs().max().item(),
        scale_error=(grown - base).abs().max().item(),
        output_mean=base.mean(-1).mean().item(),
        output_rms=base.pow(2).mean(-1).pow(0.5).mean().item(),
        jacobian_rank=(values > values[0] * 1e-9).sum().item(),
    )


def residual_rms_profile(model, ids):
    seen = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    hooks += [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in model.blocks]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return [t.pow(2).mean().sqrt().item() for t in seen]


def norm_experiment(kinds, placements, lrs, seeds, *, train_fn=train_tiny_lm):
    cells = itertools.product(kinds, placements, lrs, seeds)
    return [train_fn(*cell) for cell in cells if not (cell[0] == "none" and cell[1] == "post")]


def lr_tolerance(runs, threshold):
    result = {(run.kind, run.placement): None for run in runs}
    for pair in result:
        own = sorted((r for r in runs if (r.kind, r.placement) == pair), key=lambda r: r.lr)
        for lr, group in itertools.groupby(own, key=lambda r: r.lr):
            if any(not r.val_loss < threshold for r in group):
                break
            result[pair] = lr
    return result


def plot_lr_sweep(runs, path):
    figure = Figure(figsize=(7, 5))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.12, 0.12, 0.8, 0.8))
    curves = {}
    for pair, lr in sorted({((r.kind, r.placement), r.lr) for r in runs}):
        losses = [math.nan if r.diverged else r.val_loss for r in runs if (r.kind, r.placement, r.lr) == (*pair, lr)]
        curves.setdefault("/".join(pair), []).append((lr, sum(losses) / len(losses)))
    points = np.array([y for curve in curves.values() for _, y in curve])
    points = points[np.isfinite(points)]
    low, high = (points.min() - 0.5, points.max() + 0.5) if points.size else (0.0, 1.0)
    ax.set(xscale="log", ylim=(low, high), xlabel="lr", ylabel="loss")
    for label, curve in curves.items():
        x, y = np.array(curve).T
        ax.plot(x, np.where(np.isfinite(y), y, high), label=label)
        ax.scatter(x[~np.isfinite(y)], np.full((~np.isfinite(y)).sum(), high), marker="x")
    ax.legend(loc="best")
    figure.savefig(str(path))
    return figure


def fold_norm(norm, linear):
    bias = None if linear.bias is None else linear.bias.data
    if isinstance(norm, LayerNorm) and norm.bias is not None:
        bias = F.linear(norm.bias.data, linear.weight.data, bias)
    gain = 1.0 if norm.weight is None else norm.weight.data
    new = nn.utils.skip_init(nn.Linear, linear.in_features, linear.out_features, bias=bias is not None)
    new.weight = nn.Parameter(linear.weight.data * gain)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone())
    plain = copy.deepcopy(norm)
    for name in plain.names:
        setattr(plain, name, None)
    return plain, new


def center_writer(linear):
    new = copy.deepcopy(linear)
    for parameter in new.parameters():
        parameter.data = parameter.data - parameter.data.mean(0)
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
    match kind:
        case "none":
            return NormCost(0, 0, 0)
        case "rmsnorm":
            return NormCost(d, itemsize * d + 4, 1)
        case "layernorm":
            return NormCost(d + d, itemsize * d + 4 + 4, 2)
    raise ValueError(kind)


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
