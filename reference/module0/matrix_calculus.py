"""Oracle of exercise 0.1: NumPy's batched product, PyTorch's autograd and SciPy's softmax, all in float64.

Nothing here is put together from two-dimensional products, so it shares no idea and no mistake with an answer.
"""

from __future__ import annotations

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F


def bmm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`np.matmul`; floating operands are multiplied in float64."""
    floating = np.issubdtype(np.result_type(a, b), np.floating)
    return np.matmul(a.astype(np.float64), b.astype(np.float64)) if floating else np.matmul(a, b)


def expand(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What `bmm_expand` of the stub does: the baseline whose memory is predicted and measured."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(axis=-2)


def copy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What `bmm_copy` of the stub does: both operands at the full batch, then the product."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    full_a, full_b = (np.broadcast_to(x, batch + x.shape[-2:]).copy() for x in (a, b))
    return np.matmul(full_a, full_b)


def brute_force(a: np.ndarray, b: np.ndarray, dot) -> np.ndarray:
    """The batched product over any semiring, element by element: `dot(row of a, column of b)` is one output."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = np.broadcast_to(a, batch + a.shape[-2:])
    b = np.broadcast_to(b, batch + b.shape[-2:])
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), np.result_type(a, b))
    for *index, i, j in np.ndindex(*out.shape):
        out[(*index, i, j)] = dot(a[(*index, i)], b[(*index, slice(None), j)])
    return out


def max_plus(row: np.ndarray, column: np.ndarray) -> float:
    """The tropical semiring: the longest path. An empty maximum is -inf."""
    return np.max(row + column, initial=-np.inf)


def mod7(row: np.ndarray, column: np.ndarray) -> int:
    """The field of integers modulo 7."""
    return int((row * column % 7).sum() % 7)


def _gradients(f, arrays: tuple[np.ndarray, ...], cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays]
    f(*leaves).backward(torch.tensor(np.asarray(cotangent, np.float64)))
    return tuple(leaf.grad.numpy() for leaf in leaves)


def bmm_vjp(a: np.ndarray, b: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gradients of `torch.matmul`."""
    return _gradients(torch.matmul, (a, b), g)


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Every element of `g` is added to the element of `x` that it was copied from."""
    source = np.broadcast_to(np.arange(np.prod(shape, dtype=int)).reshape(shape), g.shape)
    total = np.zeros(np.prod(shape, dtype=int))
    np.add.at(total, source.ravel(), g.astype(np.float64).ravel())
    return total.reshape(shape)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`scipy.special.softmax`, slice by slice; a slice of -inf alone gives zeros (SciPy gives NaN)."""

    def of_slice(row: np.ndarray) -> np.ndarray:
        return np.zeros_like(row) if np.all(row == -np.inf) else scipy.special.softmax(row)

    return np.apply_along_axis(of_slice, axis, np.asarray(x, np.float64))


def softmax_jacobian(p: np.ndarray) -> np.ndarray:
    """diag(p) - p pᵀ with an explicit outer product."""
    return np.diag(p.astype(np.float64)) - np.outer(p, p)


def softmax_vjp(x: np.ndarray, g: np.ndarray, axis: int = -1) -> np.ndarray:
    """Gradient of `torch.softmax` at `x` (not at p)."""
    return _gradients(lambda t: torch.softmax(t, axis), (x,), g)[0]


def allowed(q, k, mask: np.ndarray | None, causal: bool) -> np.ndarray:
    """The mask that attention uses, [..., T, S]."""
    t, s = q.shape[-2], k.shape[-2]
    both = np.ones((t, s), bool) if mask is None else mask
    return np.logical_and(both, np.tril(np.ones((t, s), bool), s - t)) if causal else both


def _attention(q, k, v, mask, scale):
    # Broadcasting is spelled out: whatever the attention kernel makes of batch axes plays no part, and expand's
    # gradient is autograd's.
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (x.expand(*batch, *x.shape[-2:]) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def attention(q, k, v, mask: np.ndarray | None = None, causal: bool = False, scale: float | None = None) -> np.ndarray:
    """`F.scaled_dot_product_attention` in float64: a query without keys gives a zero row there too."""
    allow = torch.tensor(allowed(q, k, mask, causal))
    return _attention(*(torch.tensor(np.asarray(x, np.float64)) for x in (q, k, v)), allow, scale).numpy()


def attention_vjp(q, k, v, dout, mask=None, causal=False, scale=None) -> tuple[np.ndarray, ...]:
    """(dq, dk, dv) by autograd."""
    allow = torch.tensor(allowed(q, k, mask, causal))
    return _gradients(lambda *qkv: _attention(*qkv, allow, scale), (q, k, v), dout)
