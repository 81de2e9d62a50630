"""Hypothesis strategies of everything that may cross, and equality that tells types and layouts apart."""

from __future__ import annotations

import decimal
import fractions
import math
import pathlib
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch

NUMPY_DTYPES = ["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", ">f8", "complex64", "complex128", "S3", "<U2"]
TORCH_DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
                torch.complex64, torch.float8_e4m3fn]

_shapes = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def arrays(draw: Any) -> np.ndarray:
    """An array, often a strange view of one: transposed, reversed, strided, broadcast, empty, 0-d."""
    dtype, shape = np.dtype(draw(st.sampled_from(NUMPY_DTYPES))), tuple(draw(_shapes))
    a = np.arange(math.prod(shape)).reshape(shape)
    a = np.asarray(a % 2 if dtype.kind == "b" else a).astype(dtype)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["transpose", "reverse", "step", "broadcast", "pick"]))
        if kind == "transpose":
            a = a.T
        elif kind == "reverse" and a.ndim:
            a = a[..., ::-1]
        elif kind == "step" and a.ndim:
            a = a[::2]
        elif kind == "broadcast":
            a = np.broadcast_to(a, (draw(st.integers(0, 3)), *a.shape))
        elif kind == "pick" and a.ndim and a.shape[0]:
            a = np.asarray(a[draw(st.integers(0, a.shape[0] - 1))])
    return a


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    """A tensor, often a strange view of one."""
    dtype, shape = draw(st.sampled_from(TORCH_DTYPES)), tuple(draw(_shapes))
    t = (torch.arange(math.prod(shape)) % 5).reshape(shape).to(torch.float32).to(dtype)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["transpose", "step", "expand", "pick", "conj"]))
        if kind == "transpose" and t.dim() > 1:
            t = t.transpose(0, -1)
        elif kind == "step" and t.dim():
            t = t[..., ::2]
        elif kind == "expand":
            t = t.expand(draw(st.integers(0, 3)), *t.shape)
        elif kind == "pick" and t.dim() and t.shape[0]:
            t = t[draw(st.integers(0, t.shape[0] - 1))]
        elif kind == "conj" and t.is_complex():
            t = t.conj()
    return t


_hashables = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.binary(max_size=5) | st.fractions() | st.decimals(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)

leaves = (
    _hashables | st.floats() | st.complex_numbers() | arrays() | tensors()
    | st.sampled_from([..., torch.float32, np.dtype("<f4"), np.dtype("int64"), slice(1, None, -2), pathlib.Path("a/b")])
    | st.sampled_from([np.float32(1.5), np.int8(-3), np.bool_(True), np.complex64(1j), np.str_("ab"), np.float64("nan")])
    | st.builds(lambda n: torch.empty(n, 2, device="meta"), st.integers(0, 3))
    | st.lists(st.integers(-9, 9), min_size=9, max_size=20) | st.lists(st.floats(), min_size=9, max_size=20)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.sets(_hashables, max_size=4)
    | st.dictionaries(_hashables, inner, max_size=4), max_leaves=12)


def identical(a: Any, b: Any) -> bool:
    """Whether two values have the same types, dtypes, shapes and bits; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.device.type == "meta":
            return b.device.type == "meta" and (a.dtype, a.shape) == (b.dtype, b.shape)
        return (a.dtype, a.shape) == (b.dtype, b.shape) and _bits(a) == _bits(b)
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return list(map(_key, a)) == list(map(_key, b)) and all(map(identical, a.values(), b.values()))
    if isinstance(a, (set, frozenset)):
        return sorted(map(_key, a)) == sorted(map(_key, b))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b) or math.isnan(a) and math.isnan(b)
    if isinstance(a, complex):
        return identical(a.real, b.real) and identical(a.imag, b.imag)
    return a == b


def _bits(t: torch.Tensor) -> list[int]:
    return t.resolve_conj().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).tolist()


def _key(k: Any) -> str:
    if isinstance(k, (set, frozenset)):
        return f"{type(k).__name__}{sorted(map(_key, k))}"
    if isinstance(k, tuple):
        return f"({','.join(map(_key, k))})"
    return f"{type(k).__name__}:{k!r}"


def deep(depth: int, leaf: Any = None) -> Any:
    """``leaf`` inside ``depth`` lists."""
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def plain(value: Any) -> bool:
    """Whether ``value`` is made of the types of the closed list alone (no subclass of any)."""
    if type(value) in (list, tuple, set, frozenset):
        return all(map(plain, value))
    if type(value) is dict:
        return all(plain(k) and plain(v) for k, v in value.items())
    return type(value) in (type(None), bool, int, float, complex, str, bytes, slice, type(...), fractions.Fraction,
                           decimal.Decimal, torch.Tensor, np.ndarray, torch.dtype) or isinstance(
                               value, (np.generic, np.dtype, pathlib.PurePath))
