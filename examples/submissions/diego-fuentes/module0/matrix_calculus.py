"""Exercise 0.1: matrix calculus for attention, in NumPy.

Everything here is an arrangement of plain two-dimensional products. `gemm` is the only place where numbers are
multiplied as matrices: outside it, do not use `@`, `np.matmul`, `np.dot`, `np.einsum`, `np.tensordot`, `np.inner`,
`np.vdot`, `np.vecdot` or `np.linalg`. A function that takes a `gemm` must take *all* its matrix products from it.

Notation: `a[..., n, k]`, `b[..., k, m]`, batch axes `...`; attention has queries `q[..., T, d]`, keys `k[..., S, d]`,
values `v[..., S, dv]`. In masks, True means "may attend".
"""

from __future__ import annotations

import argparse
import math
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: `gemm(a[n, k], b[k, m], out=None) -> [n, m]`.
Gemm = Callable[..., np.ndarray]


# --------------------------------------------------------------------------------------------------------------------
# Given: the one product, two wasteful ways of batching it, and the records of the profiler.
# --------------------------------------------------------------------------------------------------------------------


def gemm(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The product of two matrices, `a[n, k] · b[k, m] -> [n, m]`; written into `out` (and returned) if that is given.

    Raises ValueError unless both are two-dimensional with equal inner size.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"gemm: needs matrices [n, k] and [k, m], got shapes {a.shape} and {b.shape}")
    return np.matmul(a, b, out=out)


def bmm_expand(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Baseline to profile: every single product `a[i, l] * b[l, j]` is stored before it is summed. ndim >= 2."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(axis=-2)


def bmm_copy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Baseline to profile: both operands are copied out to the full batch, then multiplied pair by pair. ndim >= 2."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    full_a = np.broadcast_to(a, batch + a.shape[-2:]).copy()
    full_b = np.broadcast_to(b, batch + b.shape[-2:]).copy()
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), np.result_type(a, b))
    for index in np.ndindex(*batch):
        gemm(full_a[index], full_b[index], out=out[index])
    return out


@dataclass(frozen=True)
class MemoryRecord:
    """What one call needed. All sizes in bytes."""

    label: str
    #: Shapes of the input arrays, positional ones first.
    shapes: tuple[tuple[int, ...], ...]
    #: `np.result_type` of the input arrays by name, e.g. "float32"; "" if there are none.
    dtype: str
    input_bytes: int
    output_bytes: int
    #: High-water mark during the call above the level at entry; the returned arrays are part of it.
    peak_bytes: int
    #: `peak_bytes - output_bytes`: what was needed only on the way.
    temp_bytes: int


@dataclass(frozen=True)
class AttentionCache:
    """What the backward pass of attention needs: the operands as given, the weights `p[..., T, S]`, the scale used."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    p: np.ndarray
    scale: float


def format_report(records: Sequence[MemoryRecord]) -> str:
    """A fixed-width table, one line a record."""
    lines = [f"{'label':<20} {'shapes':<40} {'dtype':<8} {'input':>13} {'output':>13} {'peak':>13} {'temp':>13}"]
    for r in records:
        shapes = " ".join(str(s).replace(" ", "") for s in r.shapes)
        sizes = " ".join(f"{size:>13,}" for size in (r.input_bytes, r.output_bytes, r.peak_bytes, r.temp_bytes))
        lines.append(f"{r.label:<20} {shapes:<40} {r.dtype:<8} {sizes}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------
# Task 1 (and 5): the batched product.
# --------------------------------------------------------------------------------------------------------------------


def broadcast_batch(sa: tuple[int, ...], sb: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to which two batch shapes broadcast, by NumPy's rule.

    Align the shapes at the right; a missing axis counts as 1; two extents go together if they are equal or one is 1
    (0 goes with 0 and with 1). Raises ValueError containing "cannot broadcast" and both shapes, as tuples, otherwise.
    """
    try:
        return np.broadcast_shapes(sa, sb)
    except ValueError:
        raise ValueError(f"cannot broadcast {tuple(sa)} and {tuple(sb)}") from None


def bmm(a: np.ndarray, b: np.ndarray, *, gemm: Gemm = gemm) -> np.ndarray:
    """Batched product `a[..., n, k] · b[..., k, m] -> [..., n, m]` with broadcast batch axes.

    The result has dtype `np.result_type(a, b)`; any strides will do (a transposed view is fine). Operands are never
    written. Axes of length 0 are legal: an empty sum (k = 0) is zero. One-dimensional operands are promoted and
    squeezed as by `np.matmul` (given); two of them give a zero-dimensional result.

    Task 1 asks for the right numbers, and for a single GEMM when `b` is one matrix. Task 5 asks for the folding rule:
    batch axes on which `b` has extent 1 (or no axis) are folded into the rows of `a`, and `gemm` is called once for
    each distinct matrix of `b`: as many times as `b` has matrices, never once per element of the broadcast batch.
    (Fewer calls are fine too.) A contiguous copy of an operand at its own size is allowed, a copy of its broadcast
    view is not.

    Raises ValueError for a zero-dimensional operand, for different inner sizes, for batch shapes that do not broadcast.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("bmm: operands need at least one dimension")
    shapes = f"{a.shape} and {b.shape}"
    a_is_vector, b_is_vector = a.ndim == 1, b.ndim == 1
    a = a[None, :] if a_is_vector else a
    b = b[:, None] if b_is_vector else b
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"bmm: inner sizes {a.shape[-1]} and {b.shape[-2]} of operands {shapes} differ")
    try:
        batch = broadcast_batch(a.shape[:-2], b.shape[:-2])
    except ValueError as error:
        raise ValueError(f"bmm: operands {shapes}: {error}") from None

    n, k, m = a.shape[-2], a.shape[-1], b.shape[-1]
    if math.prod(b.shape[:-2]) == 1:
        flat = gemm(a.reshape(math.prod(a.shape[:-1]), k), b.reshape(k, m))
        out = flat.reshape(batch + (n, m))
    else:
        A = np.broadcast_to(a, batch + (n, k))
        B = np.broadcast_to(b, batch + (k, m))
        out = np.empty(batch + (n, m), np.result_type(a, b))
        for idx in np.ndindex(batch):
            gemm(A[idx], B[idx], out=out[idx])

    # Given: `out` is your result, [*batch, n, m]; axes that promotion added are dropped again.
    if b_is_vector:
        out = out[..., 0]
    if a_is_vector:
        out = out[..., 0] if b_is_vector else out[..., 0, :]
    return out


# --------------------------------------------------------------------------------------------------------------------
# Task 2 (and 5): its adjoint.
# --------------------------------------------------------------------------------------------------------------------


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The adjoint of `np.broadcast_to(x, g.shape)` for an `x` of the given shape: sums where `x` was repeated.

    Sums over the leading axes that `shape` lacks and over the axes that it has as 1. float16 is accumulated in float32
    and cast back; the dtype is that of `g`. With nothing to sum, `g` itself may be returned. Raises ValueError if
    `shape` does not broadcast to `g.shape`.
    """
    if len(shape) > g.ndim or np.broadcast_shapes(shape, g.shape) != g.shape:
        raise ValueError(f"{shape} does not broadcast to {g.shape}")
    x = g.astype(np.float32) if g.dtype == np.float16 else g
    while x.ndim > len(shape):
        x = x.sum(axis=0)
    for axis, extent in enumerate(shape):
        if extent == 1:
            x = x.sum(axis=axis, keepdims=True)
    return x.astype(g.dtype)


def bmm_vjp(a: np.ndarray, b: np.ndarray, g: np.ndarray, *, gemm: Gemm = gemm) -> tuple[np.ndarray, np.ndarray]:
    """The vector-Jacobian product of `bmm`: gradients `(da, db)` of a loss L, given `g = dL/d bmm(a, b)`.

    `a` and `b` have ndim >= 2, `g` has the shape of `bmm(a, b)`. `da` and `db` have exactly the shapes and dtypes of
    `a` and `b`. All products come from `gemm`.

    Task 2 asks for the right numbers. Task 5 asks for the folding: what is shared is one GEMM. The gradient of a `b`
    that was broadcast is one product over the folded rows, not a batch of products summed afterwards.

    Raises ValueError if the shape of `g` is not that of `bmm(a, b)`.
    """
    batch = broadcast_batch(a.shape[:-2], b.shape[:-2])
    if g.shape != (*batch, a.shape[-2], b.shape[-1]):
        raise ValueError(f"bmm_vjp: gradient {g.shape} does not fit the product of {a.shape} and {b.shape}")

    # y = a b  ->  da = g b^T, db = a^T g, then sum over what was repeated
    da = bmm(g, b.swapaxes(-1, -2), gemm=gemm)
    db = bmm(a.swapaxes(-1, -2), g, gemm=gemm)
    return unbroadcast(da, a.shape).astype(a.dtype), unbroadcast(db, b.shape).astype(b.dtype)


# --------------------------------------------------------------------------------------------------------------------
# Task 3: softmax.
# --------------------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`exp(x_i) / Σ_j exp(x_j)` along `axis`, safe for any finite input and for -inf; NaN propagates.

    A slice that is all -inf gives zeros. float16 is computed in float32 and cast back; integers give float64.
    `x` is not written.
    """
    out_dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
    z = x.astype(np.float32 if out_dtype == np.float16 else out_dtype)
    c = z.max(axis, keepdims=True, initial=-np.inf)
    c[np.isneginf(c)] = 0.0
    e = np.exp(z - c)
    s = e.sum(axis, keepdims=True)
    s[s == 0] = 1.0
    return (e / s).astype(out_dtype)


def softmax_vjp(p: np.ndarray, g: np.ndarray, axis: int = -1) -> np.ndarray:
    """`Jᵀ g` along `axis`, given `p = softmax(x)` and `g = dL/dp`: the gradient dL/dx, without ever forming J.

    Has the shape and dtype of `p`; float16 is computed in float32.
    """
    # J^T g without J: p * (g - sum(p g))
    inner = (p.astype(np.float32) * g if p.dtype == np.float16 else p * g).sum(axis=axis, keepdims=True)
    return (p * (g - inner)).astype(p.dtype)


def softmax_jacobian(p: np.ndarray) -> np.ndarray:
    """The Jacobian `J[i, j] = dp_i / dx_j` of softmax at `p = softmax(x)`: `p[n] -> J[n, n] = diag(p) - p pᵀ`."""
    return np.diag(p) - np.outer(p, p)


# --------------------------------------------------------------------------------------------------------------------
# Task 4: attention, forward and backward.
# --------------------------------------------------------------------------------------------------------------------


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    gemm: Gemm = gemm,
) -> tuple[np.ndarray, AttentionCache]:
    """Scaled dot-product attention: `softmax(scale · q kᵀ) v`, and the cache for the backward pass.

    q[..., T, d], k[..., S, d], v[..., S, dv] -> out[..., T, dv]; batch axes broadcast, so that grouped-query attention
    is q[B, KV, G, T, d] with k, v[B, KV, 1, S, d]. The default scale is 1/sqrt(d) (1 for d = 0). out has the dtype
    `np.result_type(q, k, v)`, and the cache holds q, k, v as they were given.

    mask: boolean, True = may attend, broadcastable to the scores [..., T, S] (it cannot add batch elements).
    causal: query i sees key j iff j <= i + S - T (the last query sees the last key). With both, both must allow it.
    A query that may see nothing gives a zero row, and zero gradients.

    Raises TypeError("mask must be boolean"), and ValueError for shapes that do not fit.
    """
    if mask is not None and mask.dtype != np.bool_:
        raise TypeError("mask must be boolean")
    if scale is None:
        scale = 1.0 / math.sqrt(q.shape[-1]) if q.shape[-1] else 1.0

    # scores [..., T, S]
    scores = bmm(q, k.swapaxes(-1, -2), gemm=gemm)
    scores = (scores * float(scale)).astype(scores.dtype)
    t, s = scores.shape[-2:]
    if causal:
        # lower triangle: no looking into the future
        tri = np.tril(np.ones((t, s), dtype=bool))
        scores = np.where(tri, scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    p = softmax(scores)
    return bmm(p, v, gemm=gemm), AttentionCache(q=q, k=k, v=v, p=p, scale=scale)


def attention_vjp(
    dout: np.ndarray, cache: AttentionCache, *, gemm: Gemm = gemm
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients `(dq, dk, dv)`, shapes and dtypes of q, k, v, given `dout = dL/dout`, shape of out.

    The weights are taken from the cache, not computed again: backward costs exactly twice the GEMM FLOPs of forward.
    """
    dp, dv = bmm_vjp(cache.p, cache.v, dout, gemm=gemm)
    ds = softmax_vjp(cache.p, dp) * float(cache.scale)
    dq, dkt = bmm_vjp(cache.q, cache.k.swapaxes(-1, -2), ds, gemm=gemm)
    return dq, dkt.swapaxes(-1, -2), dv


# --------------------------------------------------------------------------------------------------------------------
# Task 6: attention without the T×S array.
# --------------------------------------------------------------------------------------------------------------------


def chunked_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, chunk: int, causal: bool = False, gemm: Gemm = gemm
) -> np.ndarray:
    """The output of `attention(q, k, v, causal=causal)`, with `chunk` queries at a time (the last chunk may be shorter).

    Beyond the output it needs memory for [..., chunk, S] scores only. Under `causal`, keys after the last one that any
    query of the chunk may see are not touched. Raises ValueError for chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    raise NotImplementedError("task 6: one block of queries at a time")


# --------------------------------------------------------------------------------------------------------------------
# Task 7: a memory model, and a profiler to hold it against.
# --------------------------------------------------------------------------------------------------------------------


def predict_peak_bytes(
    method: Literal["expand", "copy", "gemm"], a_shape: tuple[int, ...], b_shape: tuple[int, ...], itemsize: int
) -> int:
    """Peak bytes of `a · b` (ndim >= 2), output included, with N the number of batch elements of the output.

    "gemm" (`bmm`): the output only, N·n·m. "copy" (`bmm_copy`): both operands at the full batch, and the output.
    "expand" (`bmm_expand`): all N·n·k·m single products, and the output. Operands themselves are not counted.
    Raises ValueError for an unknown method.
    """
    n, k = a_shape[-2:]
    m = b_shape[-1]
    N = math.prod(a_shape[:-2])
    sizes = {"gemm": n * m, "copy": n * k + k * m + n * m, "expand": n * k * m + n * m}
    if method not in sizes:
        raise ValueError(f"method {method!r}?")
    return N * sizes[method] * itemsize


def measure_peak(fn: Callable[..., object], *args: object, label: str = "", **kw: object) -> MemoryRecord:
    """Call `fn(*args, **kw)` once under tracemalloc and report its memory (see MemoryRecord).

    Inputs are all arrays among `args` and the values of `kw`. `output_bytes` is the sum of `nbytes` of what `fn`
    returns: an array, or the arrays directly inside a returned tuple or list (deeper ones, as in attention's cache, do
    not count). If tracemalloc was already tracing it is left tracing, its peak reset; otherwise it is stopped again,
    also when `fn` raises.
    """
    raise NotImplementedError("task 7: the high-water mark of one call")


def profile_memory(
    fns: Mapping[str, Callable[..., object]],
    cases: Sequence[tuple[tuple[int, ...], ...]],
    dtype: str = "float32",
    seed: int = 0,
) -> list[MemoryRecord]:
    """One record for each (name, case), names outermost, both in the order given; the label is the name.

    A case is the shapes of the positional arguments. Every pair gets a fresh `rng = np.random.default_rng(seed)` and the
    inputs `rng.standard_normal(shape).astype(dtype)`, drawn in the order of the shapes.
    """
    raise NotImplementedError("task 7: the profile")


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of `values ≈ c · sizes^e`: least-squares slope of log(values) on log(sizes).

    Raises ValueError for fewer than 2 points, different lengths, or a size or value that is not positive.
    """
    if len(sizes) < 2 or len(sizes) != len(values):
        raise ValueError("need two or more points")
    if any(s <= 0 for s in sizes) or any(v <= 0 for v in values):
        raise ValueError("log needs positive numbers")
    x = np.log(np.array(sizes, dtype=float))
    y = np.log(np.array(values, dtype=float))
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


# --------------------------------------------------------------------------------------------------------------------
# Given: the profile of a real model's attention. `python matrix_calculus.py --profile`
# --------------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Profile the attention of LLaMA-7B (batch 1, 32 heads, d = 128): predicted against measured bytes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile", action="store_true", help="run the profile (about 1.5 GB at full size)")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--chunk", type=int, default=128)
    options = parser.parse_args(argv)
    if not options.profile:
        parser.print_help()
        return

    heads, d = options.heads, 128
    scores = [((1, heads, t, d), (1, heads, d, t)) for t in options.tokens]
    records = profile_memory({"gemm": bmm, "copy": bmm_copy}, scores)
    print("Scores q·kᵀ")
    print(format_report(records))
    for r in records:
        predicted = predict_peak_bytes("gemm" if r.label == "gemm" else "copy", *r.shapes, itemsize=4)
        print(f"{r.label:<8} T={r.shapes[0][-2]:<6} predicted {predicted:>15,}  measured {r.peak_bytes:>15,}")

    def full(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        return attention(q, k, v, causal=True)[0]

    def chunked(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        return chunked_attention(q, k, v, chunk=options.chunk, causal=True)

    qkv = [((1, heads, t, d),) * 3 for t in options.tokens]
    records = profile_memory({"attention": full, "chunked": chunked}, qkv)
    print("\nAttention")
    print(format_report(records))
    for name in ("attention", "chunked"):
        temps = [r.temp_bytes for r in records if r.label == name]
        if len(temps) > 1:
            print(f"{name}: temporary bytes grow as T^{fit_exponent(options.tokens, temps):.2f}")


if __name__ == "__main__":
    main()
