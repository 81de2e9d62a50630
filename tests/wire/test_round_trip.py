"""Everything on the closed list arrives as what it was: type, dtype, shape, strides, bits."""

from __future__ import annotations

import collections
import decimal
import fractions
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from llmkata.wire import UNTRUSTED, Decoder, Encoder, Hooks, WireError, decode, encode

from .values import arrays, identical, plain, tensors, values


def there_and_back(v):
    return decode(encode(v), limits=UNTRUSTED)


@given(values)
@settings(max_examples=300)
def test_values(v):
    got = there_and_back(v)
    assert identical(v, got), (v, got)
    assert plain(got)


@given(values)
@settings(max_examples=60)
def test_equal_values_give_equal_bytes(v):
    assert encode(v) == encode(there_and_back(v))


@given(arrays())
@settings(max_examples=200)
def test_strides_of_arrays_survive(a):
    got = there_and_back(a)
    if a.size:
        assert [s for n, s in zip(a.shape, got.strides) if n > 1] == [s for n, s in zip(a.shape, a.strides) if n > 1]
    assert got.flags.writeable  # a call-back may write to what it is handed


@given(tensors())
@settings(max_examples=200)
def test_strides_of_tensors_survive(t):
    got = there_and_back(t)
    if t.numel():
        assert [s for n, s in zip(t.shape, got.stride()) if n > 1] == [s for n, s in zip(t.shape, t.stride()) if n > 1]


def test_a_small_view_of_much_memory_travels_alone():
    for big in (np.zeros(10**6)[::99_999], torch.zeros(10**6)[::99_999]):
        assert len(encode(big)) < 2000 and identical(big, there_and_back(big))


def test_elements_that_share_memory_still_do():
    wide = torch.arange(8.0).unfold(0, 4, 1)
    got = there_and_back(wide)
    assert identical(wide, got) and got.untyped_storage().nbytes() == 8 * 4


def test_gradients_and_classes_of_tensors_are_left_behind():
    class Mine(torch.Tensor):
        pass

    for t in (torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True) * 2, torch.ones(2).as_subclass(Mine)):
        got = there_and_back(t)
        assert type(got) is torch.Tensor and not got.requires_grad and got.tolist() == t.tolist()


KIN = {
    "OrderedDict": (collections.OrderedDict(a=1), {"a": 1}),
    "defaultdict": (collections.defaultdict(int, a=1), {"a": 1}),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "deque": (collections.deque([1, 2]), [1, 2]),
    "range": (range(1, 6, 2), [1, 3, 5]),
    "dict_keys": ({"a": 1}.keys(), ["a"]),
    "dict_values": ({"a": 1}.values(), [1]),
    "dict_items": ({"a": 1}.items(), [("a", 1)]),
    "bytearray": (bytearray(b"ab"), b"ab"),
    "memoryview": (memoryview(b"ab"), b"ab"),
    "torch.Size": (torch.Size([2, 3]), (2, 3)),
    "max": (torch.tensor([1.0, 3.0]).max(0), (torch.tensor(3.0), torch.tensor(1))),
}


@pytest.mark.parametrize("name", KIN)
def test_relatives_arrive_as_their_plain_kin(name):
    v, want = KIN[name]
    decoder = Decoder(encode(v), Hooks(), UNTRUSTED)
    assert identical(decoder.read(), want)
    assert decoder.kinds == [name]


@pytest.mark.parametrize("v", [np.float32(2.5), np.int64(-1), np.bool_(False), np.str_("é"), fractions.Fraction(1, 3),
                               decimal.Decimal("1e-7"), pathlib.Path("a") / "b", frozenset({1}), torch.bfloat16,
                               np.dtype(">i4"), ..., slice(None, 3), -0.0, 2**63, -(2**63) - 1, "\ud800", b"", "", ()])
def test_single_values(v):
    assert identical(v, there_and_back(v))


def test_subclasses_are_not_taken_for_their_bases():
    class Int(int):
        __eq__ = lambda self, other: True
        __hash__ = int.__hash__

    class Dict(dict):
        pass

    class Counter(collections.Counter):
        pass

    for v in (Int(3), Dict(a=1), Counter("a"), type("Str", (str,), {})("a"), type("List", (list,), {})()):
        with pytest.raises(WireError, match="cannot cross"):
            encode(v)


@pytest.mark.parametrize("v", [np.array([object()]), np.zeros(2, "i4,f4"), np.datetime64("2020-01-01"),
                               torch.eye(2).to_sparse(), object(), len, int, iter([])])
def test_what_is_not_on_the_list_is_refused(v):
    with pytest.raises(WireError, match="cannot cross"):
        encode(v)


def test_the_fallback_is_told_the_depth():
    seen = []

    def fallback(e, v, depth):
        seen.append(depth)
        e.value(None, depth)

    e = Encoder(fallback, UNTRUSTED)
    e.value([[object()], object()])
    assert seen == [2, 1] and decode(e.out) == [[None], None]
