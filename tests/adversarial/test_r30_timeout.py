"""R30: take for ever, where what was not seen to fail has passed."""

import pytest

from llmkata.records import State

from .arena import build

SOLUTION = "def one():\n    return 1\n\ndef two():\n    return 2\n"
CHECKS = '''
@task(1)
@points(1)
def test_one(submission):
    """One."""
    same(submission.one(), 1)

@task(1)
@points(1)
def test_two(submission):
    """Two."""
    same(submission.two(), 2)
'''


@pytest.fixture
def arena(tmp_path):
    return build(tmp_path, SOLUTION, CHECKS, call=0.2, wall=5)


@pytest.mark.parametrize("wait", ["import time\ndef one(): time.sleep(1e6)", "def one():\n    while True: pass"])
def test_what_is_not_answered_in_time_is_failed(arena, wait, earns_nothing):
    record = arena.instead(wait)
    assert "did not finish within 0.2 s" in earns_nothing(record, "test_one").cause
    assert record.state is State.graded and record.points == 1 and record.max_points == 2


def test_at_import(arena):
    record = arena.instead("while True: pass")
    assert record.points == 0 and record.state is State.unreadable and "did not finish" in record.cause


def test_honest_work_passes(arena):
    assert arena.stands()


def test_a_verdict_by_the_failures_seen_passes_it():
    failures_seen = []  # nothing came before the time was up
    assert not failures_seen
