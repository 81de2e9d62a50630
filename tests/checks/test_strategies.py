"""Examples: the same for the same seed, shrunk in bounded time, ended at once by a dead worker."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from llmkata.checks import GraderFault, Mismatch, check, sk, strategies
from llmkata.checks.context import CheckContext, enter
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import WorkerGone


def cases(seed: int, examples: int = 30) -> list[int]:
    drawn = []

    @sk.given(st.integers(0, 10**9), examples=examples)
    def look(case):
        drawn.append(case)

    enter(CheckContext(None, seed))
    look()
    return drawn


@pytest.mark.parametrize("environment", [{}, {"CI": "true"}])
def test_the_same_seed_gives_the_same_examples(running, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    first = cases(7)
    assert len(first) == 30 and first == cases(7)
    assert first != cases(8)  # and a secret seed is a secret


def test_profiles_of_the_machine_have_no_say(running):
    before = settings._current_profile
    settings.register_profile("kata-test", derandomize=True, max_examples=3)
    settings.load_profile("kata-test")
    try:
        assert cases(7) != cases(8) and len(cases(7)) == 30
    finally:
        settings.load_profile(before)


def test_the_smallest_failing_case_is_told(running):
    @sk.given(st.lists(st.integers(0, 1000), max_size=8), examples=100)
    def at_most_ten(case):
        seen.append(case)
        check(sum(case) <= 10, f"{case} sums to more than 10")

    seen: list[list[int]] = []
    with pytest.raises(Mismatch) as e:
        at_most_ten()
    assert e.value.summary == "[11] sums to more than 10" and seen[-1] == [11]


def test_fixtures_are_passed_on(running):
    @sk.given(st.just(3))
    def f(submission, case):
        """Its sentence."""
        got.append((submission, case))

    got: list = []
    import inspect

    assert list(inspect.signature(f).parameters) == ["submission"] and f.__doc__ == "Its sentence."
    f(submission="s")
    assert got[0] == ("s", 3)
    with pytest.raises(TypeError, match="parameter named 'case'"):
        sk.given(st.none())(lambda x: None)


def test_shrinking_has_a_number_of_runs(running, monkeypatch):
    monkeypatch.setattr(strategies, "_SHRINK_RUNS", 20)
    runs = 0

    @sk.given(st.lists(st.integers(0, 10**6), min_size=5), examples=50)
    def f(case):
        nonlocal runs
        runs += 1
        check(max(case) < 10, "large")

    with pytest.raises(Mismatch, match="large"):
        f()
    assert runs < 60


def test_shrinking_has_a_time(running, monkeypatch):
    monkeypatch.setattr(strategies, "_SHRINK_SECONDS", 0.2)

    @sk.given(st.lists(st.integers(0, 10**6), min_size=5), examples=50)
    def f(case):
        time.sleep(0.02)
        check(max(case) < 10, "large")

    began = time.monotonic()
    with pytest.raises(Mismatch):
        f()
    assert time.monotonic() - began < 5


def test_a_dead_worker_is_neither_shrunk_nor_retried(running):
    runs = 0

    @sk.given(st.integers(), examples=50)
    def f(case):
        nonlocal runs
        runs += 1
        if runs == 3:
            raise WorkerGone("late", "late")

    with pytest.raises(WorkerGone):
        f()
    assert runs == 3


def test_state_that_is_kept_is_named(running):
    seen: set[int] = set()

    @sk.given(st.integers(0, 5), examples=20)
    def f(case):
        if case not in seen:
            seen.add(case)
            check(False, "the first time")

    with pytest.raises(Mismatch, match="The same input gave two different answers"):
        f()


def test_a_strategy_without_examples_is_the_graders_fault(running):
    @sk.given(st.integers().filter(lambda n: False))
    def f(case):
        pass

    with pytest.raises(GraderFault, match="found no example"):
        f()


def test_the_transcript_is_that_of_the_last_example(running):
    link = LoopbackLink("cases", "cases.py", b"def f(n): return n")
    context = enter(CheckContext(link, 1))
    link.begin_check(1)

    @sk.given(st.integers(0, 99), examples=30)
    def f(case):
        check(link.call(None, "f", (case,), {}) < 40, "large")

    with pytest.raises(Mismatch):
        f()
    assert context.link.transcript.last_call.args == (40,) and len(link.transcript.exchanges) == 1


# ---- state machines -----------------------------------------------------------------------------------------------


class Counting(RuleBasedStateMachine):
    limit = 10**9
    pause = 0.0
    log: list[int]

    def __init__(self, submission):
        super().__init__()
        self.submission, self.total = submission, 0

    @rule(n=st.integers(0, 1000))
    def add(self, n):
        time.sleep(self.pause)
        self.submission.append(n)
        self.total += n
        check(self.total < self.limit, f"reached {self.total}")


def test_machines_follow_the_seed(running):
    def run(seed):
        enter(CheckContext(None, seed))
        log: list[int] = []
        sk.run_machine(Counting, submission=log, steps=5, examples=5)
        return log

    assert run(3) == run(3) != run(4)


def test_machines_shrink_for_seconds_not_for_minutes(running, monkeypatch):
    monkeypatch.setattr(strategies, "_SHRINK_SECONDS", 0.3)

    class Slow(Counting):
        limit, pause = 500, 0.01

    began = time.monotonic()
    with pytest.raises(Mismatch, match="reached"):
        sk.run_machine(Slow, submission=[], steps=20, examples=20)
    assert time.monotonic() - began < 10
    from hypothesis.internal.conjecture import engine

    assert engine.MAX_SHRINKING_SECONDS == 300


def test_machines_shrink(running):
    class Small(Counting):
        limit = 500

    with pytest.raises(Mismatch, match="reached 500"):
        sk.run_machine(Small, submission=[], steps=20, examples=50)


def test_machines_and_dead_workers(running):
    class Dying(Counting):
        def __init__(self, submission):
            super().__init__(submission)
            submission.append("new")

        @rule()
        def die(self):
            raise WorkerGone("late", "late")

    log: list = []
    with pytest.raises(WorkerGone):
        sk.run_machine(Dying, submission=log)
    assert log.count("new") < 10


# ---- data ---------------------------------------------------------------------------------------------------------


def test_data_follow_their_seed():
    t, a = sk.tensor(5, (2, 3)), sk.array(5, (2, 3))
    assert t.dtype == torch.float64 and torch.equal(t, sk.tensor(5, (2, 3))) and not torch.equal(t, sk.tensor(6, (2, 3)))
    assert a.dtype == np.float64 and (a == sk.array(5, (2, 3))).all() and (a != sk.array(6, (2, 3))).any()
    assert torch.equal(t * 64, (t * 64).round()) and torch.equal(t.float().double(), t)  # exact in float32
    assert torch.allclose(sk.tensor(5, (2, 3), scale=10.0), t * 10) and sk.array(1, (2,), "float32").dtype == np.float32
