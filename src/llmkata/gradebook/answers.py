"""What the gradebook answers about a class."""

from __future__ import annotations

import msgspec


class CheckRate(msgspec.Struct, frozen=True):
    """How a class fared with one check. What the grader could not judge, and tasks nobody touched, are counted apart."""

    exercise: str
    check_id: str
    title: str
    task: int
    tier: str
    passed: int
    failed: int
    not_judged: int
    #: Failed only because the task is still as it was given out.
    not_started: int
    max_points: float

    @property
    def rate(self) -> float | None:
        """Share of the submissions that tried and were judged, 0..1; None where there is none."""
        judged = self.passed + self.failed
        return self.passed / judged if judged else None


class Misconception(msgspec.Struct, frozen=True):
    """A named mistake and who made it."""

    exercise: str
    name: str
    feedback: str
    learners: list[str]


class BudgetUse(msgspec.Struct, frozen=True):
    """One budget over the class: (learner, measured value, within the limits) of each submission measured."""

    exercise: str
    check_id: str
    name: str
    unit: str
    trust: str
    at_most: float | None
    at_least: float | None
    reference: float | None
    values: list[tuple[str, float, bool]]


class Unjudged(msgspec.Struct, frozen=True):
    """Something the grader could not judge: a whole exercise (``check_id`` empty) or one check."""

    learner: str
    exercise: str
    check_id: str
    cause: str


class Flag(msgspec.Struct, frozen=True):
    """A check staff should look at, and what the learner's code printed meanwhile."""

    learner: str
    exercise: str
    check_id: str
    flags: list[str]
    output: str
