"""What staff put beside the automatic results of a class: points, marks, comments, voided checks, frozen grades.

It comes from the log of a class (``gradebook/changes.py``), not from course.yaml, and is put into ``Grading.by_hand``,
where whatever computes or shows a grade finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

#: (learner, exercise id)
Pair = tuple[str, str]
#: What becomes of a check found wrong: it counts for nobody, or everybody has its points.
Way = Literal["drop", "full"]


class Criterion(msgspec.Struct, frozen=True):
    """A line of an exercise's rubric: points from 0 to ``points`` that a person gives."""

    name: str
    points: float
    #: What is looked at, one sentence.
    about: str = ""


class Adjustment(msgspec.Struct, frozen=True):
    """Points given or taken by hand. One counts as much as a point of a core task."""

    #: Number of the change in the log.
    number: int
    points: float
    #: Points to be had in the exercise when this was decided, for learners of whom no record tells them.
    of: float
    reason: str
    by: str
    at: str


class Mark(msgspec.Struct, frozen=True):
    """Points given by hand for a criterion of the rubric."""

    number: int
    points: float
    #: Points to be had, as course.yaml had them then.
    most: float
    by: str
    at: str


class Comment(msgspec.Struct, frozen=True):
    """A comment by hand; ``staff``: not for the learner."""

    number: int
    text: str
    staff: bool
    by: str
    at: str


class Voiding(msgspec.Struct, frozen=True):
    """A check found wrong."""

    number: int
    way: Way
    reason: str
    by: str
    at: str


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a grade was when it was frozen: the record it is of, and its shares of the points to be had."""

    graded_at: str
    submission_sha: str
    #: None: not judged.
    raw: float | None
    deduction: float = 0.0
    adjustment: float = 0.0
    days_late: int = 0
    due: str = ""
    why: str = ""


class Freeze(msgspec.Struct, frozen=True):
    """Since when the grades of an exercise stay as they are."""

    number: int
    by: str
    at: str
    #: Learner -> pin.
    pins: Mapping[str, Pin] = {}


class ByHand(msgspec.Struct, frozen=True):
    """All of it, as it counts now."""

    adjustments: Mapping[Pair, tuple[Adjustment, ...]] = {}
    #: By the name of the criterion.
    marks: Mapping[Pair, Mapping[str, Mark]] = {}
    comments: Mapping[Pair, tuple[Comment, ...]] = {}
    #: Exercise id -> check id -> voiding.
    voids: Mapping[str, Mapping[str, Voiding]] = {}
    #: By exercise id.
    freezes: Mapping[str, Freeze] = {}
    #: Exercise id -> when its grades were released, for the last time.
    released: Mapping[str, str] = {}
    #: Exercise id -> numbers of changes that wait, because its grades are frozen.
    waiting: Mapping[str, tuple[int, ...]] = {}

    def pin(self, learner: str, exercise: str) -> Pin | None:
        """What is frozen of one learner and exercise; None where nothing is."""
        freeze = self.freezes.get(exercise)
        return freeze.pins.get(learner) if freeze else None
