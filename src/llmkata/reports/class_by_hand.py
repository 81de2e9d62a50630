"""What was done by hand in a class, for the class page: of single learners, and of whole exercises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkata.gradebook.standing import Entry, Standing

from .by_hand import signed
from .text import line, points

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise

_NO_WORK = frozenset({Standing.not_started, Standing.missing, Standing.unreadable, Standing.infrastructure})


@dataclass(frozen=True)
class HandRow:
    """Something done by hand: of a learner, or (``learner`` empty) of an exercise."""

    learner: str
    exercise: str
    what: str
    why: str
    by: str
    at: str
    #: Of the change in the log.
    number: int


def hand_rows(course: Course) -> list[HandRow]:
    """Points given, comments for staff, voided checks; in the order of the log."""
    by_hand = course.policy.grading.by_hand
    rows: list[HandRow] = []
    for (learner, exercise), given in by_hand.adjustments.items():
        for a in given:
            what = f"{signed(a.points)} point{'s' if abs(a.points) != 1 else ''}"
            rows.append(HandRow(learner, exercise, what, line(a.reason), line(a.by), a.at, a.number))
    for (learner, exercise), comments in by_hand.comments.items():
        for c in comments:
            what = "comment for staff" if c.staff else "comment"
            rows.append(HandRow(learner, exercise, what, line(c.text, 300), line(c.by), c.at, c.number))
    for exercise, voids in by_hand.voids.items():
        for check, v in voids.items():
            effect = "its points to everybody" if v.way == "full" else "counts for nobody"
            what = f"check {line(check).rpartition('::')[2]} voided: {effect}"
            rows.append(HandRow("", exercise, what, line(v.reason), line(v.by), v.at, v.number))
    counted = {exercise.id for exercise in course.available}
    return sorted((row for row in rows if row.exercise in counted), key=lambda row: row.number)


@dataclass(frozen=True)
class ExerciseState:
    """What is to be known of an exercise's grades: frozen, released, waiting, to be marked. Empty texts: nothing."""

    exercise: str
    frozen: str
    released: str
    #: Changes that wait.
    waiting: int
    #: Criterion, learners marked, learners to be marked.
    rubric: list[tuple[str, int, int]]


def exercise_states(course: Course, entries: Mapping[str, Mapping[str, Entry]]) -> list[ExerciseState]:
    """The exercises of which there is something to say."""
    by_hand = course.policy.grading.by_hand
    states = []
    for exercise in course.available:
        freeze = by_hand.freezes.get(exercise.id)
        states.append(ExerciseState(
            exercise.id, freeze.at if freeze else "", by_hand.released.get(exercise.id, ""),
            len(by_hand.waiting.get(exercise.id, ())), _rubric(course, exercise, entries),
        ))  # fmt: skip
    return [s for s in states if s.frozen or s.released or s.rubric]


def _rubric(course: Course, exercise: Exercise, entries: Mapping[str, Mapping[str, Entry]]) -> list[tuple[str, int, int]]:
    marks = course.policy.grading.by_hand.marks
    work = [
        learner for learner, known in entries.items()
        if exercise.id in known and known[exercise.id].standing not in _NO_WORK
    ]
    return [
        (f"{c.name} ({points(c.points)})", sum(c.name in marks.get((learner, exercise.id), {}) for learner in work), len(work))
        for c in exercise.rubric
    ]
