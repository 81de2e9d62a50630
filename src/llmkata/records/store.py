"""The record file of a run: JSON lines, one :class:`ExerciseRecord` per line, only ever appended to.

A run that is killed leaves at most one torn line, at the end. Readers report and skip it; the next appender closes it
with a newline first, so that nothing written later is lost with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from .schema import ExerciseRecord, State, decode, encode

#: A line longer than this is not read: a record holds capped texts only (a generous record is some 100 kB).
MAX_LINE_BYTES = 64 * 1024 * 1024


class RecordError(ValueError):
    """A record that cannot be stored, or a record file that cannot be locked."""


@dataclass(frozen=True)
class Fault:
    """A line of a record file that is not a record. It was skipped; everything else of the file was read."""

    path: Path
    #: 1-based line number.
    line: int
    reason: str
    #: True for the unfinished last line that a killed run leaves behind.
    torn: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


@dataclass
class Reading:
    """What record files hold: the records in order of reading, and the lines that could not be read."""

    records: list[ExerciseRecord] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class RecordFile:
    """One record file, safe for several processes appending at once.

    A lock file ``<name>.lock`` lies beside it and stays there.
    """

    def __init__(self, path: Path | str, *, lock_seconds: float = 30.0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock  # brings asyncio along, and who reads records locks nothing

        self._lock = FileLock(f"{self.path}.lock", timeout=lock_seconds)

    def append(self, *records: ExerciseRecord) -> None:
        """Append records, all or none; when this returns they are on the disk.

        Raises :class:`RecordError` where a record could not be read back (a number that is not finite), and where
        another process keeps the lock; ``OSError`` where the disk refuses (the file is then as it was).
        """
        if not records:
            return
        from filelock import Timeout

        data = b"".join(_line(record) for record in records)
        try:
            with self._lock:
                self._write(data)
        except Timeout:
            raise RecordError(f"{self.path} is locked by another run; try again when it has ended") from None

    def _write(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            size = os.fstat(fd).st_size
            if size and not _ends_with_newline(fd, size):
                data = b"\n" + data
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view):]
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    def read(self) -> Reading:
        """All records of the file, in the order they were written. A file that does not exist holds none."""
        return read_records([self.path]) if self.path.exists() else Reading()


def read_records(paths: Iterable[Path | str]) -> Reading:
    """The records of several files, one after the other. Raises ``OSError`` for a file that cannot be opened."""
    reading = Reading()
    for path in map(Path, paths):
        for number, raw in _lines(path):
            if not raw.strip():
                continue
            # Without its newline a line may still be complete: only the newline was lost.
            finished = raw.endswith(b"\n")
            if len(raw) > MAX_LINE_BYTES:
                reading.faults.append(Fault(path, number, f"longer than {MAX_LINE_BYTES} bytes, skipped"))
                continue
            try:
                reading.records.append(decode(raw))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                reason = f"not a record: {error}" if finished else "torn: the run was cut off while writing this line"
                reading.faults.append(Fault(path, number, reason, torn=not finished))
    return reading


def rank(record: ExerciseRecord) -> tuple[bool, float]:
    """What decides which record of one (learner, exercise) stands: the greatest, the later written among equals.

    A record the grader failed on never displaces one it judged; otherwise the later ``graded_at`` wins.
    """
    return record.state is not State.infrastructure, _seconds(record.graded_at)


def latest(records: Iterable[ExerciseRecord]) -> dict[tuple[str, str], ExerciseRecord]:
    """The record that stands for each (learner, exercise), by :func:`rank`, in order of first appearance."""
    standing: dict[tuple[str, str], ExerciseRecord] = {}
    for record in records:
        known = standing.get((record.learner, record.exercise))
        if known is None or rank(record) >= rank(known):
            standing[record.learner, record.exercise] = record
    return standing


def _line(record: ExerciseRecord) -> bytes:
    try:
        line = encode(record)
    except UnicodeEncodeError:
        # File names that are not UTF-8 reach us with lone surrogates, which JSON cannot hold.
        line = encode(msgspec.convert(_without_surrogates(msgspec.to_builtins(record)), ExerciseRecord))
    try:
        decode(line)
    except msgspec.ValidationError as error:
        raise RecordError(f"record of {record.learner!r}, {record.exercise} cannot be read back: {error}") from error
    return line + b"\n"


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(v) for v in value]
    return value


def _ends_with_newline(fd: int, size: int) -> bool:
    os.lseek(fd, size - 1, os.SEEK_SET)
    return os.read(fd, 1) == b"\n"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines. One that is too long comes as its first ``MAX_LINE_BYTES + 1`` bytes: it is not held whole."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = raw
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            yield number, raw


def _seconds(stamp: str) -> float:
    """Seconds since 1970 of an ISO 8601 stamp (without an offset: UTC); minus infinity where there is none."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return float("-inf")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
