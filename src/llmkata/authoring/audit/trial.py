"""One run of an exercise's checks on one source, as plain data: what is run, and what was seen."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from llmkata.records import Outcome


class Trial(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to run. Equal trials of an unchanged exercise have equal results."""

    exercise: str
    #: For people: ``solution``, ``alternatives/key_major``, ``misconception scale_by_d``.
    what: str
    #: The file that is judged, as text.
    source: str
    checks: Literal["hidden", "visible", "all"] = "all"
    #: Names of the checks to run; empty: all of them.
    only: tuple[str, ...] = ()
    seed: int = 0
    #: Seed of a random order of the checks; None: the order of grading.
    shuffle: int | None = None
    #: Each check in a run of its own, so that none can lean on an earlier one.
    alone: bool = False
    #: Name of a misconception that is put into the source (which is then the model answer).
    mistake: str = ""
    diagnosing: bool = False
    #: Treat each passed check as failed and ask for a diagnosis: none must be found.
    forced: bool = False
    #: Stop at the first check that fails, look for no smaller case: all that is asked is whether one fails.
    stop: bool = False
    #: Checks of this task run first (with ``stop``: the likeliest to fail).
    first: int = 0
    #: Limits of one request and of the whole exercise in seconds; 0: those of the course.
    request_seconds: float = 0.0
    wall_seconds: float = 0.0
    #: Run in a fresh interpreter with this PYTHONHASHSEED.
    hash_seed: int | None = None
    #: Number of busy processes beside it.
    load: int = 0
    #: Counts repetitions of what is otherwise the same.
    attempt: int = 0


class Number(msgspec.Struct, frozen=True):
    """A measured number of a check: bit-equal over runs where ``exact``."""

    name: str
    value: float
    exact: bool


class Seen(msgspec.Struct, omit_defaults=True):
    """What one check came to."""

    name: str
    outcome: Outcome
    points: float = 0.0
    max_points: float = 0.0
    cause: str = ""
    #: Not judged because the grader itself went wrong.
    fault: bool = False
    headroom: float | None = None
    #: Largest error/tolerance that failed it; None where it passed or a budget was missed.
    ratio: float | None = None
    #: The check failed by missing a budget.
    budget: bool = False
    named: str = ""
    numbers: list[Number] = []

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.passed

    @property
    def excused(self) -> bool:
        """It cannot be judged on this machine (no GPU), which is nobody's fault."""
        return self.outcome is Outcome.not_judged and self.max_points == 0 and not self.fault


class Result(msgspec.Struct, omit_defaults=True):
    """What a trial came to. ``problem``: why there are no checks (it cannot be imported, the grader failed)."""

    checks: list[Seen] = []
    problem: str = ""
    #: The problem is the grader's, not the source's.
    fault: bool = False
    #: CPU seconds of judging and of everything judged, in all processes.
    cpu_seconds: float = 0.0

    @property
    def points(self) -> float:
        """Points earned as a share of the points to be had, 0..1."""
        possible = sum(c.max_points for c in self.checks)
        return sum(c.points for c in self.checks) / possible if possible else 0.0

    @property
    def lost(self) -> list[Seen]:
        """The checks that did not pass, those that cannot run here left out."""
        return [c for c in self.checks if not c.passed and not c.excused]

    @property
    def clean(self) -> bool:
        """Every check that can be judged here passed."""
        return bool(self.checks) and not self.problem and not self.lost

    @property
    def settled(self) -> bool:
        """Whether the result may be kept: the grader did not go wrong."""
        return not self.fault and not any(c.fault for c in self.checks)

    def check(self, name: str) -> Seen | None:
        """The check of that name (the first failed one where it is parametrised)."""
        found = [c for c in self.checks if bare(c.name) == bare(name)]
        return next((c for c in found if not c.passed), found[0] if found else None)


def bare(name: str) -> str:
    """``test_x`` of ``test_budgets.py::test_x[case]``."""
    return name.rsplit("::", 1)[-1].split("[")[0]


def digest(trial: Trial, inputs: str) -> str:
    """Key of the trial's result: the trial and the hash of what it reads."""
    return hashlib.sha256(msgspec.json.encode(trial) + inputs.encode()).hexdigest()[:32]
