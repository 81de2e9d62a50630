"""The log of changes -> what is in force: a pure function, to be put into a course's policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from llmkata.course.by_hand import Adjustment, ByHand, Comment, Freeze, Mark, Pair, Voiding

from .changes import Action, Change, taken_back

if TYPE_CHECKING:
    from llmkata.course import Course

_FREEZES = (Action.freeze, Action.release)
#: What waits where grades are frozen.
_HELD = (Action.adjust, Action.rubric, Action.comment, Action.void)


def by_hand(changes: Sequence[Change], *, frozen: bool = True) -> ByHand:
    """What is in force. Grades of an exercise that was frozen stay as they were then: what was changed or taken back since
    waits until they are frozen or released again. ``frozen=False``: as if nothing were frozen.
    """
    freezes = _freezes(changes) if frozen else {}
    released = {c.exercise: c.at for c in _standing(changes) if c.action is Action.release}
    adjustments: dict[Pair, list[Adjustment]] = {}
    marks: dict[Pair, dict[str, Mark]] = {}
    comments: dict[Pair, list[Comment]] = {}
    voids: dict[str, dict[str, Voiding]] = {}
    waiting: dict[str, list[int]] = {}
    in_force = {c.number for c in _as_of(changes, freezes)}
    for c in changes:
        if c.number not in in_force:
            continue
        pair = (c.learner, c.exercise)
        match c.action:
            case Action.adjust:
                adjustments.setdefault(pair, []).append(Adjustment(c.number, c.points, c.of, c.text, c.by, c.at))
            case Action.rubric:
                marks.setdefault(pair, {})[c.criterion] = Mark(c.number, c.points, c.of, c.by, c.at)
            case Action.comment:
                comments.setdefault(pair, []).append(Comment(c.number, c.text, c.staff, c.by, c.at))
            case Action.void:
                voids.setdefault(c.exercise, {})[c.check] = Voiding(c.number, c.way, c.text, c.by, c.at)
    by_number = {c.number: c for c in changes}
    for c in changes:
        about = by_number.get(c.undoes, c) if c.action is Action.undo else c
        freeze = freezes.get(about.exercise)
        if freeze is not None and c.number > freeze.number and about.action in _HELD:
            waiting.setdefault(about.exercise, []).append(c.number)
    return ByHand(
        {pair: tuple(made) for pair, made in adjustments.items()}, marks,
        {pair: tuple(made) for pair, made in comments.items()}, voids, freezes, released,
        {exercise: tuple(numbers) for exercise, numbers in waiting.items()},
    )  # fmt: skip


def with_changes(course: Course, changes: Sequence[Change], *, frozen: bool = True) -> Course:
    """The course as it holds for a class with these changes. ``frozen``: see :func:`by_hand`."""
    grading = msgspec.structs.replace(course.policy.grading, by_hand=by_hand(changes, frozen=frozen))
    return msgspec.structs.replace(course, policy=msgspec.structs.replace(course.policy, grading=grading))


def _standing(changes: Sequence[Change]) -> list[Change]:
    """Changes that were not taken back."""
    undone = taken_back(changes)
    return [change for change in changes if change.number not in undone]


def _freezes(changes: Sequence[Change]) -> dict[str, Freeze]:
    """The last freeze or release of each exercise. One that is taken back ends at once: it is what holds others."""
    return {
        c.exercise: Freeze(c.number, c.by, c.at, c.pins) for c in _standing(changes) if c.action in _FREEZES
    }


def _as_of(changes: Sequence[Change], freezes: dict[str, Freeze]) -> Iterable[Change]:
    """Changes that stand, those of a frozen exercise as they stood when it was frozen."""
    undone = taken_back(changes)
    for change in changes:
        until = freezes[change.exercise].number if change.exercise in freezes else None
        by = undone.get(change.number)
        if until is None:
            if by is None:
                yield change
        elif change.number < until and (by is None or by > until):
            yield change
