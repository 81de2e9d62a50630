"""Attention written out in blocks of queries, masks as additive biases, sequences of one length run together."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class EncoderConfig:
    d_model: int
    n_heads: int
    d_ff: int
    n_layers: int
    vocab_size: int | None = None
    max_len: int = 512
    positions: str = "sinusoidal"
    activation: str = "gelu"
    norm: str = "pre"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    scale_embedding: bool = False
    embed_norm: bool = False
    unpad: bool = True


def require_bool(mask):
    if mask is not None and mask.dtype is not torch.bool:
        raise TypeError("the padding mask must be a boolean tensor")


def sinusoidal_positions(length, d_model, *, base=10000.0, offset=0, dtype=torch.float32):
    if d_model < 2 or d_model & 1:
        raise ValueError("d_model has to be even")
    table = np.empty((length, d_model))
    log_base = math.log(base)
    for i in range(d_model // 2):
        angles = np.arange(offset, offset + length) * math.exp(-2 * i / d_model * log_base)
        table[:, 2 * i], table[:, 2 * i + 1] = np.sin(angles), np.cos(angles)
    return torch.tensor(table).to(dtype)


class PositionalEncoding(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        if cfg.positions == "learned":
            self.weight = nn.Parameter(torch.zeros(cfg.max_len, cfg.d_model).normal_(std=0.02))

    def forward(self, x):
        t = x.size(1)
        match self.cfg.positions:
            case "learned":
                if t > self.cfg.max_len:
                    raise ValueError(f"{t} tokens, but max_len is {self.cfg.max_len}")
                return x + self.weight[None, :t]
            case "sinusoidal":
                return x + sinusoidal_positions(t, self.cfg.d_model, dtype=x.dtype)[None]
        return x


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, activation, dropout=0.0):
        super().__init__()
        gated = activation == "swiglu"
        self.up = nn.Linear(d_model, d_ff, bias=not gated)
        if gated:
            self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=not gated)
        self.act = {"relu": nn.ReLU(), "gelu": nn.GELU(), "swiglu": nn.SiLU()}[activation]
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        h = self.act(self.gate(x)) * self.up(x) if hasattr(self, "gate") else self.act(self.up(x))
        return self.down(self.drop(h))


@dataclass(frozen=True)
class PackedBatch:
    values: torch.Tensor
    lengths: tuple
    index: torch.Tensor


def pack(x, padding_mask):
    require_bool(padding_mask)
    b, t, d = x.shape
    index = torch.arange(b * t)[padding_mask.reshape(-1)]
    counts = [int(n) for n in padding_mask.sum(1)]
    return PackedBatch(x.reshape(b * t, d).index_select(0, index), tuple(filter(None, counts)), index)


def unpack(packed, batch, length):
    flat = torch.zeros(batch * length, packed.values.size(-1), dtype=packed.values.dtype)
    flat[packed.index] = packed.values
    return flat.reshape(batch, length, -1)


class EncoderLayer(nn.Module):
    QUERIES = 64

    def __init__(self, cfg):
        super().__init__()
        if cfg.d_model % cfg.n_heads:
            raise ValueError("d_model must be divisible by n_heads")
        self.cfg = cfg
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.d_model)
        self.out = nn.Linear(cfg.d_model, cfg.d_model)
        self.ff = FeedForward(cfg.d_model, cfg.d_ff, cfg.activation, cfg.dropout)
        self.norm1 = nn.LayerNorm(cfg.d_model, cfg.norm_eps)
        self.norm2 = nn.LayerNorm(cfg.d_model, cfg.norm_eps)
        self.drop1, self.drop2 = nn.Dropout(cfg.dropout), nn.Dropout(cfg.dropout)

    def attend(self, projected, bias=None):
        """projected (B, T, 3d); bias (B, 1, 1, T) of zeros and very negative numbers, or None."""
        b, t, _ = projected.shape
        h, size = self.cfg.n_heads, self.cfg.d_model // self.cfg.n_heads
        q, k, v = (s.view(b, t, h, size).transpose(1, 2) for s in projected.chunk(3, dim=-1))
        done = []
        for start in range(0, t, self.QUERIES):
            s = torch.einsum("bhqe,bhke->bhqk", q[:, :, start : start + self.QUERIES], k) / math.sqrt(size)
            if bias is not None:
                s = s + bias
            done.append(torch.einsum("bhqk,bhke->bqhe", s.softmax(-1), v))
        return torch.cat(done, dim=1).reshape(b, t, h * size)

    def run(self, x, attention):
        if self.cfg.norm == "post":
            x = self.norm1(x + self.drop1(attention(x)))
            x = self.norm2(x + self.drop2(self.ff(x)))
        else:
            x = x + self.drop1(attention(self.norm1(x)))
            x = x + self.drop2(self.ff(self.norm2(x)))
        return x

    def forward(self, x, padding_mask=None):
        require_bool(padding_mask)
        bias = None
        if padding_mask is not None:
            least = torch.finfo(x.dtype).min
            # A row without any token: whatever its queries read is thrown away, but must not be NaN.
            bias = torch.zeros(x.shape[:2], dtype=x.dtype).masked_fill(~padding_mask, least)[:, None, None, :]
        return self.run(x, lambda y: self.out(self.attend(self.qkv(y), bias)))

    def forward_packed(self, values, lengths):
        starts = np.cumsum([0, *lengths])
        by_length = defaultdict(list)
        for number, n in enumerate(lengths):
            by_length[n].append(int(starts[number]))

        def attention(y):
            projected = self.qkv(y)
            context = y.new_empty(y.shape)
            for n, firsts in by_length.items():
                rows = torch.tensor([range(first, first + n) for first in firsts])
                context = context.index_put((rows,), self.attend(projected[rows]))
            return self.out(context)

        return self.run(values, attention)


class TransformerEncoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        if cfg.vocab_size is not None:
            self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.pos = PositionalEncoding(cfg)
        if cfg.embed_norm:
            self.embed_norm = nn.LayerNorm(cfg.d_model, cfg.norm_eps)
        self.drop = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList([EncoderLayer(cfg) for _ in range(cfg.n_layers)])
        if cfg.norm == "pre":
            self.final_norm = nn.LayerNorm(cfg.d_model, cfg.norm_eps)

    def forward(self, inputs, padding_mask=None):
        require_bool(padding_mask)
        real = None if padding_mask is None else padding_mask[:, :, None]
        if inputs.is_floating_point():
            x = inputs if real is None else torch.where(real, inputs, torch.zeros_like(inputs))
        else:
            if self.cfg.vocab_size is None:
                raise ValueError("this encoder has no vocabulary")
            x = self.embed(inputs)
            if self.cfg.scale_embedding:
                x = x * self.cfg.d_model**0.5
        x = self.pos(x)
        if self.cfg.embed_norm:
            x = self.embed_norm(x)
        x = self.drop(x)
        final = self.final_norm if self.cfg.norm == "pre" else lambda y: y
        if self.cfg.unpad and real is not None and not torch.all(padding_mask):
            packed = pack(x, padding_mask)
            values = packed.values
            for layer in self.layers:
                values = layer.forward_packed(values, packed.lengths)
            return unpack(PackedBatch(final(values), packed.lengths, packed.index), x.size(0), x.size(1))
        for layer in self.layers:
            x = layer(x, padding_mask)
        x = final(x)
        return x if real is None else torch.where(real, x, torch.zeros_like(x))


@dataclass(frozen=True)
class FlopBreakdown:
    projections: int
    scores: int
    feed_forward: int
    total: int


def encoder_flops(cfg, lengths):
    d, projections, scores, feed = cfg.d_model, 0, 0, 0
    for n in lengths:
        projections += 8 * n * d**2
        scores += 4 * n**2 * d
        feed += (6 if cfg.activation == "swiglu" else 4) * n * d * cfg.d_ff
    each = [cfg.n_layers * part for part in (projections, scores, feed)]
    return FlopBreakdown(*each, sum(each))


def load_bert(encoder, directory):
    from safetensors import safe_open

    folder = Path(directory)
    config = json.loads((folder / "config.json").read_text())
    if (encoder.cfg.d_model, encoder.cfg.n_layers) != (config["hidden_size"], config["num_hidden_layers"]):
        raise ValueError("another configuration")
    state = {}
    with safe_open(folder / "model.safetensors", "pt") as file:

        def both(mine, theirs):
            for kind in ("weight", "bias"):
                state[f"{mine}.{kind}"] = file.get_tensor(f"{theirs}.{kind}")

        state["embed.weight"] = file.get_tensor("embeddings.word_embeddings.weight")
        types = file.get_tensor("embeddings.token_type_embeddings.weight")
        state["pos.weight"] = file.get_tensor("embeddings.position_embeddings.weight") + types[:1]
        both("embed_norm", "embeddings.LayerNorm")
        for i in range(encoder.cfg.n_layers):
            mine, theirs = f"layers.{i}", f"encoder.layer.{i}"
            for kind in ("weight", "bias"):
                names = (f"{theirs}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
                state[f"{mine}.qkv.{kind}"] = torch.cat([file.get_tensor(name) for name in names])
            both(f"{mine}.out", f"{theirs}.attention.output.dense")
            both(f"{mine}.norm1", f"{theirs}.attention.output.LayerNorm")
            both(f"{mine}.ff.up", f"{theirs}.intermediate.dense")
            both(f"{mine}.ff.down", f"{theirs}.output.dense")
            both(f"{mine}.norm2", f"{theirs}.output.LayerNorm")
    encoder.load_state_dict(state)
    return encoder


def copy_torch_layer(dst, src):
    attention = src.self_attn
    dst.qkv.weight.data.copy_(attention.in_proj_weight)
    dst.qkv.bias.data.copy_(attention.in_proj_bias)
    for mine, theirs in (
        (dst.out, attention.out_proj),
        (dst.ff.up, src.linear1),
        (dst.ff.down, src.linear2),
        (dst.norm1, src.norm1),
        (dst.norm2, src.norm2),
    ):
        mine.load_state_dict(theirs.state_dict())
