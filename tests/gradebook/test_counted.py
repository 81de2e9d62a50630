"""A record as it counts: voided checks, and marks by the rubric."""

from __future__ import annotations

import msgspec
import pytest

from llmkata.course import Course
from llmkata.course.by_hand import Criterion
from llmkata.gradebook.counted import RUBRIC, VOIDED, as_it_counts, rubric_of
from llmkata.gradebook.in_force import with_changes
from llmkata.gradebook.standing import Standing, entry, standing
from llmkata.records import ExerciseRecord, Outcome, State

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, check, course, record, scaled_by_d
from .by_hand import change, numbered

STYLE = Criterion("style", 4.0, "Names say what they hold.")


def with_rubric(*criteria: Criterion) -> Course:
    made = course()
    modules = tuple(
        msgspec.structs.replace(m, exercises=tuple(
            msgspec.structs.replace(e, rubric=criteria) if e.id == MATRIX_CALCULUS else e for e in m.exercises
        ))
        for m in made.modules
    )  # fmt: skip
    return msgspec.structs.replace(made, modules=modules)


def graded() -> ExerciseRecord:
    """8 of 14 points: b failed, c is a stretch check that failed with everything a failure can hold."""
    failed = msgspec.structs.replace(scaled_by_d(), id="f.py::c", task=3, tier="stretch", max_points=2.0)
    checks = [check("a", 1, points=8.0, file="f.py"), check("b", 2, Outcome.failed, 4.0, file="f.py"), failed]
    return record("ada", MATRIX_CALCULUS, checks=checks)


def counted(*changes, of: ExerciseRecord | None = None, base: Course | None = None) -> ExerciseRecord:
    return as_it_counts(of or graded(), with_changes(base or course(), numbered(*changes)))


def void(name: str, way: str) -> object:
    return change("void", check=f"f.py::{name}", way=way, text="Its limit was wrong")


def test_without_changes_it_is_the_record_itself() -> None:
    made = graded()
    assert counted(of=made) is made
    assert counted(change("adjust", "ada", points=3.0, of=14.0, text="x"), of=made) is made, "points come on top of it"
    assert counted(change("void", exercise=KV_CACHE, check="f.py::a", way="drop"), of=made) is made
    assert counted(void("gone", "drop"), of=made) is made


def test_a_dropped_check_counts_for_nobody() -> None:
    before = graded()
    made = counted(void("b", "drop"), of=before)
    assert (before.points, before.max_points) == (8.0, 14.0), "the record in the file stays what the grader said"
    assert (made.points, made.max_points) == (8.0, 10.0)
    (voided,) = (c for c in made.checks if c.id == "f.py::b")
    assert voided.outcome is Outcome.not_judged and voided.excused and voided.cause == f"{VOIDED}Its limit was wrong"
    assert standing(before) is Standing.in_progress and standing(made) is Standing.passed
    assert counted(void("a", "drop")).points == 0.0, "who had its points loses them"


def test_a_full_check_gives_its_points_to_all() -> None:
    made = counted(void("c", "full"))
    assert (made.points, made.max_points) == (10.0, 14.0)
    (voided,) = (c for c in made.checks if c.id == "f.py::c")
    assert voided.outcome is Outcome.passed and voided.points == 2.0 and not voided.cause
    assert not (voided.evidence or voided.diagnosis or voided.hints or voided.measures), "what it found says nothing"
    assert graded().checks[2].evidence and graded().checks[2].diagnosis and graded().checks[2].hints


@pytest.mark.parametrize("state", [s for s in State if s is not State.graded])
def test_what_was_not_graded_gets_nothing(state: State) -> None:
    base = with_rubric(STYLE)
    made = msgspec.structs.replace(graded(), state=state)
    mark = change("rubric", "ada", points=2.0, of=4.0, criterion="style")
    assert counted(void("b", "full"), mark, of=made, base=base) is made


def test_a_mark_is_a_check_of_no_task() -> None:
    base = with_rubric(STYLE, Criterion("tests", 2.0))
    made = counted(change("rubric", "ada", points=3.0, of=4.0, criterion="style"), base=base)
    assert (made.points, made.max_points) == (11.0, 18.0), "what is not marked counts nowhere"
    (mark,) = (c for c in made.checks if c.kind == RUBRIC)
    assert (mark.id, mark.title, mark.task, mark.tier) == ("rubric::style", "Names say what they hold.", 0, "core")
    assert entry(made).tasks == 3 and standing(made) is Standing.in_progress
    done = record("ada", MATRIX_CALCULUS, checks=[check("a", 1)])
    low = counted(change("rubric", "ada", points=0.0, of=4.0, criterion="style"), of=done, base=base)
    assert standing(low) is Standing.mastered, "no mark stands in the way"
    assert counted(change("rubric", "bob", points=3.0, of=4.0, criterion="style"), base=base).max_points == 14.0


def test_a_mark_keeps_its_share_when_the_rubric_is_worth_something_else() -> None:
    made = counted(change("rubric", "ada", points=2.0, of=5.0, criterion="style"), base=with_rubric(STYLE))
    assert made.points == pytest.approx(8.0 + 2 / 5 * 4)
    gone = counted(change("rubric", "ada", points=2.0, of=5.0, criterion="gone"), base=with_rubric(STYLE))
    assert (gone.points, gone.max_points) == (8.0, 14.0), "a criterion that the course has no more"


def test_twice_is_once() -> None:
    base = with_changes(
        with_rubric(STYLE), numbered(void("b", "drop"), change("rubric", "ada", points=3.0, of=4.0, criterion="style"))
    )
    once = as_it_counts(graded(), base)
    assert as_it_counts(once, base) == once


def test_the_rubric_of_an_exercise() -> None:
    assert rubric_of(with_rubric(STYLE), MATRIX_CALCULUS) == (STYLE,)
    assert rubric_of(with_rubric(STYLE), KV_CACHE) == rubric_of(course(), "module9/gone") == ()
