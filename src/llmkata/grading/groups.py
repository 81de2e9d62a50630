"""What was handed in -> what counts for whom: one submission for each learner and exercise, one for a group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from llmkata.course import Course
from llmkata.policy.deadlines import utc

from .roster import Roster
from .submission import Submission

#: How the note of a work begins that counts for several; their ids follow.
FOR_GROUP = "handed in for a group: "

_NEVER = datetime.max.replace(tzinfo=UTC)


def counted(read: Iterable[Submission], roster: Roster | None, course: Course) -> list[Submission]:
    """One submission for each available exercise of each learner, a group's once with its members as ``mates``; learners
    and exercises in order. Learners of the roster with nothing have a ``missing`` one.

    What one member of a group hands in, or what comes under the group's name, counts for all members. Where several works
    differ the one handed in last counts, if all their times are known; otherwise they are nobody's guess.
    """
    units: dict[tuple[str, ...], dict[str, list[Submission]]] = {}
    for submission in read:
        unit = _unit(submission.learner, roster)
        units.setdefault(unit, {}).setdefault(submission.exercise_id, []).append(submission)
    for person in roster.people if roster else ():
        units.setdefault(_unit(person.id, roster), {})
    done = []
    for unit in sorted(units):
        for exercise in course.available:
            found = _one(units[unit].get(exercise.id, []), exercise.id, unit)
            # The first is named, and the others with it, whoever handed it in.
            done.append(replace(found, learner=unit[0], mates=unit[1:], notes=_told(found, unit)))
    return done


def _unit(learner: str, roster: Roster | None) -> tuple[str, ...]:
    """The members of the learner's group in the order of the roster; the learner alone without one."""
    return tuple(mate.id for mate in roster.mates(learner)) or (learner,) if roster else (learner,)


def _told(submission: Submission, unit: tuple[str, ...]) -> list[str]:
    if len(unit) == 1 or not submission.file:
        return submission.notes
    return [*submission.notes, f"{FOR_GROUP}{', '.join(unit)}"]


def _one(found: list[Submission], exercise: str, unit: tuple[str, ...]) -> Submission:
    if not found:
        whose = "of this group" if len(unit) > 1 else "of this learner"
        return Submission(unit[0], exercise, cause=f"Nothing {whose} was among the submissions.")
    there = [s for s in found if s.file]
    if len(there) < 2:
        return (there or found)[0]
    times = {id(s): utc(s.submitted_at) for s in there}
    if len({s.source for s in there}) == 1 and there[0].source is not None:
        # The same twice was there from the first time on.
        return min(there, key=lambda s: (s.marked_late, times[id(s)] or _NEVER))
    if all(times.values()):
        last = max(there, key=lambda s: (times[id(s)], s.learner))
        others = ", ".join(s.file for s in there if s is not last)
        return replace(last, notes=[*last.notes, f"handed in last, so not used: {others}"])
    names = " and ".join(f"{s.file} ({s.learner})" for s in there[:3])
    cause = f"More than one work holds this exercise: {names}. Hand in one of them."
    return replace(there[0], source=None, evidence=None, cause=cause)
