"""One path for everything: tokens are always a flat list of rows; a full batch is the special case of equal lengths."""

import functools
import itertools
import json
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


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

    def __post_init__(self):
        if self.d_model % self.n_heads:
            raise ValueError("n_heads: d_model is not divisible by it")


@dataclass(frozen=True)
class PackedBatch:
    values: Tensor
    lengths: tuple[int, ...]
    index: Tensor


@dataclass(frozen=True)
class FlopBreakdown:
    projections: int
    scores: int
    feed_forward: int
    total: int


def encoder_flops(cfg, lengths):
    matrices = cfg.n_layers * 2 * cfg.d_model
    weights = (3 if cfg.activation == "swiglu" else 2) * cfg.d_ff
    n, n2 = sum(lengths), sum(x**2 for x in lengths)
    a, b, c = matrices * 4 * cfg.d_model * n, matrices * 2 * n2, matrices * weights * n
    return FlopBreakdown(projections=a, scores=b, feed_forward=c, total=a + b + c)


@functools.lru_cache
def _frequencies(d_model, base):
    return torch.logspace(0, -(d_model - 2) / d_model, d_model // 2, base=base, dtype=torch.float64)


def sinusoidal_positions(length, d_model, *, base=10000.0, offset=0, dtype=torch.float32):
    if not (d_model > 0 and d_model % 2 == 0):
        raise ValueError("the width of sinusoidal positions is even")
    angles = (torch.arange(length).double() + offset)[:, None] * _frequencies(d_model, base)
    turned = torch.polar(torch.ones_like(angles), angles)  # cos + i sin
    return torch.view_as_real(turned).flip(-1).reshape(length, d_model).type(dtype)


class PositionalEncoding(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.max_len, self.width, self.positions = cfg.max_len, cfg.d_model, cfg.positions
        self.register_parameter("weight", None)
        if cfg.positions == "learned":
            self.weight = nn.Parameter(torch.empty(cfg.max_len, cfg.d_model))
            nn.init.trunc_normal_(self.weight, std=0.02)

    def table(self, length, dtype):
        if self.positions == "sinusoidal":
            return sinusoidal_positions(length, self.width, dtype=dtype)
        if length > self.max_len:
            raise ValueError("longer than max_len")
        return self.weight[:length]

    def forward(self, x):
        return x if self.positions == "none" else x + self.table(x.shape[-2], x.dtype)


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, activation, dropout=0.0):
        super().__init__()
        self.activation, self.p = activation, dropout
        linear = functools.partial(nn.Linear, bias=activation != "swiglu")
        for name in ("up", "gate") if activation == "swiglu" else ("up",):
            self.add_module(name, linear(d_model, d_ff))
        self.down = linear(d_ff, d_model)

    def forward(self, x):
        h = self.up(x)
        if self.activation == "relu":
            h = h.clamp(min=0)
        elif self.activation == "gelu":
            h = 0.5 * h * (1 + torch.erf(h * 2**-0.5))
        else:
            g = self.gate(x)
            h = h * (g * g.sigmoid())
        return self.down(F.dropout(h, self.p, self.training))


def pack(x, padding_mask):
    if padding_mask.dtype != torch.bool:
        raise TypeError("padding_mask")
    lengths = tuple(n for n in padding_mask.long().sum(-1).tolist() if n)
    return PackedBatch(x[padding_mask], lengths, torch.where(padding_mask.view(-1))[0])


def unpack(packed, batch, length):
    d = packed.values.shape[1]
    target = packed.index[:, None].expand(-1, d)
    return torch.zeros(batch * length, d).to(packed.values).scatter(0, target, packed.values).view(batch, length, d)


class EncoderLayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, d = cfg, cfg.d_model
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ff = FeedForward(d, cfg.d_ff, cfg.activation, cfg.dropout)
        self.norm1, self.norm2 = (nn.LayerNorm(d, eps=cfg.norm_eps) for _ in range(2))

    def context(self, tokens, lengths):
        """tokens (N, d) -> (N, d), by runs of neighbours of one length."""
        projected, pieces, first = self.qkv(tokens), [], 0
        for n, run in itertools.groupby(lengths):
            rows = len(list(run))
            block = projected[first : first + rows * n].view(rows, n, 3, self.cfg.n_heads, -1)
            q, k, v = block.permute(2, 0, 3, 1, 4).unbind(0)
            pieces.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows * n, -1))
            first += rows * n
        return self.out(torch.cat(pieces)) if pieces else torch.zeros_like(tokens)

    def drop(self, x):
        return F.dropout(x, self.cfg.dropout, self.training)

    def forward_packed(self, values, lengths):
        before, after = (nn.Identity(), None) if self.cfg.norm == "post" else (None, nn.Identity())
        x = values
        for norm, branch in ((self.norm1, lambda y: self.context(y, lengths)), (self.norm2, self.ff)):
            x = (after or norm)(x + self.drop(branch((before or norm)(x))))
        return x

    def forward(self, x, padding_mask=None):
        b, t, _ = x.shape
        if padding_mask is None:
            return self.forward_packed(x.reshape(b * t, -1), (t,) * b).view(x.shape)
        p = pack(x, padding_mask)
        return unpack(PackedBatch(self.forward_packed(p.values, p.lengths), p.lengths, p.index), b, t)


class TransformerEncoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        if cfg.vocab_size:
            self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.pos = PositionalEncoding(cfg)
        self.embed_norm = nn.LayerNorm(cfg.d_model, cfg.norm_eps) if cfg.embed_norm else nn.Identity()
        self.layers = nn.ModuleList(map(EncoderLayer, [cfg] * cfg.n_layers))
        self.final_norm = nn.LayerNorm(cfg.d_model, cfg.norm_eps) if cfg.norm == "pre" else nn.Identity()

    def forward(self, inputs, padding_mask=None):
        batch, length = inputs.shape[:2]
        if padding_mask is None:
            padding_mask = torch.ones(batch, length, dtype=torch.bool)
        if padding_mask.dtype != torch.bool:
            raise TypeError("padding_mask is boolean")
        if inputs.dtype.is_floating_point:
            p = pack(inputs, padding_mask)
            x = p.values
        elif self.cfg.vocab_size is None:
            raise ValueError("ids without vocab_size")
        else:
            p = pack(inputs[..., None], padding_mask)
            x = self.embed(p.values[:, 0]) * (self.cfg.d_model**0.5 if self.cfg.scale_embedding else 1.0)
        if self.cfg.positions != "none":
            x = x + self.pos.table(length, x.dtype)[p.index % length]
        x = F.dropout(self.embed_norm(x), self.cfg.dropout, self.training)
        for layer in self.layers:
            x = layer.forward_packed(x, p.lengths)
        return unpack(PackedBatch(self.final_norm(x), p.lengths, p.index), batch, length)


def load_bert(encoder, directory):
    with open(os.path.join(directory, "config.json")) as file:
        config = json.load(file)
    if config["hidden_size"] != encoder.cfg.d_model:
        raise ValueError("hidden_size")
    theirs = load_file(os.path.join(directory, "model.safetensors"))
    renamed = {
        "embeddings.word_embeddings": "embed",
        "embeddings.position_embeddings": "pos",
        "embeddings.LayerNorm": "embed_norm",
        "encoder.layer": "layers",
        "attention.output.dense": "out",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "ff.up",
        "output.dense": "ff.down",
        "output.LayerNorm": "norm2",
    }
    types = theirs.pop("embeddings.token_type_embeddings.weight")
    state = {}
    for name, value in theirs.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        state[name] = value
    state["pos.weight"] = state["pos.weight"] + types[0]
    for i, kind in itertools.product(range(encoder.cfg.n_layers), ("weight", "bias")):
        three = [state.pop(f"layers.{i}.attention.self.{n}.{kind}") for n in ("query", "key", "value")]
        state[f"layers.{i}.qkv.{kind}"] = torch.cat(three)
    encoder.load_state_dict(state)
    return encoder


def copy_torch_layer(dst, src):
    names = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj": "out", "linear1": "ff.up", "linear2": "ff.down"}
    state = {}
    for name, value in src.state_dict().items():
        for theirs, mine in names.items():
            name = name.replace(theirs, mine)
        state[name] = value
    dst.load_state_dict(state)
