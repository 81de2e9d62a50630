"""Oracle for the transformer encoder: one sequence at a time, its padding deleted, heads in a loop, float64.

Nothing is masked, packed or batched: what is padding was never there. Weights come as a state dict with the names of
the contract, the configuration as a plain dict.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F


def sinusoidal_positions(length: int, d_model: int, *, base: float = 10000.0, offset: int = 0) -> Tensor:
    rows = []
    for p in range(offset, offset + length):
        row = []
        for pair in range(d_model // 2):
            angle = p / base ** (2 * pair / d_model)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).reshape(length, d_model)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights below ``prefix``, in float64."""
    return {name.removeprefix(prefix): t.double() for name, t in state.items() if name.startswith(prefix)}


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def feed_forward(state: dict[str, Tensor], x: Tensor, activation: str) -> Tensor:
    state, x = part(state, ""), x.double()
    up = linear(state, "up", x)
    if activation == "swiglu":
        gate = linear(state, "gate", x)
        return linear(state, "down", gate / (1 + torch.exp(-gate)) * up)
    if activation == "relu":
        return linear(state, "down", up.clamp(min=0))
    return linear(state, "down", up * (1 + torch.erf(up / math.sqrt(2))) / 2)


def attention(state: dict[str, Tensor], x: Tensor, n_heads: int) -> Tensor:
    """One sequence without padding, (n, d)."""
    d = x.shape[-1]
    size = d // n_heads
    q, k, v = linear(state, "qkv", x).split(d, dim=-1)
    heads = []
    for h in range(n_heads):
        own = slice(h * size, (h + 1) * size)
        scores = q[:, own] @ k[:, own].T / math.sqrt(size)
        heads.append(torch.softmax(scores, dim=-1) @ v[:, own])
    return linear(state, "out", torch.cat(heads, dim=-1))


def layer_row(state: dict[str, Tensor], cfg: dict, x: Tensor) -> Tensor:
    """A layer on one sequence without padding, (n, d)."""
    eps = cfg.get("norm_eps", 1e-5)
    feed = part(state, "ff.")
    if cfg.get("norm", "pre") == "pre":
        x = x + attention(state, layer_norm(state, "norm1", x, eps), cfg["n_heads"])
        return x + feed_forward(feed, layer_norm(state, "norm2", x, eps), cfg.get("activation", "gelu"))
    x = layer_norm(state, "norm1", x + attention(state, x, cfg["n_heads"]), eps)
    return layer_norm(state, "norm2", x + feed_forward(feed, x, cfg.get("activation", "gelu")), eps)


def layer(state: dict[str, Tensor], cfg: dict, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """x (B, T, d) -> (B, T, d), zeros at padding."""
    state = part(state, "")
    rows = []
    for b in range(x.shape[0]):
        real = torch.arange(x.shape[1]) if mask is None else mask[b].nonzero().flatten()
        row = torch.zeros(x.shape[1:], dtype=torch.float64)
        rows.append(row.index_put((real,), layer_row(state, cfg, x[b, real].double())))
    return torch.stack(rows)


def encoder(state: dict[str, Tensor], cfg: dict, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ids (B, T) or vectors (B, T, d) -> (B, T, d), zeros at padding."""
    state, d, eps = part(state, ""), cfg["d_model"], cfg.get("norm_eps", 1e-5)
    rows = []
    for b in range(inputs.shape[0]):
        real = torch.arange(inputs.shape[1]) if mask is None else mask[b].nonzero().flatten()
        if inputs.is_floating_point():
            x = inputs[b, real].double()
        else:
            x = state["embed.weight"][inputs[b, real]]
            x = x * math.sqrt(d) if cfg.get("scale_embedding", False) else x
        kind = cfg.get("positions", "sinusoidal")
        if kind == "learned":
            x = x + state["pos.weight"][real]
        elif kind == "sinusoidal":
            x = x + sinusoidal_positions(inputs.shape[1], d)[real]
        if cfg.get("embed_norm", False):
            x = layer_norm(state, "embed_norm", x, eps)
        for i in range(cfg["n_layers"]):
            x = layer_row(part(state, f"layers.{i}."), cfg, x)
        if cfg.get("norm", "pre") == "pre":
            x = layer_norm(state, "final_norm", x, eps)
        row = torch.zeros(inputs.shape[1], d, dtype=torch.float64)
        rows.append(row.index_put((real,), x))
    return torch.stack(rows)


def encoder_flops(cfg: dict, lengths: list[int]) -> dict[str, int]:
    """Every matrix product of every layer, head and sequence, 2mkn each, added up."""
    d, size = cfg["d_model"], cfg["d_model"] // cfg["n_heads"]
    up_maps = 2 if cfg.get("activation", "gelu") == "swiglu" else 1
    spent = Counter(projections=0, scores=0, feed_forward=0)
    for n in lengths:
        for _ in range(cfg["n_layers"]):
            spent["projections"] += 2 * n * d * (3 * d) + 2 * n * d * d
            for _ in range(cfg["n_heads"]):
                spent["scores"] += 2 * n * size * n + 2 * n * n * size
            spent["feed_forward"] += up_maps * 2 * n * d * cfg["d_ff"] + 2 * n * cfg["d_ff"] * d
    return {**spent, "total": sum(spent.values())}
