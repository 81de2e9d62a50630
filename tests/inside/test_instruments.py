"""What only the learner's own process can see: traced bytes, interpreter steps."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest

from llmkata.inside.instruments import counted_steps, traced_peak


def test_the_peak_is_that_of_the_call():
    before = np.ones(10**6)

    def run():
        a = np.ones(2 * 10**5)
        del a
        return np.ones(10**5)

    result, peak = traced_peak(run)
    assert result.size == 10**5 and 1.6e6 <= peak < 1.7e6 and before.sum() == 10**6
    assert not tracemalloc.is_tracing()


def test_tracing_that_was_on_stays_on():
    tracemalloc.start()
    try:
        traced_peak(lambda: None)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_stopping_the_trace_is_an_error():
    with pytest.raises(RuntimeError, match="was stopped"):
        traced_peak(tracemalloc.stop)
    with pytest.raises(ZeroDivisionError):
        traced_peak(lambda: 1 / 0)
    assert not tracemalloc.is_tracing()


def test_steps_are_those_of_one_file():
    scope = {}
    exec(compile("def f(n):\n    for _ in range(n): pass", "learner.py", "exec"), scope)  # noqa: S102
    tracer = sys.gettrace()
    counts = [counted_steps(lambda n=n: scope["f"](n), {"learner.py"})[1] for n in (10, 20, 30)]
    assert counts[2] - counts[1] == counts[1] - counts[0] >= 20
    assert counted_steps(lambda: sum(range(100)), {"learner.py"}) == (4950, 0)
    assert sys.gettrace() is tracer
