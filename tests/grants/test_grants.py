"""Every grant does what it says, and what it grants is not there without it."""

from pathlib import Path

import msgspec
import pytest

from llmkata.course import load_course
from llmkata.grading.runner import grade_one
from llmkata.records import Outcome, State

COURSE = load_course(Path(__file__).parent / "course")
EXERCISES = ("pool", "collective", "client", "nested")


def judge(exercise):
    return grade_one(COURSE, exercise, exercise.solution.read_bytes())


@pytest.mark.parametrize("slug", EXERCISES)
def test_the_exercise_can_be_done_with_its_grants(slug):
    record = judge(COURSE.exercise(slug))
    not_given = [c.cause for c in record.checks if c.outcome is Outcome.not_judged]
    if not_given:
        pytest.skip(reason=f"this host cannot give it: {not_given[0]}")
    assert record.state is State.graded and record.points == 100, [(c.id, c.cause) for c in record.checks]


@pytest.mark.parametrize("slug", EXERCISES)
def test_the_exercise_cannot_be_done_without_them(slug):
    bare = msgspec.structs.replace(COURSE.exercise(slug), grants={})
    record = judge(bare)
    assert record.points == 0, record.checks
    if slug != "client":  # without a listener nothing can be judged
        assert any(c.outcome is Outcome.failed for c in record.checks)


def test_a_grant_the_host_cannot_give_costs_nothing(monkeypatch):
    from llmkata.outside.worker import WorkerLink

    monkeypatch.setattr(WorkerLink, "missing", property(lambda self: {"grant:threads": "no threads here"}))
    record = judge(COURSE.exercise("pool"))
    assert {c.outcome for c in record.checks} == {Outcome.not_judged}
    assert record.max_points == 0
    assert "no threads here" in record.checks[-1].cause
