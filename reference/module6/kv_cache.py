"""Oracle of exercise 6.1: float64, one row at a time, padding deleted, everything recomputed.

A query loops over its explicit list of visible keys; a token's position is its index among the real tokens. So nothing
here has a mask, a slot offset, a chunk or a cache. `cfg` is a dict with the fields of DecoderConfig, `weights` the
decoder's state dict.
"""

from __future__ import annotations

import torch
from torch import Tensor

Past = list[tuple[Tensor, Tensor]]  # keys (rotated) and values of one row, (n, K, D) each, layer by layer


def logits(cfg: dict, weights: dict[str, Tensor], ids: Tensor, real: Tensor | None = None) -> Tensor:
    """ids (B, T), real (B, T) boolean or None -> (B, T, V) float64; zeros at padding."""
    out = torch.zeros(*ids.shape, cfg["vocab_size"], dtype=torch.float64)
    for row in range(ids.shape[0]):
        slots = [j for j in range(ids.shape[1]) if real is None or real[row, j]]
        if slots:
            out[row, slots] = row_logits(cfg, weights, ids[row, slots], slots)[0]
    return out


def row_logits(
    cfg: dict, weights: dict[str, Tensor], ids: Tensor, slots: list[int], past: Past | None = None
) -> tuple[Tensor, Past]:
    """The real tokens ids (n,) of one row, sitting in `slots`, behind `past` keys and values in slots 0, 1, ...

    Returns logits (n, V) and the keys and values of all tokens, past ones first.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    before = 0 if past is None else past[0][0].shape[0]
    slots = list(range(before)) + slots
    positions = torch.arange(before, before + len(ids), dtype=torch.float64)
    x = w["embed_tokens.weight"][ids]
    if cfg["positions"] == "learned":
        x = x + w["embed_positions.weight"][before : before + len(ids)]
    kept: Past = []
    for layer in range(cfg["n_layers"]):
        p = f"layers.{layer}."
        h = _norm(x, w[p + "input_layernorm.weight"], cfg["rms_eps"])
        q, k, v = (
            (h @ w[p + f"self_attn.{name}_proj.weight"].T).view(len(ids), -1, cfg["head_dim"])
            for name in ("q", "k", "v")
        )
        if cfg["positions"] == "rope":
            q, k = _rotate(q, positions, cfg["rope_theta"]), _rotate(k, positions, cfg["rope_theta"])
        if past is not None:
            k, v = torch.cat((past[layer][0], k)), torch.cat((past[layer][1], v))
        kept.append((k, v))
        mixed = torch.stack([_attend(q[i], k, v, _visible(cfg, slots, before + i)) for i in range(len(ids))])
        x = x + mixed @ w[p + "self_attn.o_proj.weight"].T
        h = _norm(x, w[p + "post_attention_layernorm.weight"], cfg["rms_eps"])
        gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[p + "mlp.down_proj.weight"].T
    return _norm(x, w["norm.weight"], cfg["rms_eps"]) @ w["lm_head.weight"].T, kept


def _visible(cfg: dict, slots: list[int], i: int) -> list[int]:
    """Indices of the keys that token i may attend to: not behind it, and no further back than the window."""
    window = cfg["sliding_window"]
    return [j for j in range(i + 1) if window is None or slots[i] - slots[j] < window]


def _attend(q: Tensor, keys: Tensor, values: Tensor, visible: list[int]) -> Tensor:
    """One query q (H, D) over keys and values (n, K, D) -> (H * D). Head h reads key/value head h // (H/K)."""
    group = q.shape[0] // keys.shape[1]
    keys, values = keys[visible].repeat_interleave(group, dim=1), values[visible].repeat_interleave(group, dim=1)
    weights = torch.softmax(torch.einsum("hd,nhd->hn", q, keys) / q.shape[1] ** 0.5, dim=-1)
    return torch.einsum("hn,nhd->hd", weights, values).flatten()


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x (n, heads, D): the pair (x_i, x_{i+D/2}) is a complex number, multiplied by e^(i * position * theta^(-2i/D))."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def last_logits(cfg: dict, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits of the last token of unpadded, unwindowed rows ids (B, T) -> (B, V), whole matrices: for long prompts."""
    w, group = {name: tensor.double() for name, tensor in weights.items()}, cfg["n_heads"] // cfg["n_kv_heads"]
    x, positions = w["embed_tokens.weight"][ids], torch.arange(ids.shape[1], dtype=torch.float64)
    future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    for layer in range(cfg["n_layers"]):
        p = f"layers.{layer}."
        h = _norm(x, w[p + "input_layernorm.weight"], cfg["rms_eps"])
        q, k, v = (
            (h @ w[p + f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, cfg["head_dim"]))
            for name in ("q", "k", "v")
        )
        q, k = (torch.stack([_rotate(row, positions, cfg["rope_theta"]) for row in t]) for t in (q, k))
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / cfg["head_dim"] ** 0.5
        mixed = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
        x = x + mixed.flatten(2) @ w[p + "self_attn.o_proj.weight"].T
        h = _norm(x, w[p + "post_attention_layernorm.weight"], cfg["rms_eps"])
        gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[p + "mlp.down_proj.weight"].T
    return _norm(x[:, -1], w["norm.weight"], cfg["rms_eps"]) @ w["lm_head.weight"].T


def greedy(cfg: dict, weights: dict[str, Tensor], ids: Tensor, new: int) -> Tensor:
    """Greedy continuation of one unpadded row ids (P,) -> (P + new,). Keys and values are kept, for the sake of time."""
    tokens, past = ids.tolist(), None
    feed = tokens
    for _ in range(new):
        start = 0 if past is None else past[0][0].shape[0]
        scores, past = row_logits(cfg, weights, torch.tensor(feed), list(range(start, start + len(feed))), past)
        feed = [int(scores[-1].argmax())]
        tokens = tokens + feed
    return torch.tensor(tokens)


def cache_bytes(cfg: dict, itemsize: int, tokens: int) -> int:
    """Counted one number at a time: every layer keeps a key and a value of every key/value head."""
    numbers = 0
    for _ in range(cfg["n_layers"]):
        for _ in range(cfg["n_kv_heads"]):
            numbers += cfg["head_dim"] + cfg["head_dim"]
    return numbers * itemsize * tokens


def forward_flops(cfg: dict, tokens: int, pairs: int, projected: int) -> int:
    """2mnk of every matmul of a pass: `tokens` fed, `pairs` of query and key a head and layer, `projected` logit rows."""
    d, queries, keys = cfg["d_model"], cfg["n_heads"] * cfg["head_dim"], cfg["n_kv_heads"] * cfg["head_dim"]
    flops = 0
    for _ in range(cfg["n_layers"]):
        for rows, columns in ((d, queries), (d, keys), (d, keys), (queries, d)):
            flops += 2 * tokens * rows * columns
        flops += 3 * 2 * tokens * d * cfg["d_ff"]
        flops += cfg["n_heads"] * 2 * (2 * pairs * cfg["head_dim"])
    return flops + 2 * projected * d * cfg["vocab_size"]
