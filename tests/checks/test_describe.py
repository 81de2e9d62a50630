"""Values in words: short, exact, and at no cost that a value could choose."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from llmkata.checks.describe import describe, describe_call
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import Record
from llmkata.wire import decode


@pytest.mark.parametrize(("v", "text"), [
    (torch.ones(2, 3), "tensor (2, 3) float32 [[1., 1., 1.],\n [1., 1., 1.]]"), (torch.ones(5, 5), "tensor (5, 5) float32"),
    (torch.tensor(2.5), "tensor () float32 2.5"), (torch.empty(0, 3), "tensor (0, 3) float32"), (np.arange(3), "array (3,) int64 [0, 1, 2]"),
    (np.zeros((9, 9)), "array (9, 9) float64"), (torch.tensor([True]), "tensor (1,) bool [ True]"),
    (torch.ones(1, dtype=torch.bfloat16), "tensor (1,) bfloat16 [1.]"), (torch.empty(2, device="meta"), "tensor (2,) float32 on meta"),
    (1.23456789, "1.23457"), (3, "3"), ("é", "'é'"), (None, "None"), ((1,), "(1,)"), ([1, 2], "[1, 2]"), ({"a": 1}, "{'a': 1}"),
    (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"), (len, "len"), ([[[[[1]]]]], "[[[a list of 1 items]]]"), ({1, 2}, "{1, 2}"),
    (torch.tensor([1 + 1j]), "tensor (1,) complex64 [1.+1.j]"),
])
def test_words(v, text):
    assert describe(v) == text


def test_the_length_is_bounded():
    deep = {str(i): ["x" * 1000] * 50 for i in range(50)}
    for v in ("x" * 10**6, b"x" * 10**6, deep, [[[[["y" * 10**5]]]]], set(range(10**5)), [[[[list(range(10**5))]]]],
              np.array(["z" * 10_000])):
        assert len(describe(v)) < 700
    assert len(describe_call("f", ("x" * 10_000,) * 9, {"k": deep})) < 1300


def test_a_view_of_few_bytes_is_not_spelled_out():
    """A hundred million elements of stride 0 arrive in some 60 bytes."""
    wide = torch.zeros(1, dtype=torch.bool).expand(10**8)
    tracemalloc.start()
    assert describe(wide) == "tensor (100000000,) bool"
    assert describe(np.broadcast_to(np.float64(0), (10**4, 10**4))) == "array (10000, 10000) float64"
    assert tracemalloc.get_traced_memory()[1] < 10**5
    tracemalloc.stop()


def test_what_cannot_be_shown_is_said_to_be_so():
    assert describe(10**5000) == "a int that cannot be shown (ValueError)"
    text = np.frombuffer(b"\xff\xff\xff\xff", "<U1")
    assert "cannot be shown" in describe(text)


def test_nothing_of_the_learners_is_asked():
    record = Record(LoopbackLink("x", "x.py", b""), 1, "Pair", {"a": 1, "b": torch.ones(2)})
    assert describe(record).startswith("Pair(a=1, b=tensor(")
    assert describe(record._handle) == "<Pair of the submission>"


def test_calls():
    assert describe_call("f", (1, torch.ones(1)), {"k": None}) == "f(1, tensor (1,) float32 [1.], k=None)"
    assert describe_call("f", (), {}) == "f()" and decode(b"N") is None
