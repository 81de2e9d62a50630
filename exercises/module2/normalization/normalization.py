"""Normalisation: LayerNorm and RMSNorm, what they are to each other, and what they change in training.

Conventions, used by every function below:

* A *row* is one vector along the last dimension: the features of one token. Each row is normalised by itself.
* Semantics are those of ``F.layer_norm`` and ``F.rms_norm``: the variance is the biased one (divided by d), and ``eps``
  stands under the root.
* float16 and bfloat16 inputs are computed in float32, the gain and the bias included, and rounded to the dtype of x
  once. float64 inputs are computed in float64.

Not to be called here, because they are what you are building: ``F.layer_norm``, ``F.rms_norm``, ``nn.LayerNorm``,
``nn.RMSNorm``, ``F.batch_norm``, ``F.group_norm``.
"""

from __future__ import annotations

import copy
import functools
import json
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
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Kind = Literal["layernorm", "rmsnorm", "none"]
Placement = Literal["pre", "post"]


# --------------------------------------------------------------------------------------------------------------
# Given: validation and the dtype of sums
# --------------------------------------------------------------------------------------------------------------


def check_affine(x: Tensor, *parameters: Tensor | None) -> None:
    """Raise ``ValueError`` if x has no features, or a weight or bias is not of shape (d,) (both shapes are named)."""
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"nothing to normalise in x of shape {tuple(x.shape)}: its last dimension must not be 0")
    for parameter in parameters:
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(
                f"x {tuple(x.shape)} needs a weight and bias of shape {tuple(x.shape[-1:])}, "
                f"got {tuple(parameter.shape)}"
            )


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which rows are summed and normalised: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --------------------------------------------------------------------------------------------------------------
# Task 5: both norms as autograd functions that keep one copy of the input
# --------------------------------------------------------------------------------------------------------------


class LayerNormFunction(torch.autograd.Function):
    """LayerNorm with its backward pass by hand. Kept between the passes: x, weight, and mean and rstd of each row.

    Second derivatives are not supported: asking for one is an error, never a wrong number.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """y = (x - μ) · r ∘ w + b with μ = mean(x), r = 1/sqrt(mean((x - μ)²) + eps), in the dtype of x."""
        raise NotImplementedError("task 5: centre, variance, scale, gain and bias; keep x and two numbers per row")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias (None where there is none) and None for eps.

        ``grad`` (..., d) in the dtype of y. With x̂ = (x - μ)·r: dw = Σ_rows grad ∘ x̂ and db = Σ_rows grad. dx takes a
        derivation, since μ and r depend on x too; the brief begins it. Each gradient has the dtype of its tensor.
        """
        raise NotImplementedError("task 5: the gradient of x through μ and r as well; the sums over the rows")


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm with its backward pass by hand. Kept between the passes: x, weight, and 1/rms of each row."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """y = x · r ∘ w with r = 1/sqrt(mean(x²) + eps), in the dtype of x."""
        raise NotImplementedError("task 5: mean square, scale, gain; keep x and one number per row")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and weight (None where there is none) and None for eps.

        With x̂ = x·r: dw = Σ_rows grad ∘ x̂; dx as for LayerNorm, but only r depends on x.
        """
        raise NotImplementedError("task 5: the gradient of x through r as well; the sum over the rows")


def sum_rows(t: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Given: sum over the dimensions ``rows``; t itself where there are none (``sum(())`` would sum everything)."""
    return t.sum(rows) if rows else t


# --------------------------------------------------------------------------------------------------------------
# Task 1: the two functions
# --------------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) · weight + bias`` over the last dimension.

    Args:
        x: (..., d), any float dtype, any strides.
        weight: gain (d,) or None for 1.
        bias: (d,) or None for 0. Weight and bias may have another float dtype than x.
        eps: added to the biased variance, under the root.

    Returns:
        (..., d) in the dtype of x. Differentiable once in x, weight and bias. A constant row gives the bias.

    Raises:
        ValueError: d is 0; or weight or bias is not (d,) (the shapes of x and of it are named).

    Source: Ba, Kiros & Hinton 2016.

    Task 1 is done with ordinary tensor operations, and autograd finds the gradients. Task 5 then sends the call
    through :class:`LayerNormFunction`.
    """
    check_affine(x, weight, bias)
    raise NotImplementedError("task 1: centre each row, divide by its standard deviation, apply gain and bias")


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension; nothing is centred.

    Args, returns and raises as :func:`layer_norm`; there is no bias. A row of zeros gives zeros.

    Source: Zhang & Sennrich 2019.
    """
    check_affine(x, weight)
    raise NotImplementedError("task 1: divide each row by its root mean square, apply the gain")


# --------------------------------------------------------------------------------------------------------------
# Task 2: layers, and where they stand in a block
# --------------------------------------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """:func:`layer_norm` with parameters ``weight`` (d,), ones at first, and ``bias`` (d,), zeros at first.

    ``affine=False`` has neither (both attributes are None). ``eps`` is an attribute.
    """

    def __init__(self, d: int, eps: float = 1e-5, *, affine: bool = True) -> None:
        super().__init__()
        raise NotImplementedError("task 2: eps, weight and bias")

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        raise NotImplementedError("task 2: call layer_norm")


class RMSNorm(nn.Module):
    """:func:`rms_norm` with the parameter ``weight`` (d,), ones at first; None with ``affine=False``."""

    def __init__(self, d: int, eps: float = 1e-6, *, affine: bool = True) -> None:
        super().__init__()
        raise NotImplementedError("task 2: eps and weight")

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        raise NotImplementedError("task 2: call rms_norm")


def make_norm(kind: Kind, d: int) -> nn.Module:
    """Given: a :class:`LayerNorm`, an :class:`RMSNorm` (default eps) or ``nn.Identity`` for "none".

    Raises ``ValueError`` naming the three kinds for any other.
    """
    if kind not in ("layernorm", "rmsnorm", "none"):
        raise ValueError(f"unknown kind {kind!r}: one of 'layernorm', 'rmsnorm', 'none'")
    return {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "none": nn.Identity}[kind](*(() if kind == "none" else (d,)))


def sublayer(x: Tensor, f: Callable[[Tensor], Tensor], norm: nn.Module, placement: Placement) -> Tensor:
    """One residual step around the branch f: "pre" is ``x + f(norm(x))``, "post" is ``norm(x + f(x))``.

    Raises ``ValueError`` naming both placements for any other.

    Source: "post" Vaswani et al. 2017; "pre" compared with it in Xiong et al. 2020.
    """
    raise NotImplementedError("task 2: the two placements")


# --------------------------------------------------------------------------------------------------------------
# Given: a tiny language model, its data and its training
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


# --------------------------------------------------------------------------------------------------------------
# Task 3: what a norm does to a vector, and to the residual stream
# --------------------------------------------------------------------------------------------------------------


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


def measure_invariances(norm: nn.Module, x: Tensor, *, shift: float = 3.0, scale: float = 7.0) -> Invariances:
    """Which changes of the input a norm does not see.

    Args:
        norm: a layer over the last dimension, with its parameters as they are; it is not changed (measure a float64
        copy). x: (..., d), any float dtype.
        shift: number added to every feature.
        scale: number that every feature is multiplied by.
    """
    raise NotImplementedError("task 3: compare outputs, then the rank of the Jacobian")


def residual_rms_profile(model: TinyLM, ids: Tensor) -> list[float]:
    """Root mean square of the residual stream (over everything in it), after the embedding and after every block.

    Returns ``len(model.blocks) + 1`` numbers. Each block is run once, on the whole batch.
    """
    raise NotImplementedError("task 3: follow the stream through the blocks")


# --------------------------------------------------------------------------------------------------------------
# Task 4: the experiment
# --------------------------------------------------------------------------------------------------------------


def norm_experiment(
    kinds: Sequence[str],
    placements: Sequence[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    *,
    train_fn: TrainFn = train_tiny_lm,
) -> list[NormRun]:
    """Train every cell of a grid once: ``train_fn(kind, placement, lr, seed)``.

    Runs come in the order of nested loops: kinds outermost, then placements, lrs, seeds. A model without norms has no
    place to put them: ("none", "post") is skipped, ("none", "pre") is run.
    """
    raise NotImplementedError("task 4: the grid, without (\"none\", \"post\")")


def lr_tolerance(runs: Sequence[NormRun], threshold: float) -> dict[tuple[str, str], float | None]:
    """The largest learning rate a (kind, placement) can bear, for each pair that occurs in ``runs``.

    It is the largest lr of the pair's own runs such that at it *and at every smaller one* all seeds have
    ``val_loss < threshold`` (which NaN never has); None where already the smallest fails. ``diverged`` is not looked
    at.
    """
    raise NotImplementedError("task 4: climb the learning rates of each pair until one fails")


def new_figure() -> tuple[Figure, object]:
    """Given: an Agg figure outside pyplot (nothing to close) with one axes."""
    figure = Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def plot_lr_sweep(runs: Sequence[NormRun], path: str | Path) -> Figure:
    """Validation loss against learning rate, a line for each (kind, placement), written to ``path`` as PNG.

    The x axis is logarithmic. A line is labelled ``kind/placement``, in a legend; its points are the learning rates of
    the pair in ascending order and the mean of ``val_loss`` over seeds. Where a seed ``diverged`` (or has a loss that
    is not finite) there is no mean: the line's point is at the upper limit of the y axis instead, marked with an "x"
    (drawn by ``scatter``, or as an unlabelled line with marker "x"). Fix the y limits so that all finite means lie
    below the upper one; where nothing is finite any limits will do.

    Returns the figure (one axes).
    """
    raise NotImplementedError("task 4: means, top of the axis, lines, crosses")


# --------------------------------------------------------------------------------------------------------------
# Task 6: a LayerNorm model is an RMSNorm model in disguise
# --------------------------------------------------------------------------------------------------------------


def fold_norm(norm: LayerNorm | RMSNorm, linear: nn.Linear) -> tuple[nn.Module, nn.Linear]:
    """Move the gain and bias of a norm into the linear layer that reads its output.

    Returns a norm of the same class and eps without parameters (``affine=False``), and a new linear layer, such that
    ``new_linear(new_norm(x)) == linear(norm(x))``. The new linear has a bias where ``linear`` or ``norm`` has one.
    Dtypes are those of ``linear``. Both arguments stay as they are; a norm without parameters is accepted.

    Source: Elhage et al. 2021 (appendix on layer normalisation); Ashkboos et al. 2024.
    """
    raise NotImplementedError("task 6: W diag(gain), b + W·bias")


def center_writer(linear: nn.Linear) -> nn.Linear:
    """A new linear layer whose outputs are those of ``linear`` minus their mean over the features.

    If everything that writes to a residual stream is centred, the stream has mean 0, and LayerNorm and RMSNorm of it
    are the same. ``linear`` stays as it is; its bias, if there is one, is centred too.
    """
    raise NotImplementedError("task 6: subtract the mean row of W and the mean of b")

# --------------------------------------------------------------------------------------------------------------
# Given: the same on a real model
# --------------------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------------------
# Task 7: what a norm costs
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NormCost:
    """What one norm over d features costs."""

    #: trainable numbers
    params: int
    #: bytes kept per row between forward and backward, by an implementation as in task 5 (statistics in float32)
    saved_bytes_per_token: int
    #: sums over a row in one forward pass
    row_reductions: int


def norm_cost(kind: Kind, d: int, itemsize: int) -> NormCost:
    """Cost of a norm with gain (and bias) over d features of ``itemsize`` bytes each; "none" costs nothing.

    Raises ``ValueError`` for an unknown kind.
    """
    raise NotImplementedError("task 7: parameters, x and its statistics, means")
