"""Oracle for self-attention: one loop per query over the keys it can see, in float64.

Hidden keys are never gathered, so there is no mask value, no block and no running state; an empty row is the case
"nothing was gathered". Gradients come from autograd through these loops.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import entr
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (..., Tq, Dv), weights (..., Tq, Tk) and lse (..., Tq) in float64; mask True = visible."""
    q, k, v = q.double(), k.double(), v.double()
    lead, tq, tk = q.shape[:-2], q.shape[-2], k.shape[-2]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    allowed = np.ones((*lead, tq, tk), dtype=bool) if mask is None else mask.expand(*lead, tq, tk).numpy()

    outputs, weights, lses = [], [], []
    for index in itertools.product(*map(range, lead), range(tq)):
        *batch, i = index
        batch = tuple(batch)
        seen = [j for j in range(tk) if allowed[(*index, j)] and not (is_causal and j > i + tk - tq)]
        row = torch.zeros(tk, dtype=torch.float64)
        if not seen:
            outputs.append(torch.zeros(v.shape[-1], dtype=torch.float64))
            lses.append(torch.tensor(-math.inf, dtype=torch.float64))
        else:
            scores = scale * (k[batch][seen] @ q[index])
            lse = torch.logsumexp(scores, 0)
            share = torch.exp(scores - lse)
            row = row.index_put((torch.tensor(seen),), share)
            outputs.append(share @ v[batch][seen])
            lses.append(lse)
        weights.append(row)
    return (
        torch.stack(outputs).reshape(*lead, tq, v.shape[-1]),
        torch.stack(weights).reshape(*lead, tq, tk),
        torch.stack(lses).reshape(*lead, tq),
    )


def attention(q: Tensor, k: Tensor, v: Tensor, **options) -> tuple[Tensor, Tensor]:
    output, weights, _ = attend(q, k, v, **options)
    return output, weights


def streaming_attention(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal=False, key_padding_mask=None, scale=None, block_q=64, block_k=64
) -> tuple[Tensor, Tensor]:
    mask = None if key_padding_mask is None else key_padding_mask[..., None, :]
    output, _, lse = attend(q, k, v, mask=mask, is_causal=is_causal, scale=scale)
    return output, lse


def gradients(function, inputs, cotangents, **options) -> tuple[Tensor, ...]:
    """Gradients of the inputs for given cotangents of the outputs (None: that output is not used)."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    pairs = [(y, c) for y, c in zip(function(*leaves, **options), cotangents, strict=True) if c is not None]
    # The lse of an empty row is a constant; it has no gradient to pass on.
    loss = sum((torch.where(y.isfinite(), y, 0.0) * c.double()).sum() for y, c in pairs)
    if not loss.requires_grad:
        return tuple(torch.zeros_like(x) for x in leaves)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))


def self_attention(
    parameters: dict[str, Tensor], x: Tensor, key_padding_mask: Tensor | None = None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Output and weights of the layer with these parameters (``q_proj.weight`` ...)."""

    def project(name: str, y: Tensor) -> Tensor:
        y = y.double() @ parameters[f"{name}.weight"].double().T
        bias = parameters.get(f"{name}.bias")
        return y if bias is None else y + bias.double()

    q, k, v = (project(name, x) for name in ("q_proj", "k_proj", "v_proj"))
    mask = None if key_padding_mask is None else key_padding_mask[:, None, :]
    context, weights, _ = attend(q, k, v, mask=mask, is_causal=causal)
    return project("out_proj", context), weights


@dataclass
class Summary:
    entropy: np.ndarray
    effective_keys: np.ndarray
    argmax_key: np.ndarray
    mean_distance: np.ndarray
    received: np.ndarray
    sink_mass: np.ndarray


def summarise_attention(weights: Tensor, query_mask: Tensor | None = None) -> Summary:
    w = weights.double().numpy()
    *lead, tq, tk = w.shape
    valid = np.ones((*lead, tq), dtype=bool) if query_mask is None else query_mask.expand(*lead, tq).numpy()
    entropy, distance = np.full((*lead, tq), np.nan), np.full((*lead, tq), np.nan)
    argmax, received = np.full((*lead, tq), -1), np.full((*lead, tk), np.nan)
    for batch in itertools.product(*map(range, lead)):
        rows = []
        for i in range(tq):
            if not valid[(*batch, i)]:
                continue
            row = w[(*batch, i)]
            rows.append(row)
            empty = not row.any()
            entropy[(*batch, i)] = entr(row).sum()  # entr(w) = -w log w, entr(0) = 0
            distance[(*batch, i)] = sum(row[j] * abs(i + tk - tq - j) for j in range(tk))
            argmax[(*batch, i)] = -1 if empty else list(row).index(max(row))
        if rows:
            received[batch] = np.mean(rows, axis=0)
    return Summary(entropy, np.exp(entropy), argmax, distance, received, received[..., 0])
