"""A graded class as exports see it: what learners are told, and what each exercise counts for.

Every format is written from this view. It holds learners' scorecards, so the feedback policy has been applied, texts are
plain, and what is for staff only is not in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from llmkata.gradebook import counting
from llmkata.gradebook.standing import Standing
from llmkata.reports.view import ExerciseCard, Scorecard, scorecard

from .items import Item, items

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.records import ExerciseRecord


@dataclass(frozen=True)
class Results:
    """The learners of a class and their cards, in alphabetical order. ``course`` is narrowed to what is exported."""

    course: Course
    cards: Mapping[str, Scorecard]
    #: Exercise id -> points to be had: the most that any record says.
    maxima: Mapping[str, float]
    #: By learner.
    records: Mapping[str, list[ExerciseRecord]]

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        """What is exported."""
        return self.course.available

    @cached_property
    def _cards(self) -> dict[tuple[str, str], ExerciseCard]:
        return {(learner, card.id): card for learner, whole in self.cards.items() for card in whole.exercises}

    @cached_property
    def _lines(self) -> dict[str, list[Item]]:
        return {}

    def card(self, learner: str, exercise: Exercise) -> ExerciseCard:
        """The card of one exercise; every exercise that is exported has one."""
        return self._cards[learner, exercise.id]

    def score(self, learner: str, exercise: Exercise) -> float | None:
        """Points as they count in the total, out of ``maxima``: lateness deducted, tiers weighed; more than ``maxima`` where
        stretch tasks come on top. None where the grader failed.
        """
        percent = self.card(learner, exercise).percent
        return None if percent is None else round(percent / 100 * self.maxima[exercise.id], 6)

    def lines(self, learner: str, exercise: Exercise | None = None) -> list[Item]:
        """One line a check; for an exercise without graded checks, a line for the whole."""
        if learner not in self._lines:
            mine = self.records.get(learner, ())
            maxima = self.maxima if any(self.maxima.values()) else None
            self._lines[learner] = items(mine, self.course, learner, maxima=maxima)
        return [line for line in self._lines[learner] if exercise is None or line.exercise == exercise.id]


def results(
    course: Course,
    records: Iterable[ExerciseRecord],
    *,
    learners: Collection[str] | None = None,
    maxima: Mapping[str, float] | None = None,
) -> Results:
    """The view of these records (several per learner and exercise may be there: the course's policy says which counts).

    ``learners``: only these. ``maxima``: exercise id -> points to be had, where no record says it.
    """
    counted = {exercise.id for exercise in course.available}
    most = dict.fromkeys(counted, 0.0)
    mine: dict[str, list[ExerciseRecord]] = {}
    for r in counting(records, course).values():
        if r.exercise in counted:
            most[r.exercise] = max(most[r.exercise], r.max_points)
            if learners is None or r.learner in learners:
                mine.setdefault(r.learner, []).append(r)
    names = sorted(mine, key=lambda name: (name.casefold(), name))
    return Results(
        course,
        {name: scorecard(name, mine[name], course) for name in names},
        {e: points or (maxima or {}).get(e, 0.0) for e, points in most.items()},
        mine,
    )


def unjudged(view: Results) -> list[str]:
    """``learner: exercise`` wherever the grader failed: nothing is said of these to anybody's gradebook."""
    return [
        f"{card.learner}: {exercise.number} {exercise.title}"
        for card in view.cards.values()
        for exercise in card.exercises
        if exercise.standing is Standing.infrastructure
    ]
