"""The only schema of a result. Board, card, class page and every export are views of these structures.

A run writes one :class:`ExerciseRecord` per (learner, exercise). Everything else is derived:
points are sums over :class:`CheckRecord`, states are functions of outcomes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

RECORD_SCHEMA = "llmkata/record/v1"
#: How the cause of a check begins that met a task of the stub nobody touched yet.
NOT_STARTED = "not started"


class Outcome(StrEnum):
    """What a check came to. Only ``passed`` earns points."""

    passed = "passed"
    failed = "failed"
    #: The grader could not judge (grader fault, missing grant, a gate failed); see ``CheckRecord.cause``.
    not_judged = "not judged"


class State(StrEnum):
    """What an exercise of one learner came to."""

    graded = "graded"
    #: The stub as shipped: nothing was tried, nothing is held against the learner.
    not_started = "not started"
    #: No file was handed in.
    missing = "missing"
    #: A file was handed in that cannot be read or imported; ``cause`` says why.
    unreadable = "unreadable"
    #: The grader failed; nothing of this record may be counted.
    infrastructure = "infrastructure"


class Trust(StrEnum):
    """Where a measured number was taken."""

    #: Counted while the recorded program ran on fresh inputs in a process without learner code.
    replayed = "replayed"
    #: Read from outside the learner's process (clock, high-water mark).
    outside = "outside"
    #: Counted in something the grader handed in (a GEMM, a model, an objective).
    handed_in = "handed in"
    #: Said by the learner's process about itself.
    self_reported = "self-reported"


class Spot(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a budget was spent: an operator and the learner's line that called it."""

    label: str
    value: float
    line: int | None = None


class Measure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A measured number held against its limits (``value`` in ``unit``)."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    #: What the model answer needs; drawn as a tick on the bar.
    reference: float | None = None
    trust: Trust = Trust.replayed
    ok: bool = True
    spots: list[Spot] = []
    #: (size, value) pairs behind a growth exponent, for the plot.
    series: list[tuple[float, float]] = []


class Diagnosis(msgspec.Struct, frozen=True):
    """The named misconception whose answers equal the learner's."""

    name: str
    feedback: str


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """The smallest failing case found, in the learner's words. All texts are plain, already capped."""

    #: One sentence: what was compared and how it differs.
    summary: str
    #: What was called, e.g. ``attention(q (2, 3, 4) float32, ..., is_causal=True)``.
    call: str = ""
    expected: str = ""
    got: str = ""
    #: Index of the worst element, e.g. ``(0, 2, 1)``.
    index: str = ""
    #: The learner's own frames, innermost last: ``attention.py:41 in attention: scores = q @ k``.
    frames: list[str] = []


class CheckRecord(msgspec.Struct, omit_defaults=True):
    """One check (one test function) of one submission."""

    #: ``test_correctness.py::test_matches_reference``; unique within the exercise.
    id: str
    #: Sentence shown to people, from the check's docstring.
    title: str
    task: int
    tier: str  # "core" | "stretch"
    max_points: float
    points: float
    outcome: Outcome
    visibility: str = "hidden"  # "visible" | "hidden"
    kind: str = "correctness"  # "correctness" | "budget"
    #: Why points were lost, one sentence; never empty unless passed.
    cause: str = ""
    evidence: Evidence | None = None
    diagnosis: Diagnosis | None = None
    hints: list[str] = []
    measures: list[Measure] = []
    seconds: float = 0.0
    #: Largest error/tolerance over all comparisons of a passing run (audit: at most 0.2).
    headroom: float | None = None
    #: What the learner's code printed while hidden checks ran: for staff only, it would carry hidden inputs out.
    staff_output: str = ""
    #: Set when a result is too good to be true or contradicts an outside measurement; shown to staff.
    flags: list[str] = []

    @property
    def not_started(self) -> bool:
        """Whether it failed only because its task is still as it was given out."""
        return self.outcome is Outcome.failed and self.cause.startswith(NOT_STARTED)

    @property
    def excused(self) -> bool:
        """Whether it could not be judged and costs no points: it carries none, and stands in nobody's way."""
        return self.outcome is Outcome.not_judged and self.max_points == 0


class Provenance(msgspec.Struct, omit_defaults=True):
    """What a result hangs on. Equal provenance and submission: equal verdict."""

    grader_hash: str
    #: The seed of the hidden inputs; None on what a learner is given, unless it is the public one (0).
    seed: int | None
    transport: str  # "worker" | "loopback"
    #: Sandbox layers that stood, e.g. ["close_range", "landlock", "seccomp", "netns", "rlimit"].
    layers: list[str] = []
    versions: dict[str, str] = {}
    machine: str = ""


class ExerciseRecord(msgspec.Struct):
    """One exercise of one learner, complete: the unit that is stored, shown and exported."""

    learner: str
    exercise: str  # "module2/self_attention"
    state: State
    checks: list[CheckRecord] = []
    schema: str = RECORD_SCHEMA
    #: Content key: submission + grader + components + framework + lock + Python minor + grants + seed.
    key: str = ""
    submission_sha: str = ""
    #: ISO 8601 with offset, or "" where unknown.
    submitted_at: str = ""
    graded_at: str = ""
    #: Why there is nothing to grade (missing, unreadable, infrastructure); one sentence with the next step.
    cause: str = ""
    #: Evidence for ``unreadable``: the syntax error or import failure in the learner's own lines.
    evidence: Evidence | None = None
    files: list[str] = []
    #: Files that were handed in but play no part (conftest.py, __pycache__, links...).
    ignored: list[str] = []
    #: Remarks worth telling, e.g. "notebook: dropped 2 magic lines (%matplotlib inline, !pip install x)".
    notes: list[str] = []
    provenance: Provenance | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def points(self) -> float:
        """Points earned, over all checks."""
        return sum(c.points for c in self.checks)

    @property
    def max_points(self) -> float:
        """Points that can be earned, over all checks."""
        return sum(c.max_points for c in self.checks)


def encode(record: Any) -> bytes:
    """JSON bytes of a record (UTF-8, one line)."""
    return msgspec.json.encode(record)


def decode(data: bytes) -> ExerciseRecord:
    """The inverse of :func:`encode`. Raises ``msgspec.ValidationError`` naming the field."""
    return msgspec.json.decode(data, type=ExerciseRecord)
