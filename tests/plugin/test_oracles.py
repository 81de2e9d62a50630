"""What an oracle said is kept, and is what it would say."""

from __future__ import annotations

import sys
import time
import tracemalloc
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmkata.plugin import oracles
from llmkata.plugin.oracles import Oracles

SOURCE = '''
import dataclasses, time, typing
import numpy as np, torch

calls = []

class Pair(typing.NamedTuple):
    a: object
    b: object

@dataclasses.dataclass
class Stats:
    mean: torch.Tensor

class Tokenizer:
    pass

def slow(name):
    calls.append(name)
    until = time.process_time() + 1e-3
    while time.process_time() < until:
        pass

def double(x, scale=2.0):
    slow("double")
    return x * scale

def pair(x):
    slow("pair")
    return Pair(x, [x, {"x": x}])

def stats(x):
    slow("stats")
    return Stats(x)

def update(x):
    slow("update")
    x += 1
    return x * 1

def tokenizer(text):
    slow("tokenizer")
    return Tokenizer()

def apply(f, x):
    slow("apply")
    return f(x)

def quick(x):
    calls.append("quick")
    return x

def pieces(x):
    slow("pieces")
    yield x

def draws(kind):
    slow("draws")
    if kind == "random":
        import random
        return random.random()
    return np.random.rand() if kind == "numpy" else torch.rand(1).item()

def breaks(x):
    slow("breaks")
    raise ValueError("no")

CONSTANT = (1, 2)
'''


@pytest.fixture
def module():
    made = ModuleType("kata_oracle_of_a_test")
    sys.modules[made.__name__] = made
    exec(SOURCE, made.__dict__)  # noqa: S102
    yield made
    del sys.modules[made.__name__]


@pytest.fixture
def asked(module):
    return Oracles().of(module)


def test_the_same_question_is_answered_once(asked, module):
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    first, second = asked.double(x), asked.double(x.clone())
    assert module.calls == ["double"] and torch.equal(first, second) and first is not second


@pytest.mark.parametrize("other", [
    (torch.tensor([1.0, 3.0]),), (torch.tensor([1.0, 2.0], dtype=torch.float64),), (torch.tensor([[1.0, 2.0]]),),
    (torch.tensor([1.0, 2.0]), 3.0), (np.array([1.0, 2.0], np.float32),), (1,), (1.0,), (True,)], ids=str)
def test_another_question_is_asked(asked, module, other):
    asked.double(torch.tensor([1.0, 2.0]))
    got = asked.double(*other)
    assert len(module.calls) == 2 and type(got) is type(module.double(*other))


def test_options_are_part_of_the_question(asked, module):
    x = np.ones(3)
    assert asked.double(x, scale=3.0)[0] == 3.0 and asked.double(x)[0] == 2.0 and asked.double(x, scale=3.0)[0] == 3.0
    assert len(module.calls) == 2


def test_who_changes_an_answer_changes_it_alone(asked, module):
    x = np.ones(3)
    for answer in (asked.double(x), asked.double(x)):
        answer += 5
    assert np.array_equal(asked.double(x), 2 * x) and len(module.calls) == 1


def test_tuples_with_names_and_records_keep_their_form(asked, module):
    x = torch.ones(2)
    asked.pair(x), asked.stats(x)
    pair, stats = asked.pair(x), asked.stats(x)
    assert type(pair) is module.Pair and type(stats) is module.Stats and module.calls == ["pair", "stats"]
    assert pair.a is pair.b[0] is pair.b[1]["x"], "what was one thing is one thing"


def test_what_changes_its_arguments_is_run_each_time(asked):
    x = np.zeros(2)
    for n in (1, 2, 3):
        assert np.array_equal(asked.update(x), np.full(2, n)) and x[0] == n
    for _ in range(2):
        fresh = np.zeros(2)
        asked.update(fresh)
        assert fresh[0] == 1


def test_objects_gradients_and_pieces_are_not_kept(asked, module):
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        asked.tokenizer("a"), asked.double(x).sum().backward(), list(asked.pieces(1))
    assert module.calls == ["tokenizer", "double", "pieces"] * 2 and x.grad.tolist() == [4.0, 4.0]


def test_a_function_may_be_part_of_the_question(asked, module):
    x = np.ones(2)
    assert all(asked.apply(asked.double, x)[0] == 2.0 for _ in range(2))
    assert module.calls.count("apply") == 1
    for n in (3, 4):  # not one that has no name of its own
        assert asked.apply(lambda x: x * n, x)[0] == n  # noqa: B023
    assert module.calls.count("apply") == 3


def test_what_is_quick_is_computed(asked, module):
    for _ in range(3):
        asked.quick(1)
    assert len(module.calls) == 3


@pytest.mark.parametrize("kind", ["random", "numpy", "torch"])
def test_what_draws_from_a_common_generator_is_run_each_time(asked, kind):
    assert asked.draws(kind) != asked.draws(kind)


def test_what_is_measured_is_run(asked, module):
    """A grader may ask how much memory its own function takes, or count its operators."""
    x = torch.ones(2)
    asked.double(x), asked.double(x)
    tracemalloc.start()
    try:
        asked.double(x)
    finally:
        tracemalloc.stop()
    with FlopCounterMode(display=False):
        asked.double(x)
    with torch.device("cpu"):  # a mode that sees functions
        asked.double(x)
    assert len(module.calls) == 4
    asked.double(x)
    assert len(module.calls) == 4


def test_settings_are_part_of_the_question(asked, module):
    x = torch.ones(2)
    asked.double(x)
    with torch.no_grad():
        asked.double(x)
    with np.errstate(divide="raise"):
        asked.double(x)
    assert len(module.calls) == 3


def test_an_error_is_no_answer(asked, module):
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            asked.breaks(1)
    assert len(module.calls) == 2


def test_what_is_no_function_is_as_it_is(asked, module):
    assert asked.CONSTANT is module.CONSTANT and asked.Tokenizer is module.Tokenizer
    assert asked.double.__doc__ == module.double.__doc__ and asked.double.__name__ == "double"
    with pytest.raises(AttributeError):
        asked.nothing  # noqa: B018


def test_the_oldest_makes_room(asked, module, monkeypatch):
    monkeypatch.setattr(oracles, "_MOST", 3 * 80_000)
    inputs = [np.full(10_000, float(n)) for n in range(4)]
    for x in (*inputs, inputs[3], inputs[0]):
        asked.double(x)
    assert len(module.calls) == 5 and asked._oracles._bytes <= oracles._MOST


def test_what_is_large_is_not_kept(asked, module, monkeypatch):
    monkeypatch.setattr(oracles, "_MOST_OF_ONE", 1000)
    for _ in range(2):
        asked.double(np.zeros(1000))
    assert len(module.calls) == 2


def test_a_clock_that_stands_still_keeps_nothing(asked, module, monkeypatch):
    """The control of all that count calls: without the rule that says what is worth it, nothing is remembered."""
    monkeypatch.setattr(oracles, "_WORTH", 1e9)
    for _ in range(2):
        asked.double(np.ones(2))
    assert len(module.calls) == 2 and time.process_time() > 0
