"""What a change moves: the grades and totals of a class before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkata.course.by_hand import Pin
from llmkata.policy import Grade
from llmkata.records import ExerciseRecord

from .attempts import counting
from .standing import Total, entry, grade, total

if TYPE_CHECKING:
    from llmkata.course import Course

#: Shares that differ by less are the same: they come from sums in another order.
_SAME = 1e-9


@dataclass(frozen=True)
class Grades:
    """What a class has: the record and the grade of each (learner, exercise id), and the totals."""

    records: Mapping[tuple[str, str], ExerciseRecord]
    grades: Mapping[tuple[str, str], Grade]
    totals: Mapping[str, Total]


@dataclass(frozen=True)
class Move:
    """A grade that moved, in percent; None: not judged."""

    learner: str
    exercise: str
    before: float | None
    after: float | None


def grades_of(course: Course, records: Iterable[ExerciseRecord]) -> Grades:
    """The grades that ``course`` (with the changes of the class in its policy) gives these records. Exercises that the
    course has no more are left out.
    """
    known = {exercise.id: exercise for exercise in course.exercises}
    chosen = {pair: record for pair, record in counting(records, course).items() if record.exercise in known}
    entries = {pair: entry(record) for pair, record in chosen.items()}
    by_learner: dict[str, dict] = {}
    for (learner, name), made in entries.items():
        by_learner.setdefault(learner, {})[name] = made
    return Grades(
        chosen,
        {pair: grade(course, known[pair[1]], made) for pair, made in entries.items()},
        {learner: total(course, mine) for learner, mine in by_learner.items()},
    )


def moves(before: Grades, after: Grades, exercises: Iterable[str] | None = None) -> list[Move]:
    """The grades that differ, in the order of ``after``; of these exercises alone where they are named."""
    wanted = None if exercises is None else set(exercises)
    found = []
    for (learner, name), made in after.grades.items():
        was = before.grades.get((learner, name))
        if was is not None and (wanted is None or name in wanted) and _differ(was.counted, made.counted):
            found.append(Move(learner, name, _percent(was.counted), _percent(made.counted)))
    return found


def pins(grades: Grades, exercise: str) -> dict[str, Pin]:
    """What to freeze of an exercise. What was not judged is left open: there is no grade that could be kept."""
    found = {}
    for (learner, name), made in grades.grades.items():
        if name == exercise and made.raw is not None:
            record = grades.records[learner, name]
            due = made.due.isoformat() if made.due else ""
            found[learner] = Pin(
                record.graded_at, record.submission_sha, made.raw, made.deduction, made.adjustment, made.days_late, due,
                made.why,
            )  # fmt: skip
    return found


def regraded(course: Course, before: Sequence[ExerciseRecord], after: Sequence[ExerciseRecord]) -> list[Move]:
    """The grades that moved from the records ``before`` to those ``after``, by the records alone: both under the same
    policy and changes.
    """
    return moves(grades_of(course, before), grades_of(course, after))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _differ(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > _SAME
