"""What a record comes to: standing, fraction of the points, its grade, and the weighted total over a course.

The one place where these are defined; board, card, class page, gradebook and exports all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from llmkata.course.grading import in_zone
from llmkata.policy import Grade, Part, adjusted, combine, hint_cost, less_hints
from llmkata.policy import grade as grade_of
from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State

from .counted import RUBRIC

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise, Weights


#: Note of a record whose submission another system calls late.
MARKED_LATE = "marked late where it was handed in"


class Standing(StrEnum):
    """Where a learner stands with an exercise."""

    not_started = "not started"
    in_progress = "in progress"
    #: Every check of every core task passed.
    passed = "passed"
    #: Every check passed.
    mastered = "mastered"
    missing = "missing"
    unreadable = "unreadable"
    #: The grader failed: nothing is known, nothing is counted.
    infrastructure = "not judged"


class Entry(msgspec.Struct, frozen=True):
    """One line of the gradebook: what one learner reached in one exercise."""

    learner: str
    exercise: str
    standing: Standing
    points: float = 0.0
    max_points: float = 0.0
    #: The part of ``points`` and ``max_points`` that core tasks make up.
    core_points: float = 0.0
    core_max_points: float = 0.0
    #: Tasks with every check passed, and tasks with checks at all.
    tasks_done: int = 0
    tasks: int = 0
    submitted_at: str = ""
    graded_at: str = ""
    cause: str = ""
    #: Whether the system it was handed in to calls it late.
    marked_late: bool = False

    def fraction(self, weights: Weights | None = None, *, stretch_on_top: bool = False) -> float | None:
        """Points as a share of the points to be had, 0..1, each tier's points times its weight (by default 1).

        ``stretch_on_top``: core tasks alone make 1, stretch tasks can only add to it. None where nothing is known: the
        grader failed.
        """
        if self.standing is Standing.infrastructure:
            return None
        core, stretch = _of(weights)
        earned = core * self.core_points + stretch * (self.points - self.core_points)
        possible = self._possible(weights, stretch_on_top)
        return earned / possible if possible > 0 else 0.0

    def share(self, points: float, of: float, weights: Weights | None = None, *, stretch_on_top: bool = False) -> float:
        """What points given by hand come to, each counting as a point of a core task. ``of``: points to be had, where
        the entry tells none.
        """
        possible = self._possible(weights, stretch_on_top)
        if possible > 0:
            return _of(weights)[0] * points / possible
        return points / of if of > 0 else 0.0

    def _possible(self, weights: Weights | None, stretch_on_top: bool) -> float:
        core, stretch = _of(weights)
        possible = core * self.core_max_points
        if not (stretch_on_top and possible > 0):
            possible += stretch * (self.max_points - self.core_max_points)
        return possible


def _of(weights: Weights | None) -> tuple[float, float]:
    """What a point of a core task counts, and one of a stretch task."""
    return (weights.core, weights.stretch) if weights else (1.0, 1.0)


class Total(msgspec.Struct, frozen=True):
    """A learner's course total: the weighted mean of the exercises that count."""

    #: 0..100, or None where no exercise could be judged.
    percent: float | None
    #: Sum of the weights behind ``percent``.
    weight: float
    #: Sum of the weights left out because the grader failed on them.
    pending: float
    standings: dict[Standing, int]
    #: Ids of the exercises that the course's policy leaves out, as those that cost most.
    dropped: tuple[str, ...] = ()


def standing(record: ExerciseRecord | None) -> Standing:
    """The standing a record gives; without a record the exercise is not started."""
    if record is None:
        return Standing.not_started
    if record.state is not State.graded:
        return Standing(_UNGRADED[record.state])
    judged = [check for check in record.checks if not check.excused and check.kind != RUBRIC]
    core = [check for check in judged if check.tier == "core"]
    if not core or not all(check.outcome is Outcome.passed for check in core):
        return Standing.in_progress
    return Standing.mastered if all(check.outcome is Outcome.passed for check in judged) else Standing.passed


_UNGRADED = {
    State.not_started: Standing.not_started,
    State.missing: Standing.missing,
    State.unreadable: Standing.unreadable,
    State.infrastructure: Standing.infrastructure,
}


def task_done(checks: Iterable[CheckRecord]) -> bool:
    """Whether a task is done: it has a check that counts, and every such check passed."""
    judged = [check for check in checks if not check.excused]
    return bool(judged) and all(check.outcome is Outcome.passed for check in judged)


def entry(record: ExerciseRecord) -> Entry:
    """The gradebook line of a record. A record the grader failed on, or a stub nobody touched, has no points."""
    by_task: dict[int, list[CheckRecord]] = {}
    for check in record.checks:
        if check.kind == RUBRIC:
            continue
        by_task.setdefault(check.task, []).append(check)
    graded = record.state is State.graded
    core = [check for check in record.checks if check.tier == "core"]
    return Entry(
        learner=record.learner, exercise=record.exercise, standing=standing(record),
        points=record.points if graded else 0.0, max_points=record.max_points,
        core_points=sum(check.points for check in core) if graded else 0.0,
        core_max_points=sum(check.max_points for check in core),
        tasks_done=sum(map(task_done, by_task.values())) if graded else 0, tasks=len(by_task),
        submitted_at=record.submitted_at, graded_at=record.graded_at, cause=record.cause,
        marked_late=MARKED_LATE in record.notes,
    )


def grade(course: Course, exercise: Exercise, known: Entry | None, hints_opened: int = 0) -> Grade:
    """What an exercise counts for by the course's policy: its share, less what lateness costs, and what was given by
    hand. Without an entry: nothing. A frozen grade is what it was. ``hints_opened``: how many of its hints the learner
    has opened, which is known of one's own work alone.
    """
    grading = course.policy.grading
    if known is None:
        return grade_of(grading, exercise.module, "", 0.0)
    raw = known.fraction(course.policy.weights, stretch_on_top=grading.extra_credit.stretch)
    pin = grading.by_hand.pin(known.learner, exercise.id)
    if pin is not None:
        due = in_zone(datetime.fromisoformat(pin.due), grading.timezone) if pin.due else None
        return Grade(pin.raw, pin.deduction, pin.days_late, due, pin.why, pin.adjustment)
    made = grade_of(
        grading, exercise.module, known.learner, raw, known.submitted_at, marked_late=known.marked_late
    )
    made = less_hints(made, hint_cost(course.policy.hints, hints_opened))
    given = grading.by_hand.adjustments.get((known.learner, exercise.id), ())
    on_top = grading.extra_credit.stretch
    return adjusted(made, sum(known.share(a.points, a.of, course.policy.weights, stretch_on_top=on_top) for a in given))


def total(
    course: Course, entries: Mapping[str, Entry], exercises: Iterable[Exercise] | None = None, *,
    hints_opened: Mapping[str, int] | None = None,
) -> Total:  # fmt: skip
    """The mean over ``exercises``, weighted, as the course's policy says: lateness deducted, the lowest dropped, extra
    credit on top. By default over all of the course but planned ones, which never count.

    ``entries`` and ``hints_opened`` (see :func:`grade`) by exercise id; an exercise without an entry earns 0.
    """
    grading = course.policy.grading
    standings: dict[Standing, int] = {}
    hints_opened = hints_opened or {}
    counted = list(course.available if exercises is None else exercises)
    parts = []
    for exercise in counted:
        known = entries.get(exercise.id)
        where = known.standing if known else Standing.not_started
        standings[where] = standings.get(where, 0) + 1
        extra = exercise.slug in grading.extra_credit.exercises
        made = grade(course, exercise, known, hints_opened.get(exercise.id, 0))
        parts.append(Part(made.counted, exercise.weight, extra))
    reached = combine(parts, grading.drop_lowest, grading.extra_credit.cap)
    dropped = tuple(counted[place].id for place in reached.dropped)
    return Total(reached.percent, reached.weight, reached.pending, standings, dropped)
