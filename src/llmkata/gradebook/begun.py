"""Which exercises a class has come to: those that count on its pages and in its totals."""

from __future__ import annotations

from collections.abc import Iterable

from llmkata.records import ExerciseRecord, State

#: What says nothing of an exercise: no file, or the file as it was given out, which every repository of a course holds.
_UNTOUCHED = (State.missing, State.not_started)


def begun(records: Iterable[ExerciseRecord]) -> set[str]:
    """Ids of the exercises that somebody began. Where nobody began any: those of which there are files, or else all.

    A work that cannot be read at all, such as a damaged archive, says nothing of the exercises that may be in it.
    """
    records = list(records)
    whole = spoilt(records)
    touched = {
        r.exercise
        for r in records
        if r.state not in _UNTOUCHED and not (r.state is State.unreadable and r.learner in whole)
    }
    return touched or {r.exercise for r in records if r.state is not State.missing} or {r.exercise for r in records}


def spoilt(records: Iterable[ExerciseRecord]) -> dict[str, str]:
    """Learner -> why nothing of the work can be read: one cause for every exercise."""
    causes: dict[str, set[str]] = {}
    exercises: dict[str, set[str]] = {}
    for r in records:
        causes.setdefault(r.learner, set()).add(r.cause if r.state is State.unreadable else "")
        exercises.setdefault(r.learner, set()).add(r.exercise)
    return {
        learner: next(iter(said))
        for learner, said in causes.items()
        if len(said) == 1 and "" not in said and len(exercises[learner]) > 1
    }
