"""Values -> bytes. What is not on the closed list goes through the hook (a handle, a call-back, or an error)."""

from __future__ import annotations

import ctypes
import decimal
import fractions
import pathlib
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from . import tags
from .limits import Limits, WireError

_u8, _u32, _u64, _i64, _f64 = (struct.Struct(f) for f in ("<B", "<I", "<Q", "<q", "<d"))

#: A view whose span is more than this many times its own bytes travels as a contiguous copy.
_SPAN_FACTOR = 4

Hook = Callable[["Encoder", Any, int], None]


class Encoder:
    """Appends encoded values to ``out``. ``fallback(encoder, value, depth)`` writes what the table does not know."""

    def __init__(self, fallback: Hook, limits: Limits) -> None:
        self.out = bytearray()
        self.fallback = fallback
        self.limits = limits
        self.items = 0
        #: Identities of the containers being written: a value must not contain itself.
        self.open: set[int] = set()

    def value(self, v: Any, depth: int = 0) -> None:
        """Encode ``v``. Raises WireError for cycles, depth, size."""
        self.items += 1
        if self.items > self.limits.max_items:
            raise WireError(f"more than {self.limits.max_items} values in one message")
        if depth > self.limits.max_depth:
            raise WireError(f"nested deeper than {self.limits.max_depth}")
        writer = _WRITERS.get(type(v))
        if writer is not None:
            writer(self, v, depth)
        elif not self._relative(v, depth):
            self.fallback(self, v, depth)
        if len(self.out) > self.limits.max_frame:
            raise WireError(f"message larger than {self.limits.max_frame} bytes")

    def string(self, s: str) -> None:
        """A length-prefixed UTF-8 string without a tag."""
        data = s.encode("utf-8", "surrogatepass")
        self.out += _u32.pack(len(data)) + data

    def _relative(self, v: Any, depth: int) -> bool:
        """Types known by module only when it is loaded, and well-known relatives of plain types."""
        torch = sys.modules.get("torch")
        if torch is not None:
            if isinstance(v, torch.Tensor):
                return _tensor(self, v, torch)
            if isinstance(v, torch.dtype):
                self.out += tags.DTYPE
                self.string(str(v))
                return True
            if isinstance(v, torch.Size):
                return self._kin("torch.Size", tuple(int(x) for x in v), depth)
        if isinstance(v, np.ndarray):
            return _array(self, v)
        if isinstance(v, np.generic):
            return _scalar(self, v)
        if isinstance(v, np.dtype):
            self.out += tags.DTYPE
            self.string("numpy." + v.str)
            return True
        if isinstance(v, pathlib.PurePath):
            self.out += tags.PATH
            self.string(str(v))
            return True
        plain = plain_relative(v)
        if plain is not None:
            return self._kin(type(v).__name__, plain, depth)
        return False

    def _kin(self, name: str, plain: Any, depth: int) -> bool:
        self.out += tags.KIN
        self.string(name)
        self.value(plain, depth + 1)
        return True


def plain_relative(v: Any) -> Any | None:
    """The plain value of a standard-library relative (its *exact* type is checked: subclasses of learners are not)."""
    import collections

    t = type(v)
    if t in (collections.OrderedDict, collections.defaultdict, collections.Counter):
        return dict(v)
    if t is collections.deque or t is range or t in (type({}.keys()), type({}.values())):
        return list(v)
    if t is type({}.items()):
        return [tuple(pair) for pair in v]
    if t is bytearray or t is memoryview:
        return bytes(v)
    if isinstance(v, tuple) and hasattr(t, "n_sequence_fields"):  # torch.return_types.*, os.stat_result
        return tuple(v)
    return None


def _write_int(e: Encoder, v: int, _: int) -> None:
    if -(1 << 63) <= v < 1 << 63:
        e.out += tags.INT + _i64.pack(v)
        return
    n = v.bit_length() // 8 + 1
    if n > e.limits.max_int_bytes:
        raise WireError(f"integer of {n} bytes")
    e.out += tags.BIGINT + _u32.pack(n) + v.to_bytes(n, "little", signed=True)


def _write_str(e: Encoder, v: str, _: int) -> None:
    e.out += tags.STR
    e.string(v)


def _write_bytes(e: Encoder, v: bytes, _: int) -> None:
    e.out += tags.BYTES + _u32.pack(len(v)) + v


def _write_list(e: Encoder, v: list, depth: int) -> None:
    if len(v) > 8:
        kinds = set(map(type, v))
        if kinds == {int} and all(-(1 << 63) <= x < 1 << 63 for x in v):
            e.out += tags.INTS + _u32.pack(len(v)) + np.asarray(v, "<i8").tobytes()
            return
        if kinds == {float}:
            e.out += tags.FLOATS + _u32.pack(len(v)) + np.asarray(v, "<f8").tobytes()
            return
    _sequence(e, tags.LIST, v, v, depth)


def _sequence(e: Encoder, tag: bytes, v: Any, items: Any, depth: int) -> None:
    if id(v) in e.open:
        raise WireError("a value contains itself")
    e.open.add(id(v))
    e.out += tag + _u32.pack(len(v))
    for x in items:
        e.value(x, depth + 1)
    e.open.discard(id(v))


def _write_dict(e: Encoder, v: dict, depth: int) -> None:
    if id(v) in e.open:
        raise WireError("a value contains itself")
    e.open.add(id(v))
    e.out += tags.DICT + _u32.pack(len(v))
    for k, x in v.items():
        e.value(k, depth + 1)
        e.value(x, depth + 1)
    e.open.discard(id(v))


def _write_set(e: Encoder, v: Any, depth: int) -> None:
    # Sorted by encoding so that equal sets give equal bytes (digests of inputs key caches).
    parts = []
    for x in v:
        sub = Encoder(e.fallback, e.limits)
        sub.value(x, depth + 1)
        parts.append(bytes(sub.out))
    e.out += (tags.SET if type(v) is set else tags.FROZENSET) + _u32.pack(len(parts)) + b"".join(sorted(parts))


def _write_slice(e: Encoder, v: slice, depth: int) -> None:
    e.out += tags.SLICE
    for x in (v.start, v.stop, v.step):
        e.value(x, depth + 1)


def _write_fraction(e: Encoder, v: fractions.Fraction, depth: int) -> None:
    e.out += tags.FRACTION
    e.value(v.numerator, depth + 1)
    e.value(v.denominator, depth + 1)


def _write_decimal(e: Encoder, v: decimal.Decimal, _: int) -> None:
    e.out += tags.DECIMAL
    e.string(str(v))


_WRITERS: dict[type, Callable[[Encoder, Any, int], None]] = {
    type(None): lambda e, v, d: e.out.extend(tags.NONE),
    bool: lambda e, v, d: e.out.extend(tags.TRUE if v else tags.FALSE),
    int: _write_int,
    float: lambda e, v, d: e.out.extend(tags.FLOAT + _f64.pack(v)),
    complex: lambda e, v, d: e.out.extend(tags.COMPLEX + _f64.pack(v.real) + _f64.pack(v.imag)),
    str: _write_str,
    bytes: _write_bytes,
    list: _write_list,
    tuple: lambda e, v, d: _sequence(e, tags.TUPLE, v, v, d),
    dict: _write_dict,
    set: _write_set,
    frozenset: _write_set,
    slice: _write_slice,
    type(...): lambda e, v, d: e.out.extend(tags.ELLIPSIS),
    fractions.Fraction: _write_fraction,
    decimal.Decimal: _write_decimal,
}


def _geometry(e: Encoder, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    e.out += struct.pack(f"<B{len(shape)}Q{len(strides)}q", len(shape), *shape, *strides)


def _array(e: Encoder, a: np.ndarray) -> bool:
    """An ndarray by its span: strides 0 and negative survive. Object and structured dtypes do not travel."""
    if a.dtype.kind not in "biufcSU" or a.ndim > e.limits.max_dims:
        return False
    a = np.ndarray.view(a, np.ndarray)
    flipped = a[tuple(slice(None, None, -1) if s < 0 else slice(None) for s in a.strides)] if a.ndim else a
    span = 0 if a.size == 0 else sum((n - 1) * s for n, s in zip(flipped.shape, flipped.strides)) + a.itemsize
    if span > _SPAN_FACTOR * a.nbytes + 1024:
        a = np.ascontiguousarray(a)
        flipped, span = a, a.nbytes
    _check_elements(e, a.size, span)
    offset = 0 if a.size == 0 else sum(-(n - 1) * s for n, s in zip(a.shape, a.strides) if s < 0)
    e.out += tags.ARRAY
    e.string(a.dtype.str)
    _geometry(e, a.shape, a.strides if a.size else (0,) * a.ndim)
    e.out += _u64.pack(offset) + _u64.pack(span)
    if span:
        e.out += ctypes.string_at(flipped.__array_interface__["data"][0], span)
    return True


def _scalar(e: Encoder, v: np.generic) -> bool:
    if v.dtype.kind not in "biufcSU":
        return False
    data = v.tobytes()
    e.out += tags.SCALAR
    e.string(v.dtype.str)
    e.out += _u32.pack(len(data)) + data
    return True


def _tensor(e: Encoder, t: Any, torch: Any) -> bool:
    """A dense tensor by its span (bfloat16 included). Parameters and subclasses travel as their plain data."""
    try:
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            t = torch.Tensor.detach(t)
            if t.layout != torch.strided or t.is_quantized or t.dim() > e.limits.max_dims:
                return False
            dtype = str(t.dtype).removeprefix("torch.")
            if t.device.type == "meta":
                e.out += tags.META
                e.string(dtype)
                e.out += _u8.pack(t.dim()) + b"".join(_u64.pack(n) for n in t.shape)
                return True
            t = torch.resolve_neg(torch.resolve_conj(t)).cpu()
            size, strides = tuple(t.shape), tuple(t.stride())
            n = 0 if t.numel() == 0 else sum((a - 1) * s for a, s in zip(size, strides)) + 1
            if n > _SPAN_FACTOR * t.numel() + 1024:
                t = t.contiguous()
                strides, n = tuple(t.stride()), t.numel()
            _check_elements(e, t.numel(), n * t.element_size())
            e.out += tags.TENSOR
            e.string(dtype)
            _geometry(e, size, strides)
            e.out += _u64.pack(n * t.element_size())
            if n:
                flat = torch.as_strided(t, (n,), (1,), t.storage_offset())
                e.out += ctypes.string_at(flat.data_ptr(), n * t.element_size())
            return True
    except (RuntimeError, NotImplementedError):
        return False


def _check_elements(e: Encoder, elements: int, nbytes: int) -> None:
    if elements > e.limits.max_elements or nbytes + len(e.out) > e.limits.max_frame:
        raise WireError(f"an array of {elements} elements ({nbytes} bytes) exceeds the limit of a message")


def refuse(_: Encoder, v: Any, depth: int) -> None:
    """The fallback that knows nothing: raises WireError naming the type."""
    raise WireError(f"a value of type {type(v).__module__}.{type(v).__qualname__} cannot cross the boundary")


def encode(v: Any, fallback: Hook = refuse, limits: Limits = Limits()) -> bytearray:  # noqa: B008
    """Bytes of ``v``."""
    e = Encoder(fallback, limits)
    e.value(v)
    return e.out
