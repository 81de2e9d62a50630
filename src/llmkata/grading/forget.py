"""Everything the folder of a run holds of one learner: counted, and taken out.

Records, log of changes, roster, pairs and kept sources lose what is the learner's. What stands there of others stays,
without the learner's name: members of a group have it in their notes. Pages, gradebook and grades are for the caller to
write again from what is left; what was written for other systems goes as a whole, since it can be written again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from filelock import FileLock

from llmkata.gradebook.changes import Action, Change
from llmkata.gradebook.names import Names
from llmkata.places import (
    CARDS,
    CHANGES,
    EXPORTS,
    GRADEBOOK,
    GRADES,
    INDEX,
    PSEUDONYMOUS,
    RECORDS,
    ROSTER,
    SIMILARITY,
    STAFF,
)
from llmkata.records import ExerciseRecord, decode, encode
from llmkata.records.pairs import Pair

from .groups import FOR_GROUP
from .roster import Roster, read_roster
from .signature import FILE as SIGNATURES
from .sources import SOURCES

#: What stands where the name was.
FORGOTTEN = "(forgotten)"
#: Files beyond this are not searched for names.
_MOST_BYTES = 1 << 30


@dataclass
class Traces:
    """What a folder holds of a learner."""

    records: int = 0
    exercises: set[str] = field(default_factory=set)
    #: Records of others that name the learner: members of the group.
    mentions: int = 0
    changes: int = 0
    #: Line of the roster; 0 where there is none.
    line: int = 0
    pairs: int = 0
    #: Sources that nobody else handed in.
    sources: list[Path] = field(default_factory=list)
    cards: list[Path] = field(default_factory=list)
    #: Folders that go as a whole: exports, and the run under pseudonyms.
    whole: list[Path] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.records or self.mentions or self.changes or self.line or self.pairs or self.cards)


def traces(folder: Path, names: Names, card: str) -> Traces:
    """What the folder of a run holds of a learner; nothing is changed. ``card``: how the learner's pages are called."""
    found = Traces()
    mine: set[str] = set()
    others: set[str] = set()
    for record in _records(folder / RECORDS):
        if record.learner == names.learner:
            found.records += 1
            found.exercises.add(record.exercise)
            mine.add(record.submission_sha)
        else:
            found.mentions += _mentions(record, names)
            others.add(record.submission_sha)
    changes = _changes(folder / CHANGES)
    found.changes = sum(_without(change, names, _numbers(changes, names)) != change for change in changes)
    if (folder / ROSTER).is_file():
        found.line = next((p.line for p in read_roster(folder / ROSTER).people if p.id == names.learner), 0)
    found.pairs = sum(_of(pair, names) for pair in _pairs(folder / SIMILARITY))
    kept = (folder / SOURCES / f"{sha}.py" for sha in sorted(mine - others - {""}))
    found.sources = [path for path in kept if path.is_file()]
    found.cards = sorted(path for cards in (CARDS, STAFF) for path in (folder / cards).glob("*") if path.stem == card)
    found.whole = [folder / name for name in (EXPORTS, PSEUDONYMOUS) if (folder / name).is_dir()]
    return found


def forget(folder: Path, names: Names, card: str) -> None:
    """Take out what :func:`traces` counts. The caller has the folder (:mod:`llmkata.gradebook.hold`), writes the pages
    again and says in the log that somebody was forgotten.
    """
    found = traces(folder, names, card)
    _rewrite(folder / RECORDS, lambda line: _record_line(line, names))
    numbers = _numbers(_changes(folder / CHANGES), names)
    _rewrite(folder / CHANGES, lambda line: _change_line(line, names, numbers))
    if found.line:
        _cut_row(folder / ROSTER, found.line)
    if found.pairs:
        left = [pair for pair in _pairs(folder / SIMILARITY) if not _of(pair, names)]
        _replace(folder / SIMILARITY, msgspec.json.format(msgspec.json.encode(left), indent=1) + b"\n")
    pages = [f'"{cards}/{card}.'.encode() for cards in (CARDS, STAFF)]
    _rewrite(folder / SIGNATURES, lambda line: b"" if any(page in line for page in pages) else line)
    for path in (*found.sources, *found.cards):
        path.unlink()
    for path in found.whole:
        shutil.rmtree(path)
    # A database keeps what was deleted from it in pages that are free; a page that nobody writes again keeps its names.
    for name in (GRADEBOOK, f"{GRADEBOOK}-journal", f"{GRADEBOOK}-wal", f"{GRADEBOOK}-shm", INDEX, GRADES):
        (folder / name).unlink(missing_ok=True)


def still_named(folder: Path, names: Names) -> list[Path]:
    """Files below the folder whose name or content has one of the names, very short ones left aside. What lies packed in
    an archive is not seen.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        text = "" if path.stat().st_size > _MOST_BYTES else path.read_text("utf-8", errors="replace")
        if names.named(path.relative_to(folder).as_posix()) or names.named(text):
            found.append(path)
    return found


def names_of(learner: str, roster: Roster | None) -> Names:
    """The learner's id with the names the roster has for the person."""
    person = next((person for person in roster.people if person.id == learner), None) if roster else None
    if person is None:
        return Names(learner)
    return Names(learner, (person.name, person.email, person.canvas_id, *person.also))


# -- records -------------------------------------------------------------------------------------------------------


def _mentions(record: ExerciseRecord, names: Names) -> bool:
    return any(names.learner in members(note) for note in record.notes)


def members(note: str) -> list[str]:
    """The ids in the note of a work that counts for a group; none in any other."""
    return note.removeprefix(FOR_GROUP).split(", ") if note.startswith(FOR_GROUP) else []


def _record_line(line: bytes, names: Names) -> bytes:
    try:
        record = decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a torn line, which nobody reads
        return b"" if names.named(line.decode("utf-8", "replace")) else line
    if record.learner == names.learner:
        return b""
    if not _mentions(record, names):
        return line
    return encode(unnamed(record, names, FORGOTTEN)) + b"\n"


def unnamed(record: ExerciseRecord, names: Names, instead: str) -> ExerciseRecord:
    """The record with ``instead`` in place of the names in its free texts: what was printed, compared, noted and found."""

    def note(text: str) -> str:
        unit = members(text)
        if unit:
            return FOR_GROUP + ", ".join(instead if member == names.learner else member for member in unit)
        return names.taken_out(text, instead)

    def out(value):
        return names.taken_out_of(value, instead)

    checks = [
        msgspec.structs.replace(
            check, cause=out(check.cause), evidence=out(check.evidence), staff_output=out(check.staff_output)
        )
        for check in record.checks
    ]
    return msgspec.structs.replace(
        record, checks=checks, cause=out(record.cause), evidence=out(record.evidence), files=out(record.files),
        ignored=out(record.ignored), notes=[note(text) for text in record.notes],
    )  # fmt: skip


def _records(path: Path) -> Iterator[ExerciseRecord]:
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                yield decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


# -- log of changes ------------------------------------------------------------------------------------------------


def _changes(path: Path) -> list[Change]:
    if not path.is_file():
        return []
    return [change for line in path.read_bytes().splitlines() if (change := _change(line)) is not None]


def _change(line: bytes) -> Change | None:
    try:
        return msgspec.json.decode(line, type=Change)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _numbers(changes: Iterable[Change], names: Names) -> set[int]:
    """Numbers of the changes about the learner, which go with what takes them back."""
    return {change.number for change in changes if change.learner == names.learner}


def _without(change: Change, names: Names, numbers: set[int]) -> Change | None:
    """The change without the learner; None for one about the learner."""
    if change.number in numbers or (change.action is Action.undo and change.undoes in numbers):
        return None
    pins = {learner: pin for learner, pin in change.pins.items() if learner != names.learner}
    return msgspec.structs.replace(change, pins=pins, text=names.taken_out(change.text, FORGOTTEN))


def _change_line(line: bytes, names: Names, numbers: set[int]) -> bytes:
    change = _change(line)
    if change is None:
        return b"" if names.named(line.decode("utf-8", "replace")) else line
    left = _without(change, names, numbers)
    if left == change:
        return line
    return b"" if left is None else msgspec.json.encode(left) + b"\n"


# -- pairs, roster, files --------------------------------------------------------------------------------------------


def _pairs(path: Path) -> list[Pair]:
    return msgspec.json.decode(path.read_bytes(), type=list[Pair]) if path.is_file() else []


def _of(pair: Pair, names: Names) -> bool:
    return names.learner in (pair.left.learner, pair.right.learner)


def _cut_row(path: Path, line: int) -> None:
    """Take the row that begins on a line (from 1) out of a CSV file; the others stay as they were typed."""
    lines = path.read_bytes().splitlines(keepends=True)
    following = [person.line for person in read_roster(path).people if person.line > line]
    _replace(path, b"".join(lines[: line - 1] + lines[min(following, default=len(lines) + 1) - 1 :]))


def _rewrite(path: Path, new: Callable[[bytes], bytes]) -> None:
    """Each line of a file of lines as ``new`` makes it; ``b""`` takes it out."""
    if not path.is_file():
        return
    with FileLock(f"{path}.lock", timeout=30):
        data = path.read_bytes()
        changed = b"".join(new(line) for line in data.splitlines(keepends=True))
        if changed != data:
            _replace(path, changed)


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
