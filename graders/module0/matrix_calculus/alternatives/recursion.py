"""By recursion: an axis on which `b` has several matrices is peeled off, what is left is one plain GEMM.

Backward is put back to forward: both gradients are products of rearranged operands, so `bmm` does all the work.
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


def multiply_into(out: np.ndarray, a: np.ndarray, b: np.ndarray, gemm: Gemm) -> None:
    """Fill `out` with the product; `a`, `b` and `out` have equally many axes."""
    for axis in range(b.ndim - 2):
        if b.shape[axis] != 1:
            of_a, of_b, of_out = (np.moveaxis(x, axis, 0) for x in (a, b, out))
            for i in range(of_b.shape[0]):
                multiply_into(of_out[i], of_a[i if of_a.shape[0] > 1 else 0], of_b[i], gemm)
            return
    (n, k), m = a.shape[-2:], b.shape[-1]
    rows = math.prod(a.shape[:-2]) * n
    if out.flags.c_contiguous:
        gemm(a.reshape(rows, k), b.reshape(k, m), out=out.reshape(rows, m))
    else:
        out[...] = gemm(a.reshape(rows, k), b.reshape(k, m)).reshape(out.shape)


def gather(x: np.ndarray, *groups: list[int]) -> np.ndarray:
    """Merge axes: the result has one axis for each group, a negative entry of `groups` counts from the right."""
    order = [axis % x.ndim for group in groups for axis in group]
    shape = [math.prod(x.shape[axis] for axis in group) for group in groups]
    return x.transpose(order).reshape(shape)


def broadcast_batch(sa: tuple[int, ...], sb: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to which two batch shapes broadcast, by NumPy's rule."""
    if not sa or not sb:
        return tuple(sa or sb)
    *front_a, x = sa
    *front_b, y = sb
    if x != y and 1 not in (x, y):
        raise ValueError(f"cannot broadcast {tuple(sa)} and {tuple(sb)}")
    try:
        front = broadcast_batch(tuple(front_a), tuple(front_b))
    except ValueError:
        raise ValueError(f"cannot broadcast {tuple(sa)} and {tuple(sb)}") from None
    return (*front, x if y == 1 else y)


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

    out = np.empty((*batch, a.shape[-2], b.shape[-1]), np.result_type(a, b))
    multiply_into(
        out,
        a.reshape((1,) * (out.ndim - a.ndim) + a.shape),
        b.reshape((1,) * (out.ndim - b.ndim) + b.shape),
        gemm,
    )

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
    if len(shape) < g.ndim:
        wide = g.astype(np.float32) if g.dtype == np.float16 else g
        summed = wide.sum(axis=tuple(range(g.ndim - len(shape))))
        return unbroadcast(summed, shape).astype(g.dtype)
    if np.broadcast_shapes(tuple(shape), g.shape) != g.shape:
        raise ValueError(f"cannot have come from {tuple(shape)}: {g.shape}")
    ones = tuple(axis for axis, extent in enumerate(shape) if extent == 1)
    wide = g.astype(np.float32) if g.dtype == np.float16 else g
    return wide.sum(axis=ones, keepdims=True).astype(g.dtype)


def bmm_vjp(a: np.ndarray, b: np.ndarray, g: np.ndarray, *, gemm: Gemm = gemm) -> tuple[np.ndarray, np.ndarray]:
    """The vector-Jacobian product of `bmm`: gradients `(da, db)` of a loss L, given `g = dL/d bmm(a, b)`."""
    batch = broadcast_batch(a.shape[:-2], b.shape[:-2])
    if g.shape != (*batch, a.shape[-2], b.shape[-1]):
        raise ValueError(f"bmm_vjp: gradient {g.shape} does not fit the product of {a.shape} and {b.shape}")

    rank = len(batch)
    wide_a = a.reshape((1,) * (rank + 2 - a.ndim) + a.shape)
    wide_b = b.reshape((1,) * (rank + 2 - b.ndim) + b.shape)
    both, only_a, only_b = [], [], []
    for axis in range(rank):
        if wide_b.shape[axis] == 1:
            only_a.append(axis)
        elif wide_a.shape[axis] == 1:
            only_b.append(axis)
        else:
            both.append(axis)

    def restore(x: np.ndarray, order: list[int], like: np.ndarray) -> np.ndarray:
        """From merged axes in this order back to the shape and dtype of an operand."""
        wide = (1,) * (rank + 2 - like.ndim) + like.shape
        x = x.reshape([wide[axis] for axis in order])
        return x.transpose(np.argsort(order)).reshape(like.shape).astype(like.dtype, copy=False)

    g = gather(g, both, [*only_a, -2], [*only_b, -1])  # [pairs, rows, columns]
    da = bmm(g, gather(wide_b, both, [*only_b, -1], [*only_a, -2]), gemm=gemm)
    da = restore(da, [*both, *only_a, rank, *only_b, rank + 1], a)
    db = bmm(gather(wide_a, both, [-1], [*only_a, -2, *only_b]), g, gemm=gemm)
    db = restore(db, [*both, *only_a, rank, *only_b, rank + 1], b)
    return da, db


# --------------------------------------------------------------------------------------------------------------------
# Task 3: softmax.
# --------------------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`exp(x_i) / Σ_j exp(x_j)` along `axis`, safe for any finite input and for -inf; NaN propagates."""
    if x.dtype == np.float16:
        return softmax(x.astype(np.float32), axis).astype(np.float16)
    if not np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float64)
    out = np.empty_like(x)
    rows, result = np.moveaxis(x, axis, -1), np.moveaxis(out, axis, -1)
    for index in np.ndindex(*rows.shape[:-1]):  # slice by slice: no temporary of the size of x
        row = rows[index]
        top = max(row.max(initial=-np.inf), np.finfo(x.dtype).min) if not np.isnan(row).any() else row.dtype.type("nan")
        weights = np.exp(row - top)
        total = weights.sum()
        result[index] = weights if total == 0 else weights / total
    return out


def softmax_vjp(p: np.ndarray, g: np.ndarray, axis: int = -1) -> np.ndarray:
    """`Jᵀ g` along `axis`, given `p = softmax(x)` and `g = dL/dp`: the gradient dL/dx, without ever forming J."""
    wide_p = p.astype(np.float32) if p.dtype == np.float16 else p
    product = wide_p * g
    product -= wide_p * product.sum(axis=axis, keepdims=True)
    return product.astype(p.dtype, copy=False)


def softmax_jacobian(p: np.ndarray) -> np.ndarray:
    """The Jacobian `J[i, j] = dp_i / dx_j` of softmax at `p = softmax(x)`: `p[n] -> J[n, n] = diag(p) - p pᵀ`."""
    return p[:, None] * (np.eye(p.size, dtype=p.dtype) - p[None, :])


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

    scores = bmm(q, k.swapaxes(-2, -1), gemm=gemm)
    scores = np.multiply(scores, scale, out=scores)
    t, s = scores.shape[-2:]
    if mask is not None:
        scores[...] = np.where(mask, scores, -np.inf)
    if causal:
        for i in range(t):
            scores[..., i, max(0, i + s - t + 1) :] = -np.inf
    p = softmax(scores, -1)
    return bmm(p, v, gemm=gemm), AttentionCache(q, k, v, p, scale)


def attention_vjp(
    dout: np.ndarray, cache: AttentionCache, *, gemm: Gemm = gemm
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients `(dq, dk, dv)`, shapes and dtypes of q, k, v, given `dout = dL/dout`, shape of out."""
    dp, dv = bmm_vjp(cache.p, cache.v, dout, gemm=gemm)
    ds = softmax_vjp(cache.p, dp, -1)
    dk, dq = bmm_vjp(cache.k, cache.q.swapaxes(-1, -2), ds.swapaxes(-1, -2), gemm=gemm)  # sᵀ = k·qᵀ
    return (
        np.multiply(dq.swapaxes(-1, -2), cache.scale, dtype=dq.dtype),
        np.multiply(dk, cache.scale, dtype=dk.dtype),
        dv,
    )


# --------------------------------------------------------------------------------------------------------------------
# Task 6: attention without the T×S array.
# --------------------------------------------------------------------------------------------------------------------


def chunked_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, chunk: int, causal: bool = False, gemm: Gemm = gemm
) -> np.ndarray:
    """The output of `attention(q, k, v, causal=causal)`, with `chunk` queries at a time (the last chunk may be shorter)."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if chunk >= q.shape[-2]:
        return attention(q, k, v, causal=causal, gemm=gemm)[0]
    head, tail = q[..., :-chunk, :], q[..., -chunk:, :]
    cut = max(0, k.shape[-2] - chunk) if causal else k.shape[-2]
    first = chunked_attention(head, k[..., :cut, :], v[..., :cut, :], chunk=chunk, causal=causal, gemm=gemm)
    last = attention(tail, k, v, causal=causal, gemm=gemm)[0]
    return np.concatenate([first, last], axis=-2)


# --------------------------------------------------------------------------------------------------------------------
# Task 7: a memory model, and a profiler to hold it against.
# --------------------------------------------------------------------------------------------------------------------


def predict_peak_bytes(
    method: Literal["expand", "copy", "gemm"], a_shape: tuple[int, ...], b_shape: tuple[int, ...], itemsize: int
) -> int:
    """Peak bytes of `a · b` (ndim >= 2), output included, with N the number of batch elements of the output."""
    elements = math.prod(broadcast_batch(a_shape[:-2], b_shape[:-2]))
    n, k, m = a_shape[-2], a_shape[-1], b_shape[-1]
    if method == "gemm":
        each = n * m
    elif method == "copy":
        each = n * k + k * m + n * m
    elif method == "expand":
        each = (n * k + n) * m
    else:
        raise ValueError(f"no method {method}")
    return elements * each * itemsize


def measure_peak(fn: Callable[..., object], *args: object, label: str = "", **kw: object) -> MemoryRecord:
    """Call `fn(*args, **kw)` once under tracemalloc and report its memory (see MemoryRecord)."""
    inputs = tuple(filter(lambda x: isinstance(x, np.ndarray), [*args, *kw.values()]))
    nested = tracemalloc.is_tracing()
    if not nested:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        returned = fn(*args, **kw)
        above = max(0, tracemalloc.get_traced_memory()[1] - before)
    except BaseException:
        if not nested:
            tracemalloc.stop()
        raise
    if not nested:
        tracemalloc.stop()
    if isinstance(returned, np.ndarray):
        returned = [returned]
    out = 0
    if isinstance(returned, (list, tuple)):
        for x in returned:
            out += x.nbytes if isinstance(x, np.ndarray) else 0
    return MemoryRecord(
        label,
        tuple(x.shape for x in inputs),
        str(np.result_type(*inputs)) if inputs else "",
        sum(x.nbytes for x in inputs),
        out,
        above,
        above - out,
    )


def profile_memory(
    fns: Mapping[str, Callable[..., object]],
    cases: Sequence[tuple[tuple[int, ...], ...]],
    dtype: str = "float32",
    seed: int = 0,
) -> list[MemoryRecord]:
    """One record for each (name, case), names outermost, both in the order given; the label is the name."""
    result = []
    for label, fn in fns.items():
        for case in cases:
            draw = np.random.default_rng(seed).standard_normal
            result.append(measure_peak(fn, *(draw(shape).astype(dtype) for shape in case), label=label))
    return result


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent e of `values ≈ c · sizes^e`: least-squares slope of log(values) on log(sizes)."""
    points = list(zip(sizes, values, strict=True))
    if len(points) < 2 or min(map(min, points)) <= 0:
        raise ValueError("fit_exponent wants two positive points or more")
    logs = [(math.log(s), math.log(v)) for s, v in points]
    centre = [sum(column) / len(logs) for column in zip(*logs, strict=True)]
    covariance = sum((x - centre[0]) * (y - centre[1]) for x, y in logs)
    return covariance / sum((x - centre[0]) ** 2 for x, _ in logs)


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
