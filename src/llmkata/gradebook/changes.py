"""The log of what staff changed in a class, and what moved when work was graded again: who, what, when.

The log is the truth of changes as the record file is that of results: JSON lines, only ever appended to. What counts
now is read from it (:mod:`.in_force`); taking something back is one more line.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

import msgspec
from filelock import Timeout

from llmkata.course.by_hand import Pin
from llmkata.records import RecordError, RecordFile

#: Environment variable with the name that changes are made under; without it the account's.
WHO = "KATA_USER"


class ChangeError(ValueError):
    """A log that cannot be read or written; nothing may be computed without it."""


class Action(StrEnum):
    """What was done."""

    adjust = "adjust"
    rubric = "rubric"
    comment = "comment"
    void = "void"
    freeze = "freeze"
    release = "release"
    undo = "undo"
    #: Not by hand: work was graded again, and its grade moved.
    regrade = "regrade"
    #: A learner was removed; the log does not say who.
    forget = "forget"


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the log. Which fields are set hangs on the action."""

    #: 1, 2, ... in the order of the log; 0 until it is appended.
    number: int
    #: ISO 8601 with offset.
    at: str
    by: str
    action: Action
    exercise: str
    learner: str = ""
    #: The reason; for a comment the comment.
    text: str = ""
    #: adjust: points given (or taken); rubric: the mark.
    points: float = 0.0
    #: adjust: points to be had in the exercise; rubric: in the criterion.
    of: float = 0.0
    criterion: str = ""
    #: Id of the check that is voided.
    check: str = ""
    way: str = ""
    #: Whether a comment is for staff only.
    staff: bool = False
    #: Number of the change that is taken back.
    undoes: int = 0
    #: freeze and release: learner -> the grade.
    pins: dict[str, Pin] = {}
    #: regrade: percent that counted and that counts; None: not judged.
    before: float | None = None
    after: float | None = None


def who() -> str:
    """The name that changes are made under: ``KATA_USER``, else the account's."""
    name = os.environ.get(WHO, "").strip()
    if name:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as in a container
        return "unknown"


def now() -> str:
    """The present as a stamp, with the offset of this machine."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class ChangeLog(RecordFile):
    """The log in a file, safe for several processes appending at once."""

    def append(self, *changes: Change) -> list[Change]:  # type: ignore[override]
        """Append changes, all or none, and return them with their numbers.

        Raises :class:`ChangeError` where the log cannot be read, or another process keeps it; ``OSError`` where the disk
        refuses (the file is then as it was).
        """
        try:
            with self._lock:
                self._cut_torn()
                last = max((change.number for change in self.read()), default=0)
                numbered = [msgspec.structs.replace(c, number=last + n) for n, c in enumerate(changes, start=1)]
                self._write(b"".join(msgspec.json.encode(change) + b"\n" for change in numbered))
        except (Timeout, RecordError):
            raise ChangeError(f"{self.path} is locked by another command; try again when it has ended") from None
        return numbered

    def read(self) -> list[Change]:  # type: ignore[override]
        """All changes, in the order they were made. A file that does not exist holds none; an unfinished last line, which
        a killed command leaves behind, was never in force.

        Raises :class:`ChangeError` with file and line for any other line that is no change.
        """
        if not self.path.exists():
            return []
        changes: list[Change] = []
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), start=1):
            try:
                changes.append(msgspec.json.decode(line, type=Change))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if line.endswith(b"\n"):
                    raise ChangeError(f"{self.path}:{number}: not a change: {error}") from error
        return changes

    def _cut_torn(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data.rfind(b"\n") + 1
        try:
            msgspec.json.decode(data[whole:], type=Change)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if data[whole:]:
                os.truncate(self.path, whole)


def taken_back(changes: Sequence[Change]) -> dict[int, int]:
    """Number of a change -> number of the one that took it back."""
    return {change.undoes: change.number for change in changes if change.action is Action.undo}
