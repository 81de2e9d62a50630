"""Bytes -> values, of exact types only. Depth, counts and bytes are checked before anything is allocated.

No pickle is read from the untrusted side: the tags for it and for call-backs exist outwards only, and a decoder
refuses them unless its hooks provide them.
"""

from __future__ import annotations

import collections
import decimal
import fractions
import math
import pathlib
import struct
from typing import Any

import numpy as np

from . import tags
from .limits import Limits, WireError

_u8, _u32, _u64, _i64, _f64 = (struct.Struct(f) for f in ("<B", "<I", "<Q", "<q", "<d"))

_SHORT = "a length runs past the end of the message"


class Hooks:
    """What a side makes of handles, records, call-backs and pickles. The base class refuses all of them."""

    def handle(self, ident: int, type_name: str, class_key: int) -> Any:
        """A handle of the other side (or of this side, come back)."""
        raise WireError("a handle is not allowed here")

    def record(self, type_name: str, ident: int, fields: dict[str, Any]) -> Any:
        """A dataclass or named tuple of the other side."""
        raise WireError("a record is not allowed here")

    def callback(self, ident: int) -> Any:
        """A function of the grader."""
        raise WireError("a call-back is not allowed here")

    def pickled(self, data: bytes) -> Any:
        """An object of an installed library."""
        raise WireError("pickled data is not allowed here")


class Decoder:
    """Reads one value from ``data``. ``kinds`` lists the names of the relatives met, in order."""

    def __init__(self, data: bytes | bytearray | memoryview, hooks: Hooks, limits: Limits) -> None:
        self.data = memoryview(data).toreadonly()
        self.end = len(self.data)
        self.at = 0
        self.items = 0
        self.hooks, self.limits = hooks, limits
        self.kinds: list[str] = []

    def read(self) -> Any:
        """The one value in ``data``. Raises WireError for anything else than exactly one well-formed value."""
        try:
            value = self.value()
        except WireError:
            raise
        except Exception as e:  # noqa: BLE001 - NumPy and torch raise what they like where a description is no array
            raise WireError(f"the message cannot be read ({type(e).__name__})") from None
        if self.at != self.end:
            raise WireError("bytes after the value")
        return value

    def take(self, n: int) -> memoryview:
        """The next ``n`` bytes."""
        at = self.at
        if n > self.end - at:
            raise WireError(_SHORT)
        self.at = at + n
        return self.data[at: at + n]

    def unpack(self, s: struct.Struct) -> Any:
        """The next number of format ``s``."""
        at = self.at
        if s.size > self.end - at:
            raise WireError(_SHORT)
        self.at = at + s.size
        return s.unpack_from(self.data, at)[0]

    def string(self, errors: str = "strict") -> str:
        """A length-prefixed UTF-8 string. Names are strict: what is not UTF-8 cannot be stored or shown."""
        try:
            return bytes(self.take(self.unpack(_u32))).decode("utf-8", errors)
        except UnicodeDecodeError:
            raise WireError("a string is not UTF-8") from None

    def count(self) -> int:
        """A number of items; each takes at least one byte, so it cannot exceed what is left."""
        n = self.unpack(_u32)
        if n > self.end - self.at:
            raise WireError("a count runs past the end of the message")
        return n

    def value(self, depth: int = 0) -> Any:
        """The next value."""
        self.items += 1
        if self.items > self.limits.max_items:
            raise WireError(f"more than {self.limits.max_items} values in one message")
        if depth > self.limits.max_depth:
            raise WireError(f"nested deeper than {self.limits.max_depth}")
        at = self.at
        if at >= self.end:
            raise WireError(_SHORT)
        self.at = at + 1
        reader = _BY_BYTE[self.data[at]]
        if reader is None:
            raise WireError("unknown tag")
        return reader(self, depth + 1)


def _bigint(d: Decoder, _: int) -> int:
    n = d.unpack(_u32)
    if n > d.limits.max_int_bytes:
        raise WireError(f"integer of {n} bytes")
    return int.from_bytes(d.take(n), "little", signed=True)


def _items(d: Decoder, depth: int) -> list:
    return [d.value(depth) for _ in range(d.count())]


def _hashable(d: Decoder, keys: list, what: str) -> list:
    """``keys``, once it is known that they can be put into a table: hashable, and without crafted collisions."""
    try:
        hashes = set(map(hash, keys))
    except TypeError:
        raise WireError(f"a {what} holds a key that cannot be hashed") from None
    if len(hashes) <= len(keys) - d.limits.max_collisions:  # only then may some hash occur more often
        most = max(collections.Counter(map(hash, keys)).values())
        if most > d.limits.max_collisions:
            raise WireError(f"a {what} holds too many keys with the same hash")
    if len(set(keys)) != len(keys):
        raise WireError(f"a {what} holds a key twice")
    return keys


def _dict(d: Decoder, depth: int) -> dict:
    keys, values = [], []
    for _ in range(d.count()):
        keys.append(d.value(depth))
        values.append(d.value(depth))
    return dict(zip(_hashable(d, keys, "dict"), values, strict=True))


def _packed(dtype: str) -> Any:
    def read(d: Decoder, _: int) -> list:
        n = d.unpack(_u32)
        d.items += n
        if d.items > d.limits.max_items:
            raise WireError(f"more than {d.limits.max_items} values in one message")
        return np.frombuffer(d.take(8 * n), dtype).tolist()

    return read


def _shape(d: Decoder) -> tuple[tuple[int, ...], int]:
    ndim = d.unpack(_u8)
    if ndim > d.limits.max_dims:
        raise WireError(f"{ndim} dimensions")
    shape = tuple(d.unpack(_u64) for _ in range(ndim))
    elements = math.prod(shape)
    if elements > d.limits.max_elements or any(n > 1 << 40 for n in shape):
        raise WireError(f"an array of {elements} elements exceeds the limit")
    return shape, elements


def _numpy_dtype(name: str) -> np.dtype:
    if not (2 <= len(name) <= 12 and name[0] in "<|>" and name[1] in "biufcSU" and name[2:].isdigit()):
        raise WireError("a NumPy dtype that is not allowed")
    try:
        dtype = np.dtype(name)
    except TypeError:
        raise WireError("a NumPy dtype that is not allowed") from None
    if dtype.itemsize > 1 << 20:
        raise WireError("a NumPy dtype that is too wide")
    return dtype


def _array(d: Decoder, _: int) -> np.ndarray:
    dtype = _numpy_dtype(d.string())
    shape, elements = _shape(d)
    strides = tuple(d.unpack(_i64) for _ in shape)
    offset, n = d.unpack(_u64), d.unpack(_u64)
    if elements * dtype.itemsize > d.limits.max_frame:
        raise WireError(f"an array of {elements} elements exceeds the limit")
    low = offset + sum((a - 1) * s for a, s in zip(shape, strides) if s < 0)
    high = offset + sum((a - 1) * s for a, s in zip(shape, strides) if s > 0) + dtype.itemsize
    if elements and (low < 0 or high > n):
        raise WireError("an array reaches outside its buffer")
    buffer = bytearray(d.take(n))
    if elements == 0:
        return np.empty(shape, dtype)
    return _sound(np.ndarray(shape, dtype, buffer, offset, strides))


def _sound(a: np.ndarray) -> np.ndarray:
    """``a``, once its bytes are values of its dtype: true and false are 1 and 0, characters are Unicode's."""
    if a.dtype.kind in "bU" and a.dtype.itemsize:
        flat = np.ascontiguousarray(a).reshape(-1)
        words = flat.view(np.uint8) if a.dtype.kind == "b" else flat.view(a.dtype.str[0] + "u4")
        if words.size and int(words.max()) > (1 if a.dtype.kind == "b" else 0x10FFFF):
            raise WireError("an array holds bytes that are no values of its dtype")
    return a


def _scalar(d: Decoder, _: int) -> np.generic:
    dtype = _numpy_dtype(d.string())
    n = d.unpack(_u32)
    if n != dtype.itemsize or n == 0:
        raise WireError("a NumPy scalar of the wrong size")
    return _sound(np.frombuffer(bytes(d.take(n)), dtype))[0]


_TORCH_DTYPES = frozenset(
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 uint16 uint32 uint64 "
    "bool complex64 complex128".split()
)


def _torch_dtype(name: str) -> Any:
    import torch

    if name not in _TORCH_DTYPES:
        raise WireError("a torch dtype that is not allowed")
    return getattr(torch, name)


def _tensor(d: Decoder, _: int) -> Any:
    import torch

    dtype = _torch_dtype(d.string())
    shape, elements = _shape(d)
    strides = tuple(d.unpack(_i64) for _ in shape)
    n = d.unpack(_u64)
    span = 0 if elements == 0 else sum((a - 1) * s for a, s in zip(shape, strides)) + 1
    if any(s < 0 for s in strides) or n != span * dtype.itemsize:
        raise WireError("a tensor's buffer does not fit its strides")
    if elements * dtype.itemsize > d.limits.max_frame:
        raise WireError(f"a tensor of {elements} elements exceeds the limit")
    data = bytearray(d.take(n))
    if elements == 0:
        return torch.empty_strided(shape, strides, dtype=dtype)
    if dtype is torch.bool:
        _sound(np.frombuffer(data, np.bool_))
    return torch.as_strided(torch.frombuffer(data, dtype=dtype), shape, strides, 0)


def _meta(d: Decoder, _: int) -> Any:
    import torch

    dtype = _torch_dtype(d.string())
    return torch.empty(_shape(d)[0], dtype=dtype, device="meta")


def _dtype(d: Decoder, _: int) -> Any:
    name = d.string()
    return _numpy_dtype(name[6:]) if name.startswith("numpy.") else _torch_dtype(name.removeprefix("torch."))


def _fraction(d: Decoder, depth: int) -> fractions.Fraction:
    a, b = d.value(depth), d.value(depth)
    if type(a) is not int or type(b) is not int or b == 0:
        raise WireError("a fraction that is none")
    return fractions.Fraction(a, b)


def _decimal(d: Decoder, _: int) -> decimal.Decimal:
    text = d.string()
    if len(text) > 4096:
        raise WireError("a decimal that is too long")
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise WireError("a decimal that is none") from None


def _kin(d: Decoder, depth: int) -> Any:
    name = d.string()
    value = d.value(depth)
    d.kinds.append(name[:80])
    return value


def _record(d: Decoder, depth: int) -> Any:
    name, ident = d.string(), d.unpack(_u64)
    fields: dict[str, Any] = {}
    for _ in range(d.count()):
        key = d.string()
        if key in fields:
            raise WireError("a record holds a field twice")
        fields[key] = d.value(depth)
    return d.hooks.record(name[:200], ident, fields)


def _handle(d: Decoder, _: int) -> Any:
    return d.hooks.handle(d.unpack(_u64), d.string()[:200], d.unpack(_u64))


_READERS = {
    tags.NONE: lambda d, _: None,
    tags.TRUE: lambda d, _: True,
    tags.FALSE: lambda d, _: False,
    tags.INT: lambda d, _: d.unpack(_i64),
    tags.BIGINT: _bigint,
    tags.FLOAT: lambda d, _: d.unpack(_f64),
    tags.COMPLEX: lambda d, _: complex(d.unpack(_f64), d.unpack(_f64)),
    tags.STR: lambda d, _: d.string("surrogatepass"),
    tags.BYTES: lambda d, _: bytes(d.take(d.unpack(_u32))),
    tags.LIST: _items,
    tags.TUPLE: lambda d, depth: tuple(_items(d, depth)),
    tags.SET: lambda d, depth: set(_hashable(d, _items(d, depth), "set")),
    tags.FROZENSET: lambda d, depth: frozenset(_hashable(d, _items(d, depth), "set")),
    tags.DICT: _dict,
    tags.INTS: _packed("<i8"),
    tags.FLOATS: _packed("<f8"),
    tags.ARRAY: _array,
    tags.TENSOR: _tensor,
    tags.META: _meta,
    tags.SCALAR: _scalar,
    tags.DTYPE: _dtype,
    tags.SLICE: lambda d, depth: slice(d.value(depth), d.value(depth), d.value(depth)),
    tags.ELLIPSIS: lambda d, _: ...,
    tags.PATH: lambda d, _: pathlib.Path(d.string("surrogatepass")),
    tags.FRACTION: _fraction,
    tags.DECIMAL: _decimal,
    tags.KIN: _kin,
    tags.RECORD: _record,
    tags.HANDLE: _handle,
    tags.CALLBACK: lambda d, _: d.hooks.callback(d.unpack(_u64)),
    tags.PICKLED: lambda d, _: d.hooks.pickled(bytes(d.take(d.unpack(_u32)))),
}


#: By the one byte of the tag.
_BY_BYTE = [_READERS.get(bytes([b])) for b in range(256)]


def decode(data: bytes | bytearray, hooks: Hooks | None = None, limits: Limits = Limits()) -> Any:  # noqa: B008
    """The one value in ``data``. Raises WireError for anything else than exactly one well-formed value."""
    return Decoder(data, hooks or Hooks(), limits).read()
