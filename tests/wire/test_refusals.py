"""What a decoder and an encoder refuse, with the reason in words."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import torch

from llmkata.wire import TRUSTED, UNTRUSTED, Decoder, Hooks, Limits, WireError, decode, encode, tags

from .values import deep

u8, u32, u64, i64 = (struct.Struct(f"<{c}").pack for c in "BIQq")


def text(s: str) -> bytes:
    return u32(len(s.encode())) + s.encode()


def refused(data: bytes, reason: str, limits: Limits = UNTRUSTED) -> None:
    with pytest.raises(WireError, match=reason):
        decode(data, limits=limits)


def array(dtype: str, shape, strides, offset: int, buffer: bytes, claimed: int | None = None) -> bytes:
    return b"".join([tags.ARRAY, text(dtype), u8(len(shape)), *map(u64, shape), *map(i64, strides), u64(offset),
                     u64(len(buffer) if claimed is None else claimed), buffer])


def tensor(dtype: str, shape, strides, buffer: bytes) -> bytes:
    return b"".join([tags.TENSOR, text(dtype), u8(len(shape)), *map(u64, shape), *map(i64, strides), u64(len(buffer)), buffer])


# ---- values that cannot be sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, dict])
def test_cycles(make):
    v = make()
    v.append(v) if isinstance(v, list) else v.update(me=v)
    with pytest.raises(WireError, match="contains itself"):
        encode(v)


def test_the_same_value_twice_is_no_cycle():
    v = [1]
    assert decode(encode([v, v, (v, v)])) == [[1], [1], ([1], [1])]


def test_depth():
    most = UNTRUSTED.max_depth
    assert decode(encode(deep(most), limits=UNTRUSTED), limits=UNTRUSTED) == deep(most)
    with pytest.raises(WireError, match="nested deeper"):
        encode(deep(most + 1), limits=UNTRUSTED)
    refused(encode(deep(most + 1), limits=TRUSTED), "nested deeper")


def test_what_was_answered_can_be_handed_in_again():
    answer = decode(encode(deep(UNTRUSTED.max_depth), limits=UNTRUSTED), limits=UNTRUSTED)
    encode({"args": (answer, [answer])}, limits=TRUSTED)


def test_sizes():
    small = Limits(max_frame=1000, max_items=50, max_elements=100)
    for v, reason in ((b"x" * 2000, "larger than 1000"), ([None] * 60, "more than 50"), (list(range(60)), "more than 50"),
                      (np.zeros(101, "i1"), "exceeds the limit"), (torch.zeros(200), "exceeds the limit")):
        with pytest.raises(WireError, match=reason):
            decode(encode(v, limits=small), limits=small)
        decode(encode(v))


def test_large_integers():
    for n in (2**8000, -(2**8000)):
        assert decode(encode(n)) == n
        str(n)  # can be shown
    with pytest.raises(WireError, match="integer of"):
        encode(2**9000)
    refused(tags.BIGINT + u32(5000) + b"\1" * 5000, "integer of 5000 bytes")


# ---- messages that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "past the end"),
    (b"?", "unknown tag"),
    (tags.INT + b"\0", "past the end"),
    (tags.STR + u32(2**32 - 1), "past the end"),
    (tags.LIST + u32(2**32 - 1), "past the end"),
    (tags.DICT + u32(2**31), "past the end"),
    (tags.INTS + u32(2**32 - 1), "more than"),
    (tags.FLOATS + u32(1000), "past the end"),
    (tags.STR + u32(1) + b"\xff", "not UTF-8"),
    (tags.NONE + tags.NONE, "bytes after the value"),
    (tags.DICT + u32(2) + (tags.INT + i64(1) + tags.NONE) * 2, "a key twice"),
    (tags.DICT + u32(2) + tags.INT + i64(1) + tags.NONE + tags.TRUE + tags.NONE, "a key twice"),
    (tags.DICT + u32(1) + tags.LIST + u32(0) + tags.NONE, "cannot be hashed"),
    (tags.SET + u32(2) + tags.NONE * 2, "a key twice"),
    (tags.SET + u32(1) + tags.DICT + u32(0), "cannot be hashed"),
    (tags.RECORD + text("R") + u64(1) + u32(2) + (text("x") + tags.NONE) * 2, "a field twice"),
    (tags.RECORD + text("R") + u64(1) + u32(0), "record is not allowed"),
    (tags.HANDLE + u64(1) + text("T") + u64(1), "handle is not allowed"),
    (tags.CALLBACK + u64(1), "call-back is not allowed"),
    (tags.FRACTION + tags.INT + i64(1) + tags.INT + i64(0), "fraction"),
    (tags.FRACTION + tags.STR + text("1") + tags.INT + i64(1), "fraction"),
    (tags.DECIMAL + text("one"), "decimal"),
    (tags.DECIMAL + text("1" * 5000), "too long"),
    (tags.DTYPE + text("torch.quint8"), "not allowed"),
    (tags.DTYPE + text("numpy.|O"), "not allowed"),
    (tags.SCALAR + text("<f8") + u32(4) + b"\0" * 4, "wrong size"),
    (tags.SCALAR + text("|V8") + u32(8) + b"\0" * 8, "not allowed"),
    (tags.SCALAR + text("<U1") + u32(4) + b"\xff" * 4, "no values of its dtype"),
    (tags.META + text("float32") + u8(200), "200 dimensions"),
    (tags.META + text("float32") + u8(2) + u64(2**40) * 2, "exceeds the limit"),
])
def test_lies(data, reason):
    refused(data, reason)


def test_no_pickle_is_read():
    """The road exists outwards only: the decoder of the trusted side has no hook for it."""
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    import pickle

    data = pickle.dumps(Bomb())
    refused(tags.PICKLED + u32(len(data)) + data, "pickled data is not allowed")
    refused(tags.LIST + u32(1) + tags.PICKLED + u32(len(data)) + data, "pickled data is not allowed")


@pytest.mark.parametrize(("data", "reason"), [
    (array("<f8", [3], [8], 0, b"\0" * 16), "outside its buffer"),
    (array("<f8", [3], [-8], 8, b"\0" * 24), "outside its buffer"),
    (array("<f8", [2], [2**62], 0, b"\0" * 24), "outside its buffer"),
    (array("<f8", [2], [8], 2**63, b"\0" * 24), "outside its buffer"),
    (array("<f8", [3], [8], 0, b"\0" * 24, claimed=2**60), "past the end"),
    (array("|O", [1], [8], 0, b"\0" * 8), "not allowed"),
    (array("<f8,<f8", [1], [16], 0, b"\0" * 16), "not allowed"),
    (array("<M8", [1], [8], 0, b"\0" * 8), "not allowed"),
    (array("<U999999999", [1], [0], 0, b"\0" * 8), "too wide|not allowed"),
    (array("|b1", [2], [1], 0, b"\1\2"), "no values of its dtype"),
    (array("<U1", [1], [4], 0, b"\xff" * 4), "no values of its dtype"),
    (array("<f8", [2**27], [0], 0, b"\0" * 8), "exceeds the limit"),
    (array("<f8", [2**63, 2**63], [0, 0], 0, b"\0" * 8), "exceeds the limit"),
    (tensor("float32", [3], [1], b"\0" * 8), "does not fit"),
    (tensor("float32", [3], [2], b"\0" * 12), "does not fit"),
    (tensor("float32", [3], [-1], b"\0" * 12), "does not fit"),
    (tensor("float32", [2, 2], [2**62, 1], b"\0" * 16), "does not fit"),
    (tensor("float64", [2**27], [0], b"\0" * 8), "exceeds the limit"),
    (tensor("bool", [2], [1], b"\1\7"), "no values of its dtype"),
    (tensor("object", [1], [1], b"\0" * 8), "not allowed"),
    (tensor("qint8", [1], [1], b"\0"), "not allowed"),
])
def test_arrays_that_reach_outside_or_are_none(data, reason):
    refused(data, reason)


def test_strange_but_true_arrays():
    assert decode(array("<f8", [2, 3], [0, 8], 0, np.arange(3.0).tobytes())).tolist() == [[0, 1, 2]] * 2
    assert decode(array("<f8", [3], [-8], 16, np.arange(3.0).tobytes())).tolist() == [2, 1, 0]
    assert decode(array("<f8", [0, 2**39], [8, 8], 0, b"")).shape == (0, 2**39)
    assert decode(tensor("float32", [2, 0], [7, 9], b"")).shape == (2, 0)


def test_crafted_collisions_are_not_looked_up():
    """Keys with one hash make a table a list, and n insertions n² comparisons: they are refused before the first."""
    compared = 0

    class Key(int):
        def __hash__(self):
            return 7

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return int.__eq__(self, other)

    class Keys(Hooks):
        def handle(self, ident, type_name, class_key):
            return Key(ident)

    keys = [tags.HANDLE + u64(k) + text("T") + u64(1) for k in range(500)]
    for message in (tags.SET + u32(500) + b"".join(keys), tags.DICT + u32(500) + b"".join(k + tags.NONE for k in keys)):
        with pytest.raises(WireError, match="same hash"):
            Decoder(message, Keys(), UNTRUSTED).read()
    assert compared == 0
    set(map(Key, range(500)))
    assert compared > 100_000


def test_crafted_integers():
    prime = 2**61 - 1  # hash(n) is n modulo this prime
    assert len({hash(k * prime) for k in range(1, 100)}) == 1
    refused(encode({k * prime: None for k in range(1, 100)}), "same hash")
    few = {k * prime: None for k in range(1, 10)}
    assert decode(encode(few)) == few


def test_a_lying_length_costs_nothing():
    """A message of a few bytes that promises gigabytes is refused before anything is allocated for it."""
    lies = [tags.BYTES + u32(2**32 - 1), tags.STR + u32(2**31), tags.LIST + u32(2**32 - 1), tags.INTS + u32(2**27),
            array("|u1", [2**27], [1], 0, b"", claimed=2**27), tensor("uint8", [2**27], [1], b""),
            tags.DICT + u32(2**32 - 1), tags.SET + u32(2**32 - 1), tags.RECORD + text("R") + u64(1) + u32(2**31),
            tags.SCALAR + text("|S999999") + u32(999_999)]
    for data in lies:
        tracemalloc.start()
        with pytest.raises(WireError):
            decode(data, limits=UNTRUSTED)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000, data[:20]


def test_torch_faults_are_refusals(monkeypatch):
    """Whatever NumPy or torch raises over a description is one kind of refusal."""
    def broken(*_, **__):
        raise RuntimeError("internal assert")

    data = encode(torch.ones(2))
    monkeypatch.setattr(torch, "as_strided", broken)
    refused(data, "cannot be read .RuntimeError")


def test_names_are_utf8_values_may_hold_surrogates():
    assert decode(encode("\ud800")) == "\ud800"

    class Names(Hooks):
        def handle(self, ident, type_name, class_key):
            return type_name

    surrogate = "\ud800".encode("utf-8", "surrogatepass")
    data = tags.HANDLE + u64(1) + u32(len(surrogate)) + surrogate + u64(1)
    with pytest.raises(WireError, match="not UTF-8"):
        Decoder(data, Names(), UNTRUSTED).read()


def test_as_many_collisions_as_allowed():
    """Sixteen keys with one hash are looked up, seventeen are not."""

    class Key(int):
        def __hash__(self):
            return 7

    class Keys(Hooks):
        def handle(self, ident, type_name, class_key):
            return Key(ident)

    def message(n):
        return tags.SET + u32(n) + b"".join(tags.HANDLE + u64(k) + text("T") + u64(1) for k in range(n))

    assert len(Decoder(message(16), Keys(), UNTRUSTED).read()) == 16
    with pytest.raises(WireError, match="same hash"):
        Decoder(message(17), Keys(), UNTRUSTED).read()
