"""A record as it counts: without voided checks, and with what people marked by the rubric.

The record in the file stays what the grader said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from llmkata.course.by_hand import Criterion, Mark, Voiding
from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State

if TYPE_CHECKING:
    from llmkata.course import Course

#: ``CheckRecord.kind`` of a criterion of the rubric that was marked, and how its id begins.
RUBRIC = "rubric"
#: How the cause of a check begins that counts for nobody.
VOIDED = "voided: "


def as_it_counts(record: ExerciseRecord, course: Course) -> ExerciseRecord:
    """The record with the changes by hand that ``course.policy.grading.by_hand`` holds; itself where there are none.

    A voided check has no points to be had (``drop``) or gives them to all whose work was judged (``full``). A marked
    criterion is a check of its own, of no task, so that it never stands in the way of *passed*. What was not marked
    yet counts nowhere.
    """
    by_hand = course.policy.grading.by_hand
    voids = by_hand.voids.get(record.exercise, {})
    marks = by_hand.marks.get((record.learner, record.exercise), {})
    if record.state is not State.graded or not (voids or marks):
        return record
    checks = [
        _voided(check, voids[check.id]) if check.id in voids else check
        for check in record.checks if check.kind != RUBRIC
    ]
    checks += _marked(rubric_of(course, record.exercise), marks)
    return record if checks == record.checks else msgspec.structs.replace(record, checks=checks)


def rubric_of(course: Course, exercise: str) -> tuple[Criterion, ...]:
    """The rubric of an exercise by its id; empty where the course does not have it."""
    return next((e.rubric for e in course.exercises if e.id == exercise), ())


def _voided(check: CheckRecord, voiding: Voiding) -> CheckRecord:
    # What it found, and what it measured, says nothing.
    silent = msgspec.structs.replace(check, evidence=None, diagnosis=None, hints=[], measures=[])
    if voiding.way == "full":
        return msgspec.structs.replace(silent, outcome=Outcome.passed, points=check.max_points, cause="")
    cause = f"{VOIDED}{voiding.reason}"
    return msgspec.structs.replace(silent, outcome=Outcome.not_judged, points=0.0, max_points=0.0, cause=cause)


def _marked(rubric: tuple[Criterion, ...], marks: Mapping[str, Mark]) -> Iterator[CheckRecord]:
    for criterion in rubric:
        mark = marks.get(criterion.name)
        if mark is not None:
            yield CheckRecord(
                id=f"{RUBRIC}::{criterion.name}", title=criterion.about or criterion.name, task=0, tier="core",
                # Worth what course.yaml says now: a mark of 4 out of 5 stays four fifths.
                max_points=criterion.points, points=mark.points / mark.most * criterion.points,
                outcome=Outcome.passed, visibility="visible", kind=RUBRIC,
            )  # fmt: skip
