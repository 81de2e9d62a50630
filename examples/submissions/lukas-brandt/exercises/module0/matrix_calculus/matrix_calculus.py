"""0.1 Matrix calculus. L. Brandt.

Every product is one contraction over named axes, as in einsum: see `contract`.
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


def axis_names(shape: tuple[int, ...], rank: int, core: str) -> str:
    """Labels of axes: batch axes "A", "B", ... aligned at the right, "-" for a batch extent of 1, then `core`."""
    batch = shape[:-2]
    names = [chr(ord("A") + rank - len(batch) + i) for i in range(len(batch))]
    return "".join("-" if extent == 1 else name for name, extent in zip(names, batch, strict=True)) + core


def without_ones(x: np.ndarray, names: str) -> tuple[np.ndarray, str]:
    """Drop the axes called "-"."""
    index = tuple(0 if name == "-" else slice(None) for name in names)
    return x[index], names.replace("-", "")


def contract(x: np.ndarray, xn: str, y: np.ndarray, yn: str, on: str, gemm: Gemm) -> np.ndarray:
    """out[on] = Σ x[xn] · y[yn], one GEMM for each index of the labels that all three have."""
    x, xn = without_ones(x, xn)
    y, yn = without_ones(y, yn)
    shared = [c for c in on.replace("-", "") if c in xn and c in yn]
    left = [c for c in on if c in xn and c not in yn]
    right = [c for c in on if c not in xn and c in yn]
    inner = [c for c in xn if c in yn and c not in on]
    extent = dict(zip(xn + yn, x.shape + y.shape, strict=True))
    height, depth, width = (math.prod(extent[c] for c in group) for group in (left, inner, right))
    x = x.transpose([xn.index(c) for c in shared + left + inner])
    y = y.transpose([yn.index(c) for c in shared + inner + right])
    found = shared + left + right
    out = np.empty([extent[c] for c in found], np.result_type(x, y))
    for index in np.ndindex(*out.shape[: len(shared)]):
        gemm(x[index].reshape(height, depth), y[index].reshape(depth, width), out=out[index].reshape(height, width))
    return out.transpose([found.index(c) for c in on if c in found])


def broadcast_batch(sa: tuple[int, ...], sb: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to which two batch shapes broadcast, by NumPy's rule."""
    try:
        return np.broadcast_shapes(sa, sb)
    except ValueError:
        raise ValueError(f"cannot broadcast {tuple(sa)} with {tuple(sb)}") from None


def bmm(a: np.ndarray, b: np.ndarray, *, gemm: Gemm = gemm) -> np.ndarray:
    """Batched product `a[..., n, k] · b[..., k, m] -> [..., n, m]` with broadcast batch axes."""
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

    rank = len(batch)
    shape = (*batch, a.shape[-2], b.shape[-1])
    names = (axis_names(a.shape, rank, "nk"), axis_names(b.shape, rank, "km"), axis_names(shape, rank, "nm"))
    out = contract(a, names[0], b, names[1], names[2], gemm).reshape(shape)

    if b_is_vector:
        out = out[..., 0]
    if a_is_vector:
        out = out[..., 0] if b_is_vector else out[..., 0, :]
    return out


# --------------------------------------------------------------------------------------------------------------------
# Task 2 (and 5): its adjoint.
# --------------------------------------------------------------------------------------------------------------------


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The adjoint of `np.broadcast_to(x, g.shape)` for an `x` of the given shape: sums where `x` was repeated."""
    padded = (1,) * (g.ndim - len(shape)) + tuple(shape)
    if np.broadcast_shapes(padded, g.shape) != g.shape:
        raise ValueError(f"{shape} is not a shape that broadcasts to {g.shape}")
    total = g.astype(np.promote_types(g.dtype, np.float32)) if g.dtype == np.float16 else g
    for axis, extent in enumerate(padded):
        if extent != g.shape[axis]:
            total = total.sum(axis=axis, keepdims=True)
    return total.reshape(shape).astype(g.dtype)


def bmm_vjp(a: np.ndarray, b: np.ndarray, g: np.ndarray, *, gemm: Gemm = gemm) -> tuple[np.ndarray, np.ndarray]:
    """The vector-Jacobian product of `bmm`: gradients `(da, db)` of a loss L, given `g = dL/d bmm(a, b)`."""
    batch = broadcast_batch(a.shape[:-2], b.shape[:-2])
    if g.shape != (*batch, a.shape[-2], b.shape[-1]):
        raise ValueError(f"bmm_vjp: gradient {g.shape} does not fit the product of {a.shape} and {b.shape}")

    rank = len(batch)
    ga, gb, gg = axis_names(a.shape, rank, "nk"), axis_names(b.shape, rank, "km"), axis_names(g.shape, rank, "nm")
    da = contract(g, gg, b, gb, ga, gemm)
    db = contract(a, ga, g, gg, gb, gemm)
    return da.reshape(a.shape).astype(a.dtype, copy=False), db.reshape(b.shape).astype(b.dtype, copy=False)


# --------------------------------------------------------------------------------------------------------------------
# Task 3: softmax.
# --------------------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`exp(x_i) / Σ_j exp(x_j)` along `axis`, safe for any finite input and for -inf; NaN propagates."""
    y = np.asarray(x, np.float32 if x.dtype == np.float16 else np.promote_types(x.dtype, np.float32))
    if np.issubdtype(x.dtype, np.integer):
        y = x.astype(np.float64)
    if y.shape[axis] == 0:
        return y.astype(x.dtype)
    c = y.max(axis, keepdims=True)
    with np.errstate(divide="ignore"):
        z = y - np.where(np.isneginf(c), 0, c)
        lse = np.log(np.exp(z, out=z).sum(axis, keepdims=True)) + c  # log Σ exp
    del z
    out = y - np.where(np.isneginf(lse), 0, lse)
    np.exp(out, out=out)
    return out.astype(x.dtype, copy=False) if np.issubdtype(x.dtype, np.floating) else out


def softmax_vjp(p: np.ndarray, g: np.ndarray, axis: int = -1) -> np.ndarray:
    """`Jᵀ g` along `axis`, given `p = softmax(x)` and `g = dL/dp`: the gradient dL/dx, without ever forming J."""
    if p.dtype == np.float16:
        return softmax_vjp(p.astype(np.float32), g.astype(np.float32), axis).astype(np.float16)
    return p * (g - (p * g).sum(axis, keepdims=True))


def softmax_jacobian(p: np.ndarray) -> np.ndarray:
    """The Jacobian `J[i, j] = dp_i / dx_j` of softmax at `p = softmax(x)`: `p[n] -> J[n, n] = diag(p) - p pᵀ`."""
    jacobian = -np.multiply.outer(p, p)
    jacobian[np.diag_indices(p.size)] += p
    return jacobian


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
    """Scaled dot-product attention: `softmax(scale · q kᵀ) v`, and the cache for the backward pass."""
    if mask is not None and mask.dtype != np.bool_:
        raise TypeError("mask must be boolean")
    if scale is None:
        scale = 1.0 / math.sqrt(q.shape[-1]) if q.shape[-1] else 1.0

    scores = bmm(q, k.swapaxes(-1, -2), gemm=gemm)
    scores *= scores.dtype.type(scale)
    allowed = np.ones(scores.shape[-2:], bool) if mask is None else mask
    if causal:
        t, s = scores.shape[-2:]
        allowed = allowed & np.tri(t, s, s - t, dtype=bool)
    scores[~np.broadcast_to(allowed, scores.shape)] = -np.inf
    p = softmax(scores)
    del scores
    return bmm(p, v, gemm=gemm), AttentionCache(q, k, v, p, scale)


def attention_vjp(
    dout: np.ndarray, cache: AttentionCache, *, gemm: Gemm = gemm
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients `(dq, dk, dv)`, shapes and dtypes of q, k, v, given `dout = dL/dout`, shape of out."""
    q, k, v, p = cache.q, cache.k, cache.v, cache.p
    dp, dv = bmm_vjp(p, v, dout, gemm=gemm)
    ds = softmax_vjp(p, dp)
    del dp
    ds *= ds.dtype.type(cache.scale)
    dq, dk = bmm_vjp(q, k.swapaxes(-1, -2), ds, gemm=gemm)
    return dq, dk.swapaxes(-1, -2), dv


# --------------------------------------------------------------------------------------------------------------------
# Task 6: attention without the T×S array.
# --------------------------------------------------------------------------------------------------------------------


def chunked_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, chunk: int, causal: bool = False, gemm: Gemm = gemm
) -> np.ndarray:
    """The output of `attention(q, k, v, causal=causal)`, with `chunk` queries at a time (the last chunk may be shorter)."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    t, s = q.shape[-2], k.shape[-2]
    blocks = []
    for rows in np.array_split(np.arange(t), range(chunk, t, chunk)):
        visible = np.ones((len(rows), s), bool)
        if causal:
            visible = np.arange(s) <= rows[:, None] + s - t
        last = int(visible.any(0).sum())
        block, _ = attention(q[..., rows, :], k[..., :last, :], v[..., :last, :], mask=visible[:, :last], gemm=gemm)
        blocks.append(block)
    return np.concatenate(blocks, axis=-2)


# --------------------------------------------------------------------------------------------------------------------
# Task 7: a memory model, and a profiler to hold it against.
# --------------------------------------------------------------------------------------------------------------------


def predict_peak_bytes(
    method: Literal["expand", "copy", "gemm"], a_shape: tuple[int, ...], b_shape: tuple[int, ...], itemsize: int
) -> int:
    """Peak bytes of `a · b` (ndim >= 2), output included, with N the number of batch elements of the output."""
    n, k = a_shape[-2:]
    m = b_shape[-1]
    per_element = {"gemm": n * m, "copy": n * k + k * m + n * m, "expand": n * k * m + n * m}
    if method not in per_element:
        raise ValueError(method)
    return itemsize * per_element[method] * math.prod(np.broadcast_shapes(a_shape[:-2], b_shape[:-2]))


def measure_peak(fn: Callable[..., object], *args: object, label: str = "", **kw: object) -> MemoryRecord:
    """Call `fn(*args, **kw)` once under tracemalloc and report its memory (see MemoryRecord)."""
    arrays = [x for x in args if isinstance(x, np.ndarray)] + [x for x in kw.values() if isinstance(x, np.ndarray)]
    if not tracemalloc.is_tracing():
        tracemalloc.start()
        try:
            return measure_peak(fn, *args, label=label, **kw)
        finally:
            tracemalloc.stop()
    tracemalloc.reset_peak()
    start = tracemalloc.get_traced_memory()[0]
    value = fn(*args, **kw)
    peak = tracemalloc.get_traced_memory()[1] - start
    outputs = [value] if isinstance(value, np.ndarray) else value if isinstance(value, (tuple, list)) else []
    size = sum(x.nbytes for x in outputs if isinstance(x, np.ndarray))
    name = np.result_type(*[x.dtype for x in arrays]).name if arrays else ""
    shapes = tuple(x.shape for x in arrays)
    return MemoryRecord(label, shapes, name, sum(x.nbytes for x in arrays), size, peak, peak - size)


def profile_memory(
    fns: Mapping[str, Callable[..., object]],
    cases: Sequence[tuple[tuple[int, ...], ...]],
    dtype: str = "float32",
    seed: int = 0,
) -> list[MemoryRecord]:
    """One record for each (name, case), names outermost, both in the order given; the label is the name."""

    def inputs(shapes):
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(shape).astype(dtype) for shape in shapes]

    return [measure_peak(fn, *inputs(case), label=name) for name, fn in fns.items() for case in cases]


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of `values ≈ c · sizes^e`: least-squares slope of log(values) on log(sizes)."""
    x, y = np.array(sizes, float), np.array(values, float)
    if x.shape != y.shape or x.size < 2 or not (np.all(x > 0) and np.all(y > 0)):
        raise ValueError("two or more positive points are needed")
    return float(np.polynomial.Polynomial.fit(np.log(x), np.log(y), 1).convert().coef[1])


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
