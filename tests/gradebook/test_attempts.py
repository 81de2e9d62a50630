"""Which of several submissions counts."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from llmkata.course import Course, Grading, Late
from llmkata.gradebook import Gradebook, counting
from llmkata.records import ExerciseRecord, Outcome, RecordFile, State

from ..reports.factory import MATRIX_CALCULUS, check, course, record

#: Handed in on these days of March 2026, graded on the day after.
DUE = datetime(2026, 3, 5, tzinfo=UTC)


def with_grading(**fields: object) -> Course:
    made = course()
    policy = msgspec.structs.replace(made.policy, grading=Grading(**fields))
    return msgspec.structs.replace(made, policy=policy)


def attempt(day: int, reached: float, *, graded: int | None = None, sha: str = "", timed: bool = True) -> ExerciseRecord:
    checks = [check("test_a", 1, points=reached), check("test_b", 1, Outcome.failed, points=10 - reached)]
    return record(
        "ada", MATRIX_CALCULUS, checks=checks, submission_sha=sha or f"of day {day}",
        submitted_at=f"2026-03-{day:02}T12:00:00Z" if timed else "",
        graded_at=f"2026-03-{graded or day + 1:02}T00:00:00Z",
    )  # fmt: skip


def points(records: list[ExerciseRecord], **grading: object) -> float:
    (chosen,) = counting(records, with_grading(**grading)).values()
    return chosen.points


@pytest.mark.parametrize("timed", [True, False])
def test_the_last_or_the_best(timed: bool) -> None:
    records = [attempt(day, reached, timed=timed) for day, reached in ((1, 4), (2, 9), (3, 6))]
    for order in (records, records[::-1]):
        assert points(order) == 6
        assert points(order, attempts="best") == 9


def test_the_best_is_what_counts_after_the_deduction() -> None:
    records = [attempt(4, 7), attempt(9, 9)]
    late = {"deadlines": {0: DUE}, "late": Late(10)}
    assert points(records, attempts="best", **late) == 7, "five days late: 9 points count as 4"
    assert points(records, attempts="best", deadlines={0: DUE}) == 9, "lateness that costs nothing"


def test_a_new_grading_of_a_submission_takes_the_place_of_the_old_one() -> None:
    harsh, fixed = attempt(1, 9, graded=2), attempt(1, 5, graded=8)
    assert points([harsh, fixed], attempts="best") == 5, "points that a broken grader gave do not count"
    assert points([fixed, harsh], attempts="best") == 5
    assert points([attempt(2, 6, graded=3), fixed]) == 6, "an old submission that is graded again is not the last one"


def test_of_equals_the_later_written_counts() -> None:
    first, second = attempt(1, 5, sha="first"), attempt(1, 5, sha="second")
    for policy in ("last", "best"):
        (chosen,) = counting([first, second], with_grading(attempts=policy)).values()
        assert chosen.submission_sha == "second"


def test_what_was_handed_in_once_stays_handed_in() -> None:
    nothing = record("ada", MATRIX_CALCULUS, State.missing, graded_at="2026-03-20T00:00:00Z", submitted_at="")
    stub = record("ada", MATRIX_CALCULUS, State.not_started, graded_at="2026-03-21T00:00:00Z")
    assert points([attempt(1, 4), nothing, stub]) == 4
    (chosen,) = counting([nothing, stub], with_grading()).values()
    assert chosen.state is State.not_started


def test_a_fault_of_the_grader_counts_only_alone() -> None:
    fault = record("ada", MATRIX_CALCULUS, State.infrastructure, graded_at="2026-03-20T00:00:00Z")
    for policy in ("last", "best"):
        assert points([attempt(1, 4), fault], attempts=policy) == 4
    (chosen,) = counting([fault], with_grading()).values()
    assert chosen is fault


def test_an_unreadable_last_attempt_is_the_last() -> None:
    broken = record("ada", MATRIX_CALCULUS, State.unreadable, submitted_at="2026-03-04T00:00:00Z")
    assert points([attempt(1, 4), broken]) == 0
    assert points([attempt(1, 4), broken], attempts="best") == 4


def test_the_gradebook_indexes_the_attempt_that_counts(tmp_path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append(attempt(1, 9), attempt(2, 3))
    best = with_grading(attempts="best")
    with Gradebook.open() as book:
        book.rebuild([file.path], lambda records: counting(records, best))
        assert book.entries()["ada"][MATRIX_CALCULUS].points == 9
        book.rebuild([file.path])
        assert book.entries()["ada"][MATRIX_CALCULUS].points == 3
