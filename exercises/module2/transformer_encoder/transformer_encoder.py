"""A transformer encoder: positions, feed-forward networks, layers, and execution without padding.

Conventions of this module, used by every function below:

* Masks are boolean and ``True`` means "this is a real token" (``nn.TransformerEncoderLayer`` and
  ``nn.MultiheadAttention`` mean the opposite). Padding may stand anywhere in a row, not only at its end.
* Positions are slot numbers: the token in column ``t`` has position ``t``, whatever padding stands before it.
* Padding is never read: what it holds (NaN included) changes no real token, in value or in gradient.
* Every tensor you create lives on the device of the inputs and has their dtype.

Not to be called here, because they are what you are building: ``nn.TransformerEncoder``,
``nn.TransformerEncoderLayer``, ``nn.MultiheadAttention``, ``F.multi_head_attention_forward`` and the models of
transformers. ``F.scaled_dot_product_attention`` (boolean masks there mean the same as here), ``nn.Linear``,
``nn.LayerNorm``, ``nn.Embedding``, ``nn.Dropout`` and the activations of ``F`` are yours to use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# --------------------------------------------------------------------------------------------------------------
# Given: configuration and validation
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and variants of an encoder. No layers at all (n_layers 0) is an encoder, too.

    Raises:
        ValueError: d_model is not divisible by n_heads.
    """

    d_model: int
    n_heads: int
    d_ff: int
    n_layers: int
    #: None: the encoder takes vectors (B, T, d_model) instead of token ids.
    vocab_size: int | None = None
    #: Rows of the table of learned positions; the other kinds know no limit.
    max_len: int = 512
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    activation: Literal["relu", "gelu", "swiglu"] = "gelu"
    norm: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    #: Multiply token embeddings (not vectors that are passed in) by sqrt(d_model).
    scale_embedding: bool = False
    #: A LayerNorm after the positions were added, as in BERT.
    embed_norm: bool = False
    #: Run the layers on real tokens only (task 6).
    unpad: bool = True

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads != 0:
            raise ValueError(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}")


def check_mask(padding_mask: Tensor | None) -> None:
    """Raise ``TypeError`` if a mask is given that is not boolean."""
    if padding_mask is not None and padding_mask.dtype != torch.bool:
        raise TypeError(f"padding_mask must be boolean, got {padding_mask.dtype}")


# --------------------------------------------------------------------------------------------------------------
# Task 1: positions
# --------------------------------------------------------------------------------------------------------------


def sinusoidal_positions(
    length: int, d_model: int, *, base: float = 10000.0, offset: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sines and cosines of geometrically spaced frequencies, interleaved: one (sin, cos) pair for each frequency.

        PE[p, 2i] = sin(p · base^(-2i/d)),   PE[p, 2i+1] = cos(p · base^(-2i/d)),   p = offset .. offset + length - 1

    Args:
        length: number of positions, 0 included.
        d_model: d, even.
        base: ratio between the fastest and (nearly) the slowest frequency.
        offset: the first position.
        dtype: of the result; angles are computed in float64 whatever it is.

    Returns:
        (length, d_model).

    Raises:
        ValueError: d_model is odd or not positive ("even").

    Source: Vaswani et al. 2017, section 3.5.
    """
    if d_model <= 0 or d_model % 2 != 0:
        raise ValueError(f"d_model must be even and positive, got {d_model}")
    raise NotImplementedError("task 1: angles p · base^(-2i/d) in float64, sine and cosine interleaved")


class PositionalEncoding(nn.Module):
    """Adds positions 0 .. T-1 to x. Learned positions are the parameter ``weight`` (max_len, d_model)."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.kind = cfg.positions
        if cfg.positions == "learned":
            self.weight = nn.Parameter(0.02 * torch.randn(cfg.max_len, cfg.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d_model) -> x plus its positions, same shape and dtype; x itself for positions "none".

        Raises:
            ValueError: learned positions and T > max_len ("max_len"). Sinusoidal positions know no limit.
        """
        raise NotImplementedError("task 1: add the table of the configured kind")


# --------------------------------------------------------------------------------------------------------------
# Task 2: the feed-forward network
# --------------------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Two linear maps around a nonlinearity, the same for every token.

        relu, gelu:   down(drop(act(up(x))))            up, down with biases
        swiglu:       down(drop(silu(gate(x)) ∘ up(x)))  up, gate, down without biases

    Parameters ``up`` (d_ff, d_model), ``gate`` (d_ff, d_model; swiglu only), ``down`` (d_model, d_ff), each an
    ``nn.Linear``. GELU is the exact form, x · Φ(x) with the error function.

    Source: Vaswani et al. 2017, section 3.3; Hendrycks & Gimpel 2016 (GELU); Shazeer 2020 (SwiGLU).
    """

    def __init__(self, d_model: int, d_ff: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        raise NotImplementedError("task 2: the two or three linear maps")

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_model) -> (..., d_model)."""
        raise NotImplementedError("task 2: up, nonlinearity, dropout, down")


# --------------------------------------------------------------------------------------------------------------
# Tasks 3, 6 and 8: the layer
# --------------------------------------------------------------------------------------------------------------


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each in a residual step with a LayerNorm.

        post (2017):  x = norm1(x + drop(attn(x)));    x = norm2(x + drop(ff(x)))
        pre:          x = x + drop(attn(norm1(x)));    x = x + drop(ff(norm2(x)))

    Parameters: ``qkv`` (3d, d), its rows being those of q, k and v one after the other; ``out`` (d, d); ``ff``;
    ``norm1``, ``norm2``. Attention has H = n_heads heads of d/H features: head h reads features
    h·d/H .. (h+1)·d/H - 1 of each of q, k and v, and its scores are scaled by 1/sqrt(d/H). The dropout of the residual
    steps is ``dropout``; attention weights are not dropped.
    """

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        d = cfg.d_model
        self.n_heads = cfg.n_heads
        self.pre_norm = cfg.norm == "pre"
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.ff = FeedForward(d, cfg.d_ff, cfg.activation, cfg.dropout)
        self.norm1 = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.norm2 = nn.LayerNorm(d, eps=cfg.norm_eps)
        self.dropout = nn.Dropout(cfg.dropout)

    def heads(self, qkv: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Multi-head attention between the two linear maps.

        Args:
            qkv: q, k and v side by side, (B, T, 3d), not yet cut into heads.
            padding_mask: boolean (B, T) or None; keys of padding are hidden from every query.

        Returns:
            The heads' outputs side by side, (B, T, d). A row of padding alone gives zeros, and zero gradients.
        """
        raise NotImplementedError("task 3: cut into heads, attend to the real keys, put the heads side by side again")

    def residual_steps(self, x: Tensor, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """The two residual steps around ``attention`` (a map of x's shape to itself) and ``self.ff``; x (..., d)."""
        raise NotImplementedError("task 3: pre-norm or post-norm")

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """x (B, T, d) and a boolean mask (B, T), True = real token -> (B, T, d).

        What stands at padding in the result is finite (for finite x) and nobody's concern.

        Raises:
            TypeError: the mask is not boolean.
        """
        check_mask(padding_mask)
        return self.residual_steps(x, lambda y: self.out(self.heads(self.qkv(y), padding_mask)))

    def forward_packed(self, values: Tensor, lengths: Sequence[int]) -> Tensor:
        """The same layer on sequences that stand one after the other without padding.

        Args:
            values: real tokens of all sequences, (N, d).
            lengths: tokens of each sequence, each at least 1, N in all.

        Returns:
            (N, d). Every sequence attends to itself only.
        """

        raise NotImplementedError("task 6: linear maps on all tokens at once, attention sequence by sequence")


# --------------------------------------------------------------------------------------------------------------
# Task 5: packing
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedBatch:
    """The real tokens of a padded batch, row by row.

    Attributes:
        values: (N, d), N = number of real tokens.
        lengths: real tokens of each row that has any, in order; they sum to N.
        index: flat slot ``b·T + t`` of each token, (N,) int64, ascending.
    """

    values: Tensor
    lengths: tuple[int, ...]
    index: Tensor


def pack(x: Tensor, padding_mask: Tensor) -> PackedBatch:
    """Gather the real tokens of x (B, T, d) under a boolean mask (B, T), True = real token.

    Raises:
        TypeError: the mask is not boolean.
    """
    check_mask(padding_mask)
    raise NotImplementedError("task 5: flat slots of the real tokens, their vectors, the rows' lengths")


def unpack(packed: PackedBatch, batch: int, length: int) -> Tensor:
    """Put the tokens back into their slots: (batch, length, d), zeros at padding, dtype of the values."""
    raise NotImplementedError("task 5: scatter into zeros")


# --------------------------------------------------------------------------------------------------------------
# Tasks 4 and 6: the encoder
# --------------------------------------------------------------------------------------------------------------


class TransformerEncoder(nn.Module):
    """Embedding, positions, layers.

    Parameters: ``embed`` (an ``nn.Embedding``, where the configuration has a vocabulary), ``pos`` (``pos.weight`` for
    learned positions), ``embed_norm`` (where configured), ``layers.0``, ``layers.1``, ..., and ``final_norm``
    (pre-norm only: the stream of a pre-norm encoder leaves the last layer unnormalised).
    """

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = None if cfg.vocab_size is None else nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.pos = PositionalEncoding(cfg)
        self.embed_norm = nn.LayerNorm(cfg.d_model, eps=cfg.norm_eps) if cfg.embed_norm else None
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList(EncoderLayer(cfg) for _ in range(cfg.n_layers))
        self.final_norm = nn.LayerNorm(cfg.d_model, eps=cfg.norm_eps) if cfg.norm == "pre" else None

    def embed_inputs(self, inputs: Tensor, padding_mask: Tensor | None) -> Tensor:
        """What enters the first layer, (B, T, d).

        In this order: token embedding (ids only), times sqrt(d) if ``scale_embedding`` (ids only), plus position,
        ``embed_norm``, dropout. Slots of padding hold zeros afterwards, whatever ``inputs`` held there: vectors may be
        NaN or infinite at padding, ids are valid everywhere.

        Raises:
            ValueError: ids are given and the configuration has no vocabulary.
        """
        raise NotImplementedError("task 4: embedding, scale, positions, norm, dropout, zeros at padding")

    def run_padded(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Layers and final norm on all slots, x (B, T, d) -> (B, T, d), zeros at padding."""
        raise NotImplementedError("task 4: layers, final norm, zeros at padding")

    def run_packed(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """Layers and final norm on the real tokens alone, x (B, T, d) -> (B, T, d), zeros at padding."""
        raise NotImplementedError("task 6: pack, layers, final norm, unpack")

    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Encode token ids (B, T) int64 or vectors (B, T, d) -> (B, T, d), exact zeros at padding.

        With ``unpad`` the layers run on real tokens only where there is any padding; without padding (no mask, or one
        that is True everywhere) the batched path is taken. Both paths give the same result. A row of padding alone
        gives zeros.

        Raises:
            TypeError: the mask is not boolean.
            ValueError: ids without a vocabulary; T > max_len with learned positions ("max_len").
        """
        check_mask(padding_mask)
        x = self.embed_inputs(inputs, padding_mask)
        if self.cfg.unpad and padding_mask is not None and not bool(padding_mask.all()):
            return self.run_packed(x, padding_mask)
        return self.run_padded(x, padding_mask)


def zero_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """x (B, T, d) with zeros wherever the mask (B, T) is False."""
    return x if padding_mask is None else x.masked_fill(~padding_mask[..., None], 0.0)


# --------------------------------------------------------------------------------------------------------------
# Task 7: where the compute goes
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlopBreakdown:
    """FLOPs of matrix products (a product (m, k) x (k, n) is 2mkn) by where they are spent."""

    projections: int
    scores: int
    feed_forward: int
    total: int


def encoder_flops(cfg: EncoderConfig, lengths: Sequence[int]) -> FlopBreakdown:
    """FLOPs of all matrix products of an unpadded forward pass over sequences of these lengths (0 included).

    ``projections`` are ``qkv`` and ``out``, ``scores`` the products q kᵀ and weights times v, ``feed_forward`` the
    maps of ``ff``. Embeddings are look-ups and cost nothing. A formula in exact integers: no tensor is made.
    """
    raise NotImplementedError("task 7: a closed form for each part")


# --------------------------------------------------------------------------------------------------------------
# Given: weights of others
# --------------------------------------------------------------------------------------------------------------


def copy_torch_layer(dst: EncoderLayer, src: nn.TransformerEncoderLayer) -> None:
    """Copy the weights of PyTorch's layer (relu or gelu, biases, the same sizes) into yours."""
    attention = src.self_attn
    pairs = [
        (dst.qkv.weight, attention.in_proj_weight),
        (dst.qkv.bias, attention.in_proj_bias),
        (dst.out.weight, attention.out_proj.weight),
        (dst.out.bias, attention.out_proj.bias),
        (dst.ff.up.weight, src.linear1.weight),
        (dst.ff.up.bias, src.linear1.bias),
        (dst.ff.down.weight, src.linear2.weight),
        (dst.ff.down.bias, src.linear2.bias),
        (dst.norm1.weight, src.norm1.weight),
        (dst.norm1.bias, src.norm1.bias),
        (dst.norm2.weight, src.norm2.weight),
        (dst.norm2.bias, src.norm2.bias),
    ]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)


#: BERT's names of the parts of one layer -> ours. Its query, key and value are three matrices.
BERT_LAYER = {
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "ff.up",
    "output.dense": "ff.down",
    "output.LayerNorm": "norm2",
}


def load_bert(encoder: TransformerEncoder, directory: str | Path) -> TransformerEncoder:
    """Load a BERT model (``config.json``, ``model.safetensors``) into a post-norm encoder with learned positions.

    Token types are not modelled: the vector of type 0 is added to every position. The pooler and the heads for other
    tasks are left out.

    Returns:
        The encoder.

    Raises:
        ValueError: the encoder's configuration differs from the model's (both are named).
    """
    from safetensors.torch import load_file

    config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
    cfg = encoder.cfg
    wanted = {
        "d_model": config["hidden_size"],
        "n_heads": config["num_attention_heads"],
        "d_ff": config["intermediate_size"],
        "n_layers": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "max_len": config["max_position_embeddings"],
        "positions": "learned",
        "activation": config["hidden_act"],
        "norm": "post",
        "norm_eps": config["layer_norm_eps"],
        "scale_embedding": False,
        "embed_norm": True,
    }
    different = {name: (getattr(cfg, name), value) for name, value in wanted.items() if getattr(cfg, name) != value}
    if different:
        raise ValueError(f"the encoder's configuration is not the model's (ours, theirs): {different}")

    # Checkpoints of models with a head carry the prefix "bert.", the oldest ones TensorFlow's names of the norms.
    theirs = {
        name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): t
        for name, t in load_file(Path(directory) / "model.safetensors").items()
    }
    positions, types = (theirs[f"embeddings.{name}_embeddings.weight"] for name in ("position", "token_type"))
    ours = {"embed.weight": theirs["embeddings.word_embeddings.weight"], "pos.weight": positions + types[0]}
    for kind in ("weight", "bias"):
        ours[f"embed_norm.{kind}"] = theirs[f"embeddings.LayerNorm.{kind}"]
        for i in range(cfg.n_layers):
            layer = f"encoder.layer.{i}"
            three = [theirs[f"{layer}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            ours[f"layers.{i}.qkv.{kind}"] = torch.cat(three)
            for name, mine in BERT_LAYER.items():
                ours[f"layers.{i}.{mine}.{kind}"] = theirs[f"{layer}.{name}.{kind}"]
    encoder.load_state_dict(ours)
    return encoder
