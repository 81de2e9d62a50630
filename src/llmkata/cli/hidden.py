"""What hidden checks tell commands without being run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmkata.cli.common import fail, prog

if TYPE_CHECKING:
    from llmkata.course import Exercise
    from llmkata.records import ExerciseRecord


def has_hidden(exercise: Exercise) -> bool:
    """Whether the hidden checks of the exercise are here."""
    return exercise.graders_dir.is_dir()


def maxima(exercises: Iterable[Exercise], records: Iterable[ExerciseRecord]) -> dict[str, float]:
    """Exercise id -> points to be had, of the exercises of which no record tells it and whose hidden checks are here."""
    told = {r.exercise for r in records if r.max_points}
    silent = [e for e in exercises if e.id not in told and has_hidden(e)]
    if not silent:
        return {}
    from llmkata.grading.worth import worth

    try:
        return {e.id: worth(e) for e in silent}
    except RuntimeError as error:
        fail(f"the hidden checks cannot be collected: {error}", f"{prog()} lint")
