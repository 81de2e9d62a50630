"""Residual connections: four wirings of a block, and the instruments that show what a skip does.

Conventions, used by every function below:

* A *sublayer* is one wrapped branch. A model of ``n_layers`` blocks has ``2 · n_layers`` sublayers: attention, MLP,
  attention, MLP, ... A *block* is one such pair.
* The *stream* is what runs from sublayer to sublayer, (B, T, d).
* Nothing here leaves a trace: models, their ``.grad`` fields and the global random state are left as they were found.
"""

from __future__ import annotations

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
from torch.nn import functional as F

Kind = Literal["none", "plain", "scaled", "rezero"]
KINDS = ("none", "plain", "scaled", "rezero")


def check_kind(kind: str) -> None:
    """Given: raise ``ValueError`` listing the four kinds for any other."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(map(repr, KINDS))}")


# --------------------------------------------------------------------------------------------------------------
# Task 1: four wirings
# --------------------------------------------------------------------------------------------------------------


def branch_scale(kind: Kind, n_sublayers: int) -> float:
    """What a branch is multiplied by: "none" and "plain" 1, "scaled" ``n_sublayers ** -0.5``, "rezero" 0 (at the
    start).

    Raises ``ValueError`` for an unknown kind.
    """
    check_kind(kind)
    raise NotImplementedError("task 1: the four factors")


class ResidualWrapper(nn.Module):
    """One sublayer: a branch f and the way it is tied to the stream.

        none      f(x)                          plain     x + f(x)
        scaled    x + f(x) / sqrt(n_sublayers)  rezero    x + gate · f(x)

    Attributes: ``branch`` (the module f), ``kind``, ``scale`` (:func:`branch_scale`) and ``gate``: for "rezero" an
    ``nn.Parameter`` of shape () that starts at 0, for the others None.

    Raises ``ValueError`` for an unknown kind.

    Source: He et al. 2015 (plain); Bachlechner et al. 2020 (rezero).
    """

    def __init__(self, branch: nn.Module, kind: Kind, n_sublayers: int) -> None:
        super().__init__()
        check_kind(kind)
        raise NotImplementedError("task 1: branch, kind, scale and gate")

    def contribution(self, x: Tensor) -> Tensor:
        """What this sublayer adds to x (for "none": all of its output). Runs the branch once.

        Raises ``ValueError``, with a message that begins with "shape", if the branch returns another shape than x has,
        whatever the kind.
        """
        raise NotImplementedError("task 1: the branch, times its scale or gate")

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this sublayer, in the shape of x. Raises as :meth:`contribution`."""
        raise NotImplementedError("task 1: with or without the skip")


# --------------------------------------------------------------------------------------------------------------
# Given: a tiny language model of your wrappers, and its data
# --------------------------------------------------------------------------------------------------------------

VOCABULARY, CONTEXT = 16, 16


class RMSNorm(nn.Module):
    """Given: ``x / sqrt(mean(x²) + eps) · weight`` over the features."""

    def __init__(self, d: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def scale(self, x: Tensor) -> Tensor:
        """``1 / sqrt(mean(x²) + eps)``, (..., 1)."""
        return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x) * self.weight


class CausalAttention(nn.Module):
    """Given: multi-head causal self-attention without biases."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_proj = nn.Linear(d, 3 * d, bias=False)
        self.out_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv_proj(x).chunk(3, dim=-1))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TinyLM(nn.Module):
    """Given: ids (B, T), T <= 16, to logits (B, T, 16).

    ``embed(ids)`` gives the first stream; ``sublayers`` are ``2 · n_layers`` of your :class:`ResidualWrapper`,
    attention and MLP in turns, each branch with a norm of its own in front (``norm="rmsnorm"``) or none
    (``norm="none"``); ``final_norm`` (an :class:`RMSNorm`, or ``nn.Identity`` with ``norm="none"``) and ``unembed`` (a
    linear layer without bias, weight (16, d)) make logits of the last stream. There are no biases anywhere.
    """

    def __init__(
        self, kind: Kind, n_layers: int, norm: Literal["rmsnorm", "none"] = "rmsnorm", *, d: int = 32, n_heads: int = 2
    ) -> None:
        super().__init__()

        def make_norm() -> nn.Module:
            return RMSNorm(d) if norm == "rmsnorm" else nn.Identity()

        def wrap(*branch: nn.Module) -> ResidualWrapper:
            return ResidualWrapper(nn.Sequential(make_norm(), *branch), kind, 2 * n_layers)

        self.token = nn.Embedding(VOCABULARY, d)
        self.position = nn.Embedding(CONTEXT, d)
        sublayers = []
        for _ in range(n_layers):
            sublayers.append(wrap(CausalAttention(d, n_heads)))
            sublayers.append(wrap(nn.Linear(d, 4 * d, bias=False), nn.GELU(), nn.Linear(4 * d, d, bias=False)))
        self.sublayers = nn.ModuleList(sublayers)
        self.final_norm = make_norm()
        self.unembed = nn.Linear(d, VOCABULARY, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.position.weight[: ids.shape[1]]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for sublayer in self.sublayers:
            x = sublayer(x)
        return self.unembed(self.final_norm(x))


class AttentionOnly(nn.Module):
    """Given: one layer of single-head attention over all positions, without or with a skip: ``A x W`` or ``x + A x W``.

    A is a softmax of ``x Wq (x Wk)ᵀ / sqrt(d)``; the weights are normal with variance 1/d, drawn from ``seed``.
    """

    def __init__(self, d: int, skip: bool, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.wq, self.wk, self.wv = (torch.randn(d, d, generator=generator, dtype=dtype) / d**0.5 for _ in range(3))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        weights = ((x @ self.wq) @ (x @ self.wk).mT / x.shape[-1] ** 0.5).softmax(dim=-1)
        y = weights @ (x @ self.wv)
        return x + y if self.skip else y


def cross_entropy(model: TinyLM, ids: Tensor, targets: Tensor) -> Tensor:
    """Given: mean loss in nats of ``model(ids)`` against the targets (B, T)."""
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


@functools.cache
def markov_data(seed: int = 3) -> tuple[Tensor, Tensor]:
    """Given: sequences of 17 symbols of an order-1 Markov chain over 16 symbols, int64: 1 024 to train on, 256 to
    validate.

    The data of 2.4: each row of the transition matrix is a draw from Dirichlet(0.15). A model that knows only how often
    symbols occur reaches about 2.6 nats (:func:`unigram_entropy`), one that knows the chain about 1.45.
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


def unigram_entropy() -> float:
    """Given: the loss in nats, on the validation targets, of a model that knows how often each of them occurs."""
    share = torch.bincount(markov_data()[1][:, 1:].flatten(), minlength=VOCABULARY).double()
    share = share[share > 0] / share.sum()
    return -(share * share.log()).sum().item()


# --------------------------------------------------------------------------------------------------------------
# Task 2: how signals grow, and how they collapse
# --------------------------------------------------------------------------------------------------------------


def expected_variance(n_sublayers: int, alpha: float) -> float:
    """Variance of a stream after ``n_sublayers`` steps ``x + alpha · f(x)``, relative to that of the input.

    Each f(x) is independent of x and has its variance.
    """
    raise NotImplementedError("task 2: variances of independent terms add")


def measure_variance(n_sublayers: int, alpha: float, *, d: int = 256, batch: int = 64, seed: int = 0) -> list[float]:
    """The same by experiment, with random linear branches, in float32.

    One ``torch.Generator`` seeded with ``seed`` draws, in this order, ``x = randn(batch, d)`` and then for each step
    ``A = randn(d, d) / sqrt(d)``; the step is ``x = x + alpha · (x @ A)``.

    Returns, for each step, the mean square of x after it divided by the mean square of the x that was drawn.
    """
    raise NotImplementedError("task 2: the normative draws and steps")


def rank_one_distance(x: Tensor) -> Tensor:
    """How far the tokens are from being all the same: ``||x - 1 · mean_t(x)|| / ||x||`` in the Frobenius norm.

    Args:
        x: (..., T, d).

    Returns:
        (...) in [0, 1]: 0 where all T rows are equal, 1 where they sum to 0. All zeros give 0.

    Source: Dong, Cordonnier & Loukas 2021.
    """
    raise NotImplementedError("task 2: subtract the mean over the positions")


def rank_profile(layers: Sequence[nn.Module], x: Tensor) -> list[float]:
    """:func:`rank_one_distance`, averaged over everything but (T, d), after each of the layers, run one after the
    other.

    x: (..., T, d). Returns as many numbers as there are layers; the input itself is not among them.
    """
    raise NotImplementedError("task 2: run the layers and measure")


# --------------------------------------------------------------------------------------------------------------
# Task 3: where the gradient goes
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientProfile:
    """Gradients of the loss, by sublayer."""

    loss: float
    #: norm of the gradient with respect to the stream after each sublayer, over everything in it
    activation: tuple[float, ...]
    #: norm of all parameter gradients of each sublayer, as one vector (0 where it has none)
    parameter: tuple[float, ...]


def gradient_profile(model: TinyLM, ids: Tensor, targets: Tensor) -> GradientProfile:
    """Loss and gradient norms of one batch, from one forward and one backward pass.

    ids, targets: int64 (B, T). The parameters' ``.grad`` fields are left as they were, None or not.
    """
    raise NotImplementedError("task 3: keep the streams, differentiate once for all of them and all parameters")


# --------------------------------------------------------------------------------------------------------------
# Task 4: the depth sweep
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepRow:
    """One trained model."""

    kind: str
    depth: int
    seed: int
    val_loss: float
    #: norms of the gradient of the stream after the first and last sublayer, before training
    init_grad_first: float
    init_grad_last: float
    #: rank_one_distance of the last stream, averaged over the batch, before training
    init_rank: float


#: ``train_fn(kind, depth, seed)``, called with these three positions.
TrainFn = Callable[[str, int, int], SweepRow]


def train_tiny_lm(kind: Kind, depth: int, seed: int, steps: int = 80) -> SweepRow:
    """Given: a :class:`TinyLM` of ``depth`` blocks, measured with your instruments and then trained (Adam, lr 0.01,
    batches of 32). The same arguments give the same row."""
    train, val = markov_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyLM(kind, depth)
        profile = gradient_profile(model, train[:32, :-1], train[:32, 1:])
        rank = rank_profile([nn.Sequential(*model.sublayers)], model.embed(train[:32, :-1]))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            batch = train[torch.randint(len(train), (32,))]
            loss = cross_entropy(model, batch[:, :-1], batch[:, 1:])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        val_loss = cross_entropy(model, val[:, :-1], val[:, 1:]).item()
    return SweepRow(kind, depth, seed, val_loss, profile.activation[0], profile.activation[-1], rank[0])


def depth_sweep(
    kinds: Sequence[str], depths: Sequence[int], seeds: Sequence[int], *, train_fn: TrainFn = train_tiny_lm
) -> list[SweepRow]:
    """``train_fn(kind, depth, seed)`` for every cell, once, in the order of nested loops: kinds outermost, seeds
    innermost."""
    raise NotImplementedError("task 4: the grid")


def trainable_depth(rows: Sequence[SweepRow], threshold: float) -> dict[str, int | None]:
    """To which depth a kind can be trained, for each kind in ``rows``.

    It is the largest depth among the kind's own rows such that at it *and at every smaller one* all seeds have
    ``val_loss < threshold`` (which NaN never has); None where already the smallest fails.
    """
    raise NotImplementedError("task 4: go down until a depth fails")


def new_figure() -> tuple[Figure, object]:
    """Given: an Agg figure outside pyplot (nothing to close) with one axes."""
    figure = Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def plot_depth_sweep(rows: Sequence[SweepRow], path: str | Path) -> Figure:
    """Validation loss against depth, written to ``path`` as PNG.

    One line for each kind, labelled with it: its depths in ascending order, and the mean ``val_loss`` over seeds (a NaN
    among them makes the point NaN, a gap). The x axis is logarithmic to base 2. A horizontal line at
    :func:`unigram_entropy` is labelled ``unigram entropy``. All labels are in a legend. Returns the figure (one axes).
    """
    raise NotImplementedError("task 4: means over seeds, lines, the horizontal line")


# --------------------------------------------------------------------------------------------------------------
# Task 5: a residual network is a sum over paths
# --------------------------------------------------------------------------------------------------------------


def path_contributions(mats: Sequence[Tensor], x: Tensor) -> Tensor:
    """Split ``y = (I + A_{L-1}) ··· (I + A_1)(I + A_0) x`` by how many branches a path runs through.

    Multiplied out, the product is a sum over the 2^L choices of skip or branch. Entry k of the result is the sum of all
    those that take exactly k branches, in their order: A_0 acts first.

    Args:
        mats: L matrices (d, d), any L >= 0.
        x: (N, d), a vector in each row; a matrix acts on each as on a column.

    Returns:
        (L + 1, N, d); the sum over the first dimension is y. No matrices give ``x[None]``. At most L(L + 1)/2 products
        of a matrix with an (N, d) array are needed.

    Source: Veit, Wilber & Belongie 2016.
    """
    raise NotImplementedError("task 5: dynamic programming over the layers")


# --------------------------------------------------------------------------------------------------------------
# Task 6: who wrote what into the stream
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decomposition:
    """The last stream as a sum."""

    #: "embed", "attn0", "mlp0", "attn1", ...
    names: tuple[str, ...]
    #: (1 + n_sublayers, B, T, d): the embedding, and what each sublayer added
    components: Tensor


def decompose_residual(model: TinyLM, ids: Tensor) -> Decomposition:
    """The embedding and the contribution of every sublayer; they sum to the stream that ``final_norm`` reads.

    Each branch is run once. No gradients are recorded.

    Raises ``ValueError("no residual stream")`` for a model whose sublayers are of the kind "none".
    """
    raise NotImplementedError("task 6: collect the contributions on the way")


def direct_logit_attribution(model: TinyLM, dec: Decomposition, token_ids: Tensor) -> Tensor:
    """What each component adds to the logit of a given token at each position.

    The final norm is not linear, but at a given stream it is a product with a number per position: that number is
    computed from the *whole* stream (the sum of all components) and held fixed. Components of a sum then have logits
    that sum to the model's (``TinyLM`` has no biases). A model with ``norm="none"`` has no such factor.

    Args:
        dec: of this model.
        token_ids: int64 (B, T), the token asked about at each position.

    Returns:
        (components, B, T); the sum over the first dimension is the logit of that token.

    Source: Elhage et al. 2021.
    """
    raise NotImplementedError("task 6: frozen scale, gain, the token's row of the unembedding")


# --------------------------------------------------------------------------------------------------------------
# Task 7: lesions
# --------------------------------------------------------------------------------------------------------------


def lesion_study(model: TinyLM, ids: Tensor, targets: Tensor) -> list[float]:
    """How much the loss grows when block l is taken out, for every block l.

    Block l, that is sublayers 2l and 2l + 1, is replaced by the identity (whatever the kind); one block at a time. What
    comes before it need not be computed again: at most L(L + 1)/2 blocks are run, 2 sublayers each. The model is left
    as it was.

    Source: Veit, Wilber & Belongie 2016.
    """
    raise NotImplementedError("task 7: keep the streams before each block, continue each without it")

# --------------------------------------------------------------------------------------------------------------
# Given: a real model in the same shape
# --------------------------------------------------------------------------------------------------------------


class BiasedAttention(nn.Module):
    """Given: GPT-2's causal self-attention, with biases."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class GPT2(nn.Module):
    """Given: a GPT-2 from a local directory (``config.json``, ``model.safetensors``), with the attributes of TinyLM.

    ``embed``, ``sublayers`` (``2 · n_layer`` plain wrappers of yours, attention and MLP in turns), ``final_norm`` (a
    LayerNorm), ``unembed``. So :func:`lesion_study`, :func:`decompose_residual` and :func:`gradient_profile` take it
    as it is. (:func:`direct_logit_attribution` does not: a LayerNorm with a bias is no mere factor.) Reads the files
    without transformers.

    Raises ``ValueError`` for a model with another activation or other scores than GPT-2's.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
        if config.get("activation_function") != "gelu_new" or config.get("scale_attn_by_inverse_layer_idx"):
            raise ValueError(f"not a plain GPT-2: {config.get('activation_function')}")
        d, n_layers, eps = config["n_embd"], config["n_layer"], config["layer_norm_epsilon"]
        d_ff = config.get("n_inner") or 4 * d
        self.token = nn.Embedding(config["vocab_size"], d)
        self.position = nn.Embedding(config["n_positions"], d)
        sublayers = []
        for _ in range(n_layers):
            attention = [BiasedAttention(d, config["n_head"])]
            mlp = [nn.Linear(d, d_ff), nn.GELU(approximate="tanh"), nn.Linear(d_ff, d)]
            for branch in (attention, mlp):
                sublayers.append(ResidualWrapper(nn.Sequential(nn.LayerNorm(d, eps), *branch), "plain", 2 * n_layers))
        self.sublayers = nn.ModuleList(sublayers)
        self.final_norm = nn.LayerNorm(d, eps)
        self.unembed = nn.Linear(d, config["vocab_size"], bias=False)
        self._read(Path(directory) / "model.safetensors", n_layers)

    def _read(self, file: Path, n_layers: int) -> None:
        from safetensors.torch import load_file

        # The file of the released model has no prefix, and no unembedding: it is the embedding.
        theirs = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
        parts = {"ln_f": self.final_norm}
        for i in range(n_layers):
            attention, mlp = (sublayer.branch for sublayer in self.sublayers[2 * i : 2 * i + 2])
            parts |= {f"h.{i}.ln_1": attention[0], f"h.{i}.ln_2": mlp[0]}
            parts |= {f"h.{i}.attn.c_attn": attention[1].qkv, f"h.{i}.attn.c_proj": attention[1].out}
            parts |= {f"h.{i}.mlp.c_fc": mlp[1], f"h.{i}.mlp.c_proj": mlp[3]}
        with torch.no_grad():
            self.token.weight.copy_(theirs["wte.weight"])
            self.position.weight.copy_(theirs["wpe.weight"])
            self.unembed.weight.copy_(theirs.get("lm_head.weight", theirs["wte.weight"]))
            for name, part in parts.items():
                # GPT-2 keeps its matrices as (in, out), nn.Linear as (out, in); gains and biases have one dimension.
                weight = theirs[f"{name}.weight"]
                part.weight.copy_(weight.T if weight.dim() == 2 else weight)
                part.bias.copy_(theirs[f"{name}.bias"])

    def embed(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.position.weight[: ids.shape[1]]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for sublayer in self.sublayers:
            x = sublayer(x)
        return self.unembed(self.final_norm(x))
