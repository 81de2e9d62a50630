"""What a record comes to: standing, fraction of the points, and the weighted total over a course.

The one place where these are defined; board, card, class page, gradebook and exports all ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise, Weights


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

    def fraction(self, weights: Weights | None = None) -> float | None:
        """Points as a share of the points to be had, 0..1, each tier's points times its weight (by default 1).

        None where nothing is known: the grader failed.
        """
        if self.standing is Standing.infrastructure:
            return None
        core, stretch = (weights.core, weights.stretch) if weights else (1.0, 1.0)
        earned = core * self.core_points + stretch * (self.points - self.core_points)
        possible = core * self.core_max_points + stretch * (self.max_points - self.core_max_points)
        return earned / possible if possible > 0 else 0.0


class Total(msgspec.Struct, frozen=True):
    """A learner's course total: the weighted mean of the exercises that count."""

    #: 0..100, or None where no exercise could be judged.
    percent: float | None
    #: Sum of the weights behind ``percent``.
    weight: float
    #: Sum of the weights left out because the grader failed on them.
    pending: float
    standings: dict[Standing, int]


def standing(record: ExerciseRecord | None) -> Standing:
    """The standing a record gives; without a record the exercise is not started."""
    if record is None:
        return Standing.not_started
    if record.state is not State.graded:
        return Standing(_UNGRADED[record.state])
    judged = [check for check in record.checks if not check.excused]
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
    )


def total(course: Course, entries: Mapping[str, Entry], exercises: Iterable[Exercise] | None = None) -> Total:
    """The mean over ``exercises``, weighted; by default over all of the course but planned ones, which never count.

    ``entries`` by exercise id; an exercise without an entry earns 0.
    """
    earned = weight = pending = 0.0
    standings: dict[Standing, int] = {}
    for exercise in course.available if exercises is None else exercises:
        known = entries.get(exercise.id)
        where = known.standing if known else Standing.not_started
        standings[where] = standings.get(where, 0) + 1
        fraction = known.fraction(course.policy.weights) if known else 0.0
        if fraction is None:
            pending += exercise.weight
        else:
            earned += exercise.weight * fraction
            weight += exercise.weight
    return Total(100.0 * earned / weight if weight else None, weight, pending, standings)
