"""``same`` and ``check``: every branch, and the comparisons that are known to be fooled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmkata.checks import GraderFault, Mismatch, check, same
from llmkata.checks.compare import TOLERANCES, distance, dtype_name, is_array, kind
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import Record, Remote

pytestmark = pytest.mark.usefixtures("running")
ONES = torch.ones(3, 4)


def link() -> LoopbackLink:
    return LoopbackLink("x", "x.py", b"")


def remote() -> Remote:
    return Remote(link(), 1, "Tree", 1)


def fails(got, want, text: str = "", **kw) -> Mismatch:
    with pytest.raises(Mismatch, match=text) as e:
        same(got, want, **kw)
    assert e.value.summary and e.value.expected and e.value.got
    return e.value


PAIRS = [(1, 1), ("a", "a"), (None, None), (True, True), (2.5, 2.5), (3, 3.0), (np.float32(1.5), 1.5), (np.int64(4), 4),
         ([1, (2, {"k": 3.0})], [1, (2, {"k": 3.0})]), ((1, 2), [1, 2]), ({1, 2}, {2, 1}), (b"x", b"x"), (1j, 1j),
         (ONES, ONES.clone()), (np.eye(2), np.eye(2)), (np.bool_(True), True), (torch.float32, torch.float32),
         (torch.tensor(2.0), torch.tensor(2.0)), (np.float64(2.0), np.asarray(2.0)), (np.array(["a", "b"]), np.array(["a", "b"])),
         (np.empty((0, 3)), np.empty((0, 3))), (math.inf, math.inf), (torch.tensor([True]), torch.tensor([True])),
         (2**80, 2**80), ([2**80], [2**80])]


@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_what_is_the_same(running, pair):
    same(*PAIRS[pair])
    assert running.compared == 1


DIFFERENT = [
    (1, 2, "not what it should be"), (1, True, "not what"), (True, 1, "not what"), ("1", 1, "not what"), (None, 0, "not what"),
    (1, None, "not what"), ([1], [1, 2], "2 items, it has 1"), (5, [1], "must be a list, it is a int"), ({"a": 1}, {"b": 1}, "the keys"),
    (5, {"a": 1}, "the keys"), ({1}, {1, 2}, "not what"), (True, 1.0, "must be a number"), ("1", 1.0, "must be a number, it is a str"),
    (np.ones(1), 1.0, "must be a number, it is a NumPy array"), (1.0, np.ones(1), "must be a NumPy array, it is a float"),
    (np.ones(2), torch.ones(2), "must be a torch tensor, it is a NumPy array"), ([1.0], torch.ones(1), "must be a torch tensor"),
    (2.5, 2.6, "differs"), (math.inf, -math.inf, "differs"), (math.inf, 1.0, "differs"), (1.0, math.inf, "differs"),
    (np.array(["a"]), np.array(["b"]), "differs in 1 of 1"), (np.array([1]), np.array(["b"]), "text"),
    ([1, [2, {"k": 3.0}]], [1, [2, {"k": 4.0}]], r"output\[1\]\[1\]\['k'\]"), (1 + 1j, 1.0, "differs"), (2**80, 2**80 + 1, "not what"),
]


@pytest.mark.parametrize("case", range(len(DIFFERENT)))
def test_what_is_not(case):
    fails(*DIFFERENT[case])


def test_r7_shapes_are_compared_first():
    """``allclose`` broadcasts: ones of shape (4,) equal ones of (3, 4)."""
    assert torch.allclose(torch.ones(4), ONES) and np.allclose(1.0, np.ones(3))
    fails(torch.ones(4), ONES, r"shape \(4,\), it must have \(3, 4\)")
    fails(torch.ones(1, 4), torch.ones(4), "shape")
    fails(torch.tensor(1.0), torch.ones(1), "shape")


def test_r8_nothing_is_not_something():
    assert np.allclose(np.empty(0), np.empty(0)) and np.allclose(np.empty((0, 4)), np.ones((1, 4)))
    fails(torch.empty(0, 4), ONES, "shape")
    fails([], [1.0], "1 items, it has 0")


def test_r9_nan_is_far_from_everything():
    bad = ONES.clone()
    bad[1, 2] = math.nan
    assert not (bad - ONES).abs().max() > 1e-3  # what a comparison of maxima says
    e = fails(bad, ONES, r"NaN at index \(1, 2\) \(1 of 12 elements are\)")
    assert e.index == "(1, 2)" and e.ratio == math.inf
    fails(bad, ONES, "NaN", atol=1e9)
    fails(math.nan, 1.0, "NaN")


def test_r10_nan_in_what_is_expected_is_the_graders_fault():
    bad = torch.full((2,), math.nan)
    with pytest.raises(GraderFault, match="expected value of output holds NaN"):
        same(torch.ones(2), bad)
    fails(bad, bad, "NaN")  # the answer's NaN may have made it: wrong, not "not judged"
    same(bad, bad, equal_nan=True)
    fails(torch.ones(2), bad, "differs", equal_nan=True)
    fails(torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan]), "NaN", equal_nan=True)


def test_r11_dtypes_are_compared():
    assert np.allclose(np.ones(2, np.float16), np.ones(2)) and torch.ones(2).double().equal(torch.ones(2).double())
    for got, want in ((ONES.double(), ONES), (ONES.half(), ONES), (ONES.long(), ONES), (np.ones(2, "f4"), np.ones(2)),
                      (np.ones(2, "i4"), np.ones(2, "i8"))):
        fails(got, want, "has dtype .*, it must have")
    same(ONES.double(), ONES, dtype=None)
    same(ONES.half(), ONES.double(), dtype=torch.float16)
    same(np.float32(1), np.float64(1))  # plain numbers have no dtype to promise
    fails(ONES, ONES, "must have float64", dtype="float64")


def test_half_precision_is_no_licence():
    want = torch.rand(50, generator=torch.Generator().manual_seed(1))
    same(want.half(), want.half() + 1e-4)
    fails(want.half(), want, "differs", dtype=None)
    same(want.half(), want, dtype=torch.float16)


@pytest.mark.parametrize("name", TOLERANCES)
def test_tolerances_follow_the_dtype(running, name):
    rtol, atol = TOLERANCES[name]
    want = torch.full((2,), 1.0, dtype=getattr(torch, name))
    eps = torch.finfo(want.dtype).eps
    same(want * (1 + 0.5 * max(rtol, eps)), want)
    assert running.headroom <= 1
    fails(want * (1 + 10 * (rtol + atol + eps)), want, "differs")


def test_given_tolerances(running):
    same(1.05, 1.0, atol=0.1)
    assert running.headroom == pytest.approx(0.5)
    same(110.0, 100.0, rtol=0.2)
    same(102, 100, atol=3)
    fails(104, 100, "differs", atol=3)
    same(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 4.0]), atol=np.array([0.0, 2.0]))
    fails(torch.tensor([1.1, 5.0]), torch.tensor([1.0, 4.0]), r"index \(0,\)", atol=np.array([0.0, 2.0]))
    fails(1.0, 1.0 + 1e-7, "differs", atol=0)
    fails(torch.full((2,), 1000.0), torch.full((2,), 1000.005), "differs", rtol=0)  # atol stays that of the dtype
    same(torch.full((2,), 1000.0), torch.full((2,), 1000.005))
    fails(1.0, 1.0 + 1e-12, "differs", atol=0.0)
    fails(1.5, 1.0, "differs", atol=math.nan)


def test_the_worst_element_is_shown():
    got = torch.zeros(2, 3)
    got[1, 2], got[0, 1] = 7.0, 3.0
    e = fails(got, torch.zeros(2, 3), r"differs in 2 of 6 elements")
    assert e.index == "(1, 2)" and "7" in e.got and "0" in e.expected and e.ratio > 1e5
    assert "7" not in e.summary  # a cause is shown where hidden values must not be


def test_headroom_is_the_largest_of_all(running):
    same(1.0, 1.001, atol=0.01)
    same(1.0, 1.005, atol=0.01)
    same(1.0, 1.0, atol=0.01)
    assert running.headroom == pytest.approx(0.5, rel=1e-3)


def test_objects_of_the_learner_equal_nothing():
    r = remote()
    fails(r, 1, "not what")
    fails(r, [1], "must be a list, it is an object of type Tree")
    fails(r, ONES, "must be a torch tensor, it is an object of type Tree")
    fails(r, 1.0, "must be a number")
    fails(Record(link(), 1, "Pair", {"a": 1}), (1,), "must be a tuple")
    with pytest.raises(Mismatch):
        check(r, "must hold")


def test_check(running):
    check(True, "x")
    check(np.bool_(True), "x")
    check(torch.tensor(True), "x")
    for no in (False, None, 0, np.bool_(False), torch.tensor(False), [], ""):
        with pytest.raises(Mismatch, match="must hold") as e:
            check(no, "must hold", got=[1], want=2)
        assert (e.value.got, e.value.expected) == ("[1]", "2")
    assert running.compared == 10


def test_integers_beyond_what_a_float_holds():
    big = torch.tensor([2**60])
    with pytest.raises(GraderFault, match="integers beyond"):
        same(torch.tensor([1]), big)
    fails(big, torch.tensor([1]), "integers beyond")  # the learner's: wrong, not "not judged"
    fails(torch.tensor([2**60], dtype=torch.uint64), torch.tensor([1], dtype=torch.uint64), "integers beyond")
    fails(2**60, 1.0, "integers beyond")
    same([2**60], [2**60])


def test_distance():
    assert distance(ONES, ONES) == 0 and distance(ONES, ONES + 1e-5) == pytest.approx(0.5, rel=0.05)
    assert distance([1.0, {"k": 2}], [1.0, {"k": 2}]) == 0 and distance("a", "a") == 0 and distance((), []) == 0
    far = [(ONES, torch.ones(4)), (ONES, ONES.double()), ([1], [1, 2]), ({"a": 1}, {"b": 1}), ("a", "b"), (None, 0), (1, "1"),
           (np.array(["a"]), np.array(["b"])), (ONES, 1.0), (math.nan, 1.0)]
    assert all(distance(a, b) == math.inf for a, b in far)
    assert distance(math.nan, math.nan) == 0 and distance(np.array(["a"]), np.array(["a"])) == 0
    assert distance(1.0, 2.0) > 1e6 and distance(3, 3) == 0
    a, b, c = remote(), remote(), Record(link(), 2, "Pair", {"x": 1.0})
    assert distance(a, b) == 0 and distance(a, c) == math.inf
    assert distance(c, Record(link(), 3, "Pair", {"x": 1.0})) == 0 < distance(c, Record(link(), 3, "Pair", {"x": 2.0}))
    assert distance(c, Record(link(), 3, "Couple", {"x": 1.0})) == math.inf


def test_words():
    assert [kind(v) for v in (ONES, np.ones(1), None, 1, "", remote())] == [
        "a torch tensor", "a NumPy array", "None", "a int", "a str", "an object of type Tree"]
    assert {dtype_name(d) for d in (torch.float32, np.float32, np.dtype("<f4"), "float32")} == {"float32"}
    assert is_array(ONES) and is_array(np.ones(1)) and not is_array([1])
