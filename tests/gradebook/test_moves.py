"""What a change moves: grades and totals before and after."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from llmkata.course import Course, Grading, Late
from llmkata.gradebook.in_force import with_changes
from llmkata.gradebook.moves import Grades, Move, grades_of, moves, pins, regraded
from llmkata.records import ExerciseRecord, Outcome, State

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, check, course, record
from .by_hand import change, numbered, undo

ADA, BOB = ("ada", MATRIX_CALCULUS), ("bob", MATRIX_CALCULUS)
PLUS = change("adjust", "ada", points=2.0, of=10.0, text="x")


def work(learner: str, points: float, exercise: str = MATRIX_CALCULUS, **more: object) -> ExerciseRecord:
    """So many of ten points."""
    checks = [check("test_a", 1, points=points), check("test_b", 2, Outcome.failed, 10 - points)]
    return record(learner, exercise, checks=checks, **more)


def lost(learner: str) -> ExerciseRecord:
    return record(learner, MATRIX_CALCULUS, State.infrastructure, cause="The grader failed.")


CLASS = [work("ada", 6), work("bob", 4), work("bob", 8, KV_CACHE)]


def grades(
    *changes, records: list[ExerciseRecord] | None = None, base: Course | None = None, frozen: bool = True
) -> Grades:
    return grades_of(
        with_changes(base or course(), numbered(*changes), frozen=frozen), CLASS if records is None else records
    )


def test_the_grades_of_a_class() -> None:
    made = grades()
    assert {pair: grade.counted for pair, grade in made.grades.items()} == {
        ADA: 0.6, BOB: 0.4, ("bob", KV_CACHE): 0.8
    }  # fmt: skip
    assert made.totals["ada"].percent == pytest.approx(60 / 4) and made.totals["bob"].percent == pytest.approx(
        (40 + 2 * 80) / 4
    )
    assert set(made.records) == set(made.grades)


def test_the_latest_grading_counts_and_what_the_course_has_no_more_is_left_out() -> None:
    again = work("ada", 9, graded_at="2027-01-01T00:00:00Z", submission_sha=CLASS[0].submission_sha)
    made = grades(records=[*CLASS, again, work("ada", 3, "module9/gone")])
    assert made.grades[ADA].counted == 0.9 and set(made.grades) == set(grades().grades)


def test_what_moves_is_told_in_percent() -> None:
    assert moves(grades(), grades()) == []
    (move,) = moves(grades(), grades(PLUS))
    assert (move.learner, move.exercise) == ADA and (move.before, move.after) == (pytest.approx(60), pytest.approx(80))
    assert moves(grades(PLUS), grades(PLUS, undo(1))) == [Move(*ADA, move.after, move.before)]


def test_of_these_exercises_alone() -> None:
    before, after = grades(), grades(PLUS, change("adjust", "bob", KV_CACHE, points=1.0, of=10.0, text="x"))
    assert [m.learner for m in moves(before, after)] == ["ada", "bob"]
    assert [m.learner for m in moves(before, after, [KV_CACHE])] == ["bob"]
    assert moves(before, after, []) == []


def test_sums_in_another_order_are_no_move() -> None:
    tenths = [change("adjust", "ada", points=p, of=10.0, text="x") for p in (0.1, 0.2, 0.3)]
    one, other = grades(*tenths), grades(*reversed(tenths))
    assert moves(one, other) == []
    assert len(moves(one, grades(*tenths, change("adjust", "ada", points=1e-6, of=10.0, text="x")))) == 1


def test_to_and_from_what_could_not_be_judged() -> None:
    judged, unjudged = grades(records=[work("ada", 6)]), grades(records=[lost("ada")])
    assert moves(judged, unjudged) == [Move(*ADA, pytest.approx(60), None)]
    assert moves(unjudged, judged) == [Move(*ADA, None, pytest.approx(60))]
    assert moves(unjudged, unjudged) == []


def test_who_was_not_there_before_moves_nothing() -> None:
    assert moves(grades(records=CLASS[:1]), grades()) == []


def test_regraded_under_one_policy() -> None:
    base = with_changes(course(), numbered(PLUS))
    assert regraded(base, [work("ada", 6)], [work("ada", 6)]) == []
    assert regraded(base, [work("ada", 6)], [work("ada", 7)]) == [Move(*ADA, pytest.approx(80), pytest.approx(90))]


# -- pins ------------------------------------------------------------------------------------------------------------


def test_a_pin_gives_the_grade_that_was() -> None:
    late = Grading(deadlines={0: datetime(2026, 3, 1, tzinfo=UTC)}, late=Late(10))
    base = msgspec.structs.replace(course(), policy=msgspec.structs.replace(course().policy, grading=late))
    records = [work("ada", 8, submitted_at="2026-03-02T12:00:00Z"), work("bob", 4, submitted_at="2026-02-02T12:00:00Z")]
    before = grades(PLUS, records=records, base=base)
    assert before.grades[ADA].counted == pytest.approx(0.8 - 0.2 + 0.2)
    kept = pins(before, MATRIX_CALCULUS)
    assert set(kept) == {"ada", "bob"} and kept["ada"].days_late == 2 and kept["ada"].adjustment == pytest.approx(0.2)
    assert kept["ada"].graded_at == records[0].graded_at and kept["ada"].submission_sha == records[0].submission_sha
    freeze = change("freeze", pins=kept)
    # Graded again, changed by hand, another policy: all of it waits.
    later = [work("ada", 1, submitted_at="2026-03-02T12:00:00Z", graded_at="2027-01-01T00:00:00Z"), records[1]]
    for changed in (
        grades(PLUS, freeze, PLUS, records=records, base=base),
        grades(PLUS, freeze, records=[*records, *later], base=base),
        grades(PLUS, freeze, records=records),
    ):
        assert changed.grades == before.grades and moves(before, changed) == []
    assert moves(before, grades(PLUS, freeze, PLUS, records=records, base=base, frozen=False))


def test_only_of_the_exercise_that_is_frozen() -> None:
    assert set(pins(grades(), KV_CACHE)) == {"bob"} and pins(grades(), "module2/self_attention") == {}


def test_what_was_not_judged_is_left_open() -> None:
    before = grades(records=[lost("ada"), work("bob", 4)])
    kept = pins(before, MATRIX_CALCULUS)
    assert set(kept) == {"bob"}
    judged = work("ada", 6, graded_at="2027-01-01T00:00:00Z")
    after = grades(change("freeze", pins=kept), records=[lost("ada"), judged, work("bob", 4)])
    assert after.grades[ADA].counted == 0.6 and after.grades[BOB].counted == 0.4
