"""The parts of a program that was found consistent, the limits it is held to, and what is raised where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from llmkata.bench.optable import Operator


class ProgramError(ValueError):
    """The program cannot be believed or run.

    Attributes:
        reason: one sentence for people.
        line: line of the submission that it concerns, 0 where none is known.
    """

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line


class RefusedProgram(ProgramError):
    """The program is well formed but holds something that is not replayed; the reason names it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take; a program above is refused before anything runs."""

    operators: int = 200_000
    views: int = 1_000_000
    #: Storages that live at the same time, inputs and constants included.
    live_bytes: int = 2 << 30
    constant_bytes: int = 4 << 20
    segments: int = 100_000
    #: Wall time of one replay.
    seconds: float = 60.0


STANDARD = Limits()


class View(NamedTuple):
    """A tensor: a window of a storage. ``flags``: 1 conjugate bit, 2 negative bit."""

    storage: int
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    flags: int


class Ref(NamedTuple):
    """A tensor argument: number of a view."""

    view: int


@dataclass(frozen=True, slots=True)
class In:
    """An input arrives."""

    name: str
    view: int


@dataclass(frozen=True, slots=True)
class Const:
    """A storage of unknown origin; ``data`` None: overwritten before it is read."""

    storage: int
    data: bytes | None
    line: int


@dataclass(frozen=True, slots=True)
class Op:
    """A call. ``results``: one entry per returned value: a Ref, None, or the number it was."""

    operator: Operator
    line: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Free:
    """Storages that nothing refers to any more."""

    storages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Out:
    """A tensor goes back to the grader with the values it has now."""

    view: int


@dataclass(frozen=True, slots=True)
class Begin:
    """A segment opens."""

    segment: str


@dataclass(frozen=True, slots=True)
class End:
    """The innermost segment closes."""

    segment: str


Event = In | Const | Op | Free | Out | Begin | End


@dataclass(frozen=True, slots=True)
class Program:
    """A program that :func:`parse` found consistent."""

    storages: tuple[int, ...]
    views: tuple[View, ...]
    events: tuple[Event, ...]

    @property
    def timeline(self) -> list[str]:
        """The events that the grader's side took part in, in order: ``"in NAME"``, ``"out"``, ``"begin SEGMENT"``,
        ``"end SEGMENT"``. Compare with what the grader's side did: work moved out of a segment shows here."""
        lines = []
        for event in self.events:
            match event:
                case In(name=name):
                    lines.append(f"in {name}")
                case Out():
                    lines.append("out")
                case Begin(segment=segment):
                    lines.append(f"begin {segment}")
                case End(segment=segment):
                    lines.append(f"end {segment}")
        return lines
