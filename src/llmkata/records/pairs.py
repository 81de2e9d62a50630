"""Pairs of submissions that are alike, as they are computed, kept beside the records of a run, and shown to staff."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from .schema import ExerciseRecord


class Side(msgspec.Struct, frozen=True):
    """One half of a pair."""

    learner: str
    #: Share of the learner's own code (the stub's left out) that the other has too, 0..1.
    share: float
    #: First and last line of each common stretch, from 1, in order.
    lines: list[tuple[int, int]]
    #: SHA-256 of the source, to tell whether it is still what was handed in.
    sha: str = ""


class Pair(msgspec.Struct, frozen=True):
    """Two submissions for one exercise that have much code in common; ``left`` is the one with the larger share."""

    exercise: str
    left: Side
    right: Side

    @property
    def share(self) -> float:
        """The larger of the two shares: who copied a part of another's work has all of it in common."""
        return self.left.share


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Keep the pairs of a run, in place of those kept before."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(list(pairs)), indent=1) + b"\n")


def read_pairs(path: Path, records: Iterable[ExerciseRecord]) -> list[Pair] | None:
    """The pairs kept at ``path`` whose two submissions are still those of ``records``; None where none were computed.

    Raises ``msgspec.DecodeError`` (``msgspec.ValidationError`` naming the field) for a file of something else.
    """
    if not path.is_file():
        return None
    standing = {(record.learner, record.exercise): record.submission_sha for record in records}
    pairs = msgspec.json.decode(path.read_bytes(), type=list[Pair])
    return [
        pair for pair in pairs
        if all(standing.get((side.learner, pair.exercise)) == side.sha for side in (pair.left, pair.right))
    ]
