"""Changes of a made-up class, numbered as its log numbers them."""

from __future__ import annotations

import msgspec

from llmkata.gradebook.changes import Action, Change

from ..reports.factory import MATRIX_CALCULUS


def change(action: str, learner: str = "", exercise: str = MATRIX_CALCULUS, **more: object) -> Change:
    """A change that has no number yet."""
    return Change(0, "2026-03-01T12:00:00+01:00", "Prof. Q", Action(action), exercise, learner=learner, **more)


def numbered(*changes: Change) -> list[Change]:
    """As a log that holds them all."""
    return [msgspec.structs.replace(made, number=n) for n, made in enumerate(changes, start=1)]


def undo(number: int, **more: object) -> Change:
    return change("undo", undoes=number, **more)
