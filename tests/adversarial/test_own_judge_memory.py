"""The judge keeps what it is told and hands answers on: neither may be made to fill its memory, since a judge that dies
costs nobody points."""

import resource

import pytest

from llmkata.checks import diagnose
from llmkata.outside import worker
from llmkata.records import State

from .arena import build

SOLUTION = '''
import numpy as np

def count():
    return 3

def ramp(n):
    return np.arange(n) + 1.0

def applied(f, x):
    return f(x)
'''
CHECKS = '''
@task(1)
@points(1)
def test_ramp(submission):
    """As long as was said."""
    n = submission.count()
    got = submission.ramp(n)
    same(got, np.arange(3) + 1.0)

@task(1)
@points(1)
def test_applied(submission):
    """The function is applied once."""
    calls = []
    def f(x):
        calls.append(x)
        return x + 1
    same(submission.applied(f, np.zeros(2)), np.ones(2))
    check(len(calls) == 1, "Once.")
'''
MISTAKE = '''
from llmkata.checks import misconception

@misconception("from_zero", replaces="ramp", caught_by="test_ramp", feedback="It begins with 1.")
def ramp(n):
    return np.arange(n) + 0.0
'''
#: Handed on to the model answer and to the known mistake, 40 GB of each.
HUGE = "def count(): return 5_000_000_000\ndef ramp(n): return np.zeros(3)"
FLOOD = '''
def applied(f, x):
    big = np.zeros(1 << 17)
    for _ in range(1000):
        f(big)
    return x + 1
'''


@pytest.fixture
def arena(tmp_path):
    return build(tmp_path, SOLUTION, CHECKS, misconceptions=MISTAKE)


def grown(run):
    """-> (its record, MiB by which the peak of this process went up)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = run()
    return record, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


def test_honest_work_passes_and_a_mistake_is_named(arena):
    assert arena.stands()
    record = arena.instead("def ramp(n): return np.arange(n) + 0.0")
    assert [c.diagnosis.name for c in record.checks if c.diagnosis] == ["from_zero"]


def test_an_answer_that_is_handed_on_as_a_size(arena, earns_nothing):
    record, more = grown(lambda: arena.instead(HUGE))
    assert record.state is State.graded and record.max_points == 2
    earns_nothing(record, "test_ramp")
    assert more < 200


def test_without_the_limit_it_is_handed_on(arena, monkeypatch):
    """Here a small part of it: the model answer makes as much as was asked for."""
    answers, ask = [], diagnose._ask
    monkeypatch.setattr(diagnose, "_ask", lambda link, request: answers.append(ask(link, request)) or answers[-1])
    small = HUGE.replace("5_000_000_000", "10_000_000")
    sizes = {}
    for room in (32 << 20, 1 << 30):
        monkeypatch.setattr(diagnose, "_ROOM", room)
        answers.clear()
        arena.instead(small, only="test_ramp")
        sizes[room] = max(getattr(a, "nbytes", 0) for a in answers)
    assert sizes == {32 << 20: 0, 1 << 30: 80_000_000}


def test_a_function_that_was_handed_in_is_flooded(arena, monkeypatch, earns_nothing):
    monkeypatch.setattr(worker, "_MOST_CALLBACK_BYTES", 8 << 20)
    record, more = grown(lambda: arena.instead(FLOOD))
    assert "8 MiB in all" in earns_nothing(record, "test_applied").cause and more < 400
    assert record.max_points == 2


def test_without_the_limit_all_of_it_is_kept(arena, monkeypatch):
    monkeypatch.setattr(worker, "_MOST_CALLBACK_BYTES", 1 << 40)
    record = arena.instead(FLOOD.replace("1000", "20"), only="test_applied")
    assert "Once." in record.checks[0].cause
