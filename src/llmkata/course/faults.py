"""What can be wrong with a course, and how it is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import msgspec

from .launcher import launcher


class Fault(msgspec.Struct, frozen=True):
    """One fault of a course file; ``line`` counts from 1."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        field = f"{self.field}: " if self.field else ""
        return f"{self.file}:{self.line}: {field}{self.message}"


class CourseError(Exception):
    """A course that cannot be used; ``faults`` holds everything found wrong, in the order of the file."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> CourseError:
        ordered = sorted(faults, key=lambda fault: fault.line)
        return cls("\n".join(str(fault) for fault in ordered), ordered)


class UnknownExercise(CourseError):
    """No exercise answers to the name given; ``suggestions`` are identifiers of the nearest ones."""

    def __init__(self, name: str, suggestions: Sequence[str]) -> None:
        self.suggestions = tuple(suggestions)
        hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else f"`{launcher()} start` lists them all."
        super().__init__(f'no exercise "{name}"; {hint}')


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean "x"?`` for the nearest known word, else the list of all of them where it is short."""
    known = [str(k) for k in known]
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 16 else ""
