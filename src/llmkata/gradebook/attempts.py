"""Which of several submissions of an exercise counts: the last, or the one that counts for most.

Records of one submission are gradings of it, of which the latest that was judged stands. What was not handed in again
stays handed in: a record of nothing never stands before one of something.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmkata.policy.deadlines import utc
from llmkata.records import ExerciseRecord, State, rank

from .counted import as_it_counts
from .standing import entry, grade

if TYPE_CHECKING:
    from llmkata.course import Course

_NOTHING = frozenset({State.missing, State.not_started})


def counting(records: Iterable[ExerciseRecord], course: Course) -> dict[tuple[str, str], ExerciseRecord]:
    """The record that counts for each (learner, exercise) by ``policy.grading.attempts``, in order of first appearance,
    as it counts: with voided checks and rubric (:mod:`.counted`). Where the grade is frozen it is the record it is of.

    The last is the last handed in, where its time is known, else the last graded. Of two that count for the same, and
    of two that were handed in at the same time, the later written counts. One the grader failed on counts where there
    is no other.
    """
    return chosen((as_it_counts(record, course) for record in records), course)


def chosen(records: Iterable[ExerciseRecord], course: Course) -> dict[tuple[str, str], ExerciseRecord]:
    """:func:`counting` of records that are as they count already; the very objects."""
    found: dict[tuple[str, str], dict[tuple[object, ...], ExerciseRecord]] = {}
    frozen: dict[tuple[str, str], ExerciseRecord] = {}
    for record in records:
        pin = course.policy.grading.by_hand.pin(record.learner, record.exercise)
        if pin is not None and (record.graded_at, record.submission_sha) == (pin.graded_at, pin.submission_sha):
            frozen[record.learner, record.exercise] = record
        submissions = found.setdefault((record.learner, record.exercise), {})
        known = submissions.get(_submission(record))
        if known is None or rank(record) >= rank(known):
            # Put at the end: among equals the later written counts.
            submissions.pop(_submission(record), None)
            submissions[_submission(record)] = record
    return {pair: frozen.get(pair) or _counts(list(made.values()), course) for pair, made in found.items()}


def _submission(record: ExerciseRecord) -> tuple[object, ...]:
    """Equal for gradings of one submission."""
    if record.state in _NOTHING:
        return ("nothing",)
    return (record.submission_sha, record.submitted_at)


def _counts(attempts: list[ExerciseRecord], course: Course) -> ExerciseRecord:
    handed_in = [record for record in attempts if record.state not in _NOTHING] or attempts
    best = course.policy.grading.attempts == "best"
    chosen = handed_in[0]
    for record in handed_in[1:]:
        if _key(record, course, best) >= _key(chosen, course, best):
            chosen = record
    return chosen


def _key(record: ExerciseRecord, course: Course, best: bool) -> tuple[bool, float, float]:
    judged, graded = rank(record)
    moment = utc(record.submitted_at)
    when = moment.timestamp() if moment else graded
    return judged, _share(record, course) if best else 0.0, when


def _share(record: ExerciseRecord, course: Course) -> float:
    exercise = next((e for e in course.exercises if e.id == record.exercise), None)
    if exercise is None:
        return entry(record).fraction(course.policy.weights) or 0.0
    return grade(course, exercise, entry(record)).counted or 0.0
