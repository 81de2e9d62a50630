"""Oracle of exercise 6.2: float64 NumPy and plain loops, nothing shared with the solution.

GPTQ is Optimal Brain Quantization in a fixed order: at every column the inverse of what is left of the Hessian is
computed anew, so there is no Cholesky factor, no block and no lazy update here. AWQ runs the calibration inputs through
every candidate. The Llama is a handful of functions over a state dict.
"""

from __future__ import annotations

import math

import numpy as np
import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _np(x) -> np.ndarray:
    return x.detach().to(torch.float64).numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)


# --- the grid ---------------------------------------------------------------------------------------------------------


def grid(values, symmetric=False) -> tuple[float, int]:
    """Scale and zero of one group of numbers."""
    values = [float(v) for v in values]
    if symmetric:
        scale = 2 * max(abs(v) for v in values) / 15
        return (scale if scale else 1.0), 8
    lo, hi = min(0.0, *values), max(0.0, *values)
    scale = (hi - lo) / 15
    scale = scale if scale else 1.0
    return scale, min(15, max(0, round(-lo / scale)))  # round of Python: half to even


def rtn(W, group_size: int, symmetric=False) -> dict:
    """q, scale, zero as float64 arrays, and `real`: w / scale + zero before rounding."""
    W = _np(W)
    outputs, inputs = W.shape
    q, real = np.zeros(W.shape), np.zeros(W.shape)
    scale, zero = (np.zeros((outputs, inputs // group_size)) for _ in range(2))
    for o in range(outputs):
        for group in range(inputs // group_size):
            members = range(group * group_size, (group + 1) * group_size)
            s, z = grid(W[o, members], symmetric)
            scale[o, group], zero[o, group] = s, z
            for i in members:
                real[o, i] = W[o, i] / s + z
                q[o, i] = min(15, max(0, round(float(W[o, i] / s)) + z))
    return {"q": q, "scale": scale, "zero": zero, "real": real}


def dequantize(q, scale, zero, group_size: int) -> np.ndarray:
    q, scale, zero = _np(q), _np(scale), _np(zero)
    out = np.zeros(q.shape)
    for i in range(q.shape[1]):
        out[:, i] = (q[:, i] - zero[:, i // group_size]) * scale[:, i // group_size]
    return out


# --- GPTQ -------------------------------------------------------------------------------------------------------------


def hessian(x) -> np.ndarray:
    """2/N sum x x^T of the tokens x (N, I)."""
    x = _np(x)
    return 2 * np.einsum("ni,nj->ij", x, x) / len(x)


def loss(W, W_hat, H) -> float:
    error = _np(W) - _np(W_hat)
    return float(np.einsum("oi,ij,oj->", error, _np(H), error))


def gptq(W, H, group_size: int, percdamp=0.01, act_order=False, symmetric=False, follow=None) -> dict:
    """OBQ in a fixed order: q, scale, zero, real (compensated w / scale + zero), loss.

    follow: codes (O, I) to take instead of the nearest ones; `real` then says how far from nearest they are.
    """
    caller, W, H = _np(W), _np(W).copy(), _np(H).copy()
    outputs, inputs = W.shape
    order = sorted(range(inputs), key=lambda i: -H[i, i]) if act_order else list(range(inputs))  # sorted is stable
    damp_of = H.copy()
    for i in range(inputs):
        if damp_of[i, i] == 0:
            damp_of[i, i], W[:, i] = 1.0, 0.0
    damped = damp_of + percdamp * np.mean(np.diag(damp_of)) * np.eye(inputs)

    original = rtn(W, group_size, symmetric)
    scale, zero = original["scale"], original["zero"]
    q, real = np.zeros(W.shape), np.zeros(W.shape)
    for step, c in enumerate(order):
        group = c // group_size
        if not act_order and c % group_size == 0:
            for o in range(outputs):
                scale[o, group], zero[o, group] = grid(W[o, c : c + group_size], symmetric)
        left = order[step:]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        steps = W[:, c] / scale[:, group]
        real[:, c] = steps + zero[:, group]
        nearest = np.clip(np.round(steps) + zero[:, group], 0, 15)
        q[:, c] = nearest if follow is None else _np(follow)[:, c]
        error = W[:, c] - (q[:, c] - zero[:, group]) * scale[:, group]
        W[:, left] -= np.outer(error / inverse[0, 0], inverse[0])
    W_hat = dequantize(q, scale, zero, group_size)
    return {"q": q, "scale": scale, "zero": zero, "real": real, "loss": loss(caller, W_hat, H)}


# --- AWQ --------------------------------------------------------------------------------------------------------------


def channel_scale(X, ratio: float) -> np.ndarray:
    X = _np(X).reshape(-1, X.shape[-1])
    s = np.maximum(np.mean(np.abs(X), axis=0) ** ratio, 1e-4)
    return s / math.sqrt(s.max() * s.min())


def awq(W, X, group_size: int, n_grid=20) -> dict:
    """Every ratio, judged by the mean squared error of the layer's output over the inputs themselves."""
    W, x = _np(W), _np(X).reshape(-1, X.shape[-1])
    losses, results = [], []
    for k in range(n_grid):
        s = channel_scale(X, k / n_grid)
        r = rtn(W * s, group_size)
        W_hat = dequantize(r["q"], r["scale"], r["zero"], group_size) / s
        losses.append(float(np.sum((x @ (W - W_hat).T) ** 2)) / len(x))
        results.append({**r, "channel_scale": s, "ratio": k / n_grid})
    return {**results[losses.index(min(losses))], "losses": losses}


# --- nibbles ----------------------------------------------------------------------------------------------------------


def _word(nibbles) -> int:
    """Eight numbers 0..15, lowest first, as a signed 32-bit integer."""
    value = sum(int(n) << 4 * i for i, n in enumerate(nibbles))
    return value - (1 << 32) if value >= 1 << 31 else value


def pack_gptq(q) -> torch.Tensor:
    outputs, inputs = q.shape
    rows = [[_word(q[c, 8 * r : 8 * r + 8].tolist()) for c in range(outputs)] for r in range(inputs // 8)]
    return torch.tensor(rows, dtype=torch.int32)


def pack_awq(q) -> torch.Tensor:
    outputs, inputs = q.shape
    rows = [[_word(int(q[8 * c + i, r]) for i in AWQ_ORDER) for c in range(outputs // 8)] for r in range(inputs)]
    return torch.tensor(rows, dtype=torch.int32)


def unpack_rows(words) -> torch.Tensor:
    """int32 (R, C) -> uint8 (8R, C): nibble j of word (r, c) is at (8r + j, c)."""
    return torch.tensor(
        [[int(w) >> 4 * j & 15 for w in row] for row in words.tolist() for j in range(8)], dtype=torch.uint8
    ).view(-1, words.shape[1])


def stored_weight(buffers: dict, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (O, I) and weights (O, I) of the buffers of a QuantLinear."""
    q = unpack_rows(buffers["qweight"]).T
    zero = unpack_rows(buffers["qzeros"].T)
    return _np(q), dequantize(q, buffers["scales"].double().T, zero, group_size)


def stored_checkpoint(tensors: dict, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes (O, I) and weights (O, I) of a linear in a GPTQ file of version 1: g_idx names groups, zeros are less by 1."""
    q, scales = _np(unpack_rows(tensors[name + ".qweight"]).T), _np(tensors[name + ".scales"].double())
    zeros = (_np(unpack_rows(tensors[name + ".qzeros"].T)).T.astype(int) + 1) % 16
    group = tensors[name + ".g_idx"].tolist()
    columns = [(q[:, i].astype(int) - zeros[g]) * scales[g] for i, g in enumerate(group)]
    return q, np.stack(columns, axis=1)


# --- a Llama ----------------------------------------------------------------------------------------------------------

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def llama(w: dict, ids, heads: int, theta=10000.0, eps=1e-6) -> tuple[torch.Tensor, dict]:
    """Logits (B, T, V) and what every linear of a block receives, {path: (B*T, I)}; w is a float64 state dict."""
    inputs: dict = {}

    def linear(name, x):
        inputs[name] = x.reshape(-1, x.shape[-1])
        return x @ w[name + ".weight"].T

    def norm(name, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[name + ".weight"]

    x = w["model.embed_tokens.weight"][ids]
    batch, length, width = x.shape
    dim = width // heads
    angles = torch.arange(length)[:, None] * theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotate(t):
        pairs = torch.complex(t[..., : dim // 2], t[..., dim // 2 :]) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    layer = 0
    while f"model.layers.{layer}.input_layernorm.weight" in w:
        p = f"model.layers.{layer}."
        h = norm(p + "input_layernorm", x)
        q, k, v = (
            linear(p + f"self_attn.{n}_proj", h).view(batch, length, -1, dim).transpose(1, 2) for n in ("q", "k", "v")
        )
        shared = heads // k.shape[1]
        q, k, v = rotate(q), rotate(k).repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        scores = (q @ k.mT / dim**0.5).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
        x = x + linear(p + "self_attn.o_proj", mixed)
        h = norm(p + "post_attention_layernorm", x)
        gate, up = linear(p + "mlp.gate_proj", h), linear(p + "mlp.up_proj", h)
        x = x + linear(p + "mlp.down_proj", gate * torch.sigmoid(gate) * up)
        layer += 1
    return norm("model.norm", x) @ w["lm_head.weight"].T, inputs


def quantise_llama(w: dict, ids, heads: int, group_size: int, method: str) -> tuple[dict, dict, dict]:
    """RTN or GPTQ through a Llama: weights as stored (float16 scales), codes and losses by path of the linear.

    The whole model is run anew for every group of linears, so that each group sees what really arrives.
    """
    w, codes, losses = {name: t.double() for name, t in w.items()}, {}, {}
    layers = sum(name.endswith("input_layernorm.weight") for name in w)
    for layer in range(layers):
        for group in GROUPS:
            _, inputs = llama(w, ids, heads)
            for name in (f"model.layers.{layer}.{n}" for n in group):
                W, H = w[name + ".weight"], hessian(inputs[name])
                r = gptq(W, H, group_size) if method == "gptq" else rtn(W, group_size)
                stored = dequantize(r["q"], r["scale"].astype(np.float16), r["zero"], group_size)
                codes[name], losses[name] = r["q"], loss(W, stored, H)
                w[name + ".weight"] = torch.from_numpy(stored)
    return w, codes, losses


def kl(logits, other) -> float:
    """Mean over tokens of KL(p || q) in nats."""
    p, q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def perplexity(logits, ids) -> float:
    logp = logits.double().log_softmax(-1)
    batch, length = ids.shape
    picked = [float(logp[b, t, ids[b, t + 1]]) for b in range(batch) for t in range(length - 1)]
    return math.exp(-sum(picked) / len(picked))
