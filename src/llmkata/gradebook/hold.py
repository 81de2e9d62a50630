"""One run at a time in the folder of a run: who has it writes its records, gradebook and pages.

The lock is the operating system's (flock, or its like on Windows): it ends with the process that has it, however that
ends, so a run that was killed holds up nobody. A note beside it says whose it is; a note without a lock is what a run
left behind that did not come to its end.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

#: In the folder of a run; the lock stays there when it is free.
LOCK, NOTE = ".gradebook.lock", ".gradebook.json"


class Holder(msgspec.Struct, frozen=True):
    """Who has the folder, as the note says."""

    #: The command, as it may be pasted, without anything secret.
    command: str
    pid: int
    host: str
    user: str
    #: ISO 8601 with offset.
    since: str

    def __str__(self) -> str:
        when = datetime.fromisoformat(self.since).astimezone()
        return f"{self.command}, begun {when:%Y-%m-%d %H:%M} ({_ago(when)}) by {self.user} on {self.host}, process {self.pid}"


class FolderInUse(RuntimeError):
    """Another run has the folder; the message says which, since when, and what to do. ``holder`` is None where it has
    only just begun.
    """

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        who = str(holder) if holder else "another run, which has just begun"
        rest = "wait until it has ended"
        if holder and holder.host == socket.gethostname():
            rest += f"; if it hangs, 'kill {holder.pid}' ends it, and what it graded is kept"
        super().__init__(f"{folder} is in use: {who}.\n{rest.capitalize()}.")
        self.holder = holder


@contextmanager
def held(
    folder: Path, command: str, *, patience: float = 0.0, left_behind: Callable[[Holder], None] = lambda holder: None
) -> Iterator[None]:
    """Have the folder of a run, which is made where needed, for the time of a ``with`` block.

    Args:
        command: what others are told, as it may be pasted; nothing secret.
        patience: seconds to wait for another run.
        left_behind: hears of an earlier run that was cut off.

    Raises:
        FolderInUse: another run has it.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / NOTE
    lock = FileLock(folder / LOCK, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUse(folder, _read(note)) from None
    try:
        before = _read(note)
        if before is not None:
            left_behind(before)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        note.write_bytes(msgspec.json.encode(Holder(command, os.getpid(), socket.gethostname(), _user(), since)))
        yield
    finally:
        # First the note, then the lock: whoever gets the lock next may have written a note of its own.
        note.unlink(missing_ok=True)
        lock.release()


def _read(note: Path) -> Holder | None:
    try:
        holder = msgspec.json.decode(note.read_bytes(), type=Holder)
        datetime.fromisoformat(holder.since)
    except (OSError, ValueError):  # msgspec's errors are ValueErrors; a note may be half written
        return None
    return holder


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as in a container
        return "unknown"


def _ago(when: datetime) -> str:
    minutes = int((datetime.now().astimezone() - when).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    return f"{minutes} min ago" if minutes < 120 else f"{minutes // 60} h ago"
