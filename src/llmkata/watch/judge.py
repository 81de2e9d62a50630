"""Asks the warm process of :mod:`.warm` for verdicts. Checks arrive one by one, so that the first failing one is on the
screen at once; a new request ends the run under way.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from llmkata.forks import CAN_FORK
from llmkata.records import CheckRecord, Evidence, ExerciseRecord, Outcome, State, decode

from .follow import stamp
from .warm import Request, broken

#: Seconds after which a run is given up, and after which a process that is not warm yet is.
PATIENCE, WARMING = 30.0, 300.0
#: Seconds of a check beyond which it is run after the others.
SLOW = 0.15

#: What a reader thread puts into the queue: the process it reads from, and a line (empty: there will be no more).
Said = tuple[subprocess.Popen, bytes]


class Judge:
    """One exercise. ``start`` begins a run; what the process says comes into ``events`` and is handed to ``take``.

    ``forking`` is a matter of the platform: without it a process judges once, and the next one warms up meanwhile.
    """

    def __init__(self, exercise: Any, events: queue.SimpleQueue | None = None, *, forking: bool = CAN_FORK,
                 patience: float = PATIENCE) -> None:
        self.exercise, self.events, self._forking, self._patience = exercise, events, forking, patience
        if events is None:
            self.events = queue.SimpleQueue()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self._process: subprocess.Popen | None = None
        self._spare: subprocess.Popen | None = None
        self._warm: set[subprocess.Popen] = set()
        #: The files that processes collect their checks from, as they were when these were started.
        self._collected: dict[Path, tuple[int, int] | None] = {}
        self._run: int | None = None
        #: Runs that were ended, or came to a verdict, and whose end is not told yet.
        self._stale = 0
        self._checks: list[CheckRecord] = []
        #: What was printed during each visible check of the last run, by its id.
        self.printed: dict[str, str] = {}
        #: Ids of the checks that took long when they were last run.
        self._slow: set[str] = set()
        #: How many checks the last whole run had.
        self._known = 0
        #: Frames of a run that takes too long; None: it was not asked.
        self._where: list[str] | None = None
        self._record: ExerciseRecord | None = None
        self._until = 0.0
        self.running = False

    def start(self, request: Request | None = None) -> None:
        """Judge the file as it is now, or as ``request`` says; a run under way is ended."""
        self._end_run()
        collected = _checks_as_they_are(self.exercise)
        if collected != self._collected:
            self._drop_all()
            self._collected = collected
        if self._process is None or self._process.poll() is not None:
            self._process, self._spare = self._spare or self._spawn(), None
            self._stale = 0
        process = self._process
        self._checks, self._record, self._run, self.running = [], None, None, True
        self.printed, self._where = {}, None
        self._until = time.monotonic() + (self._patience if process in self._warm else WARMING)
        with contextlib.suppress(OSError):  # it has died; the reader says so
            request = msgspec.structs.replace(request or Request(), last=sorted(self._slow))
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
        if not self._forking:
            self._spare = self._spare or self._spawn()

    def take(self, said: Said) -> ExerciseRecord | None:
        """What a line of the process means: the record, once it is complete."""
        process, line = said
        kind, data = line[:1], line[2:].rstrip(b"\n")
        if kind == b"W":
            self._warm.add(process)
            if process is self._process and self.running:
                self._until = time.monotonic() + self._patience
        elif process is not self._process:
            pass
        elif self._stale and line:
            if kind == b"P":
                _kill(int(data))
            self._stale -= kind == b"E"
        elif not self.running:
            pass
        elif kind == b"P":
            self._run = int(data)
        elif kind == b"L":
            self._where, self._until = msgspec.json.decode(data, type=list[str]), 0.0
        elif kind == b"O":
            ident, text = msgspec.json.decode(data, type=tuple[str, str])
            self.printed[ident] = text
        elif kind == b"C":
            check = msgspec.json.decode(data, type=CheckRecord)
            self._checks.append(check)
            (self._slow.add if check.seconds > SLOW else self._slow.discard)(check.id)
        elif kind == b"R":
            self._record, self._known = decode(data), len(self._checks)
            if self._forking:  # the end of its process, an E, takes a while, and nobody waits for it
                self.running, self._run = False, None
                self._stale += 1
                return self._record
        else:  # E, or nothing more
            self.running, self._run = False, None
            record = self._record or self._lost(data, warm=process in self._warm)
            if not self._forking or not line:
                self._drop()
            return record
        return None

    def overdue(self) -> ExerciseRecord | None:
        """A record that says so where the run takes too long; the run is ended."""
        if not self.running or self.seconds_left() > 0:
            return None
        warm = self._process in self._warm
        if warm and self._where is None and self._run is not None and self._forking:
            self._where, self._until = [], time.monotonic() + 1.0
            with contextlib.suppress(OSError):
                os.kill(self._run, signal.SIGUSR1)
            return None
        done, frames = len(self._checks), self._where or []
        self.stop()
        if not warm:
            self._drop()
            return broken(self.exercise, State.infrastructure, f"torch and the checks took more than {WARMING:g} s to import.")
        record = broken(self.exercise, State.unreadable,
                        f"The checks did not finish within {self._patience:g} s ({done} were done): is there a loop that "
                        f"never ends?{' It was here:' if frames else ''}")
        record.evidence = Evidence(record.cause, frames=frames)
        return record

    def verdict(self, request: Request | None = None) -> ExerciseRecord:
        """Judge and wait."""
        self.start(request)
        while True:
            try:
                record = self.take(self.events.get(timeout=self.seconds_left() + 0.05))
            except queue.Empty:
                record = self.overdue()
            if record is not None:
                return record

    def so_far(self) -> ExerciseRecord:
        """The checks that have arrived from the run under way, as a record that is not complete."""
        return ExerciseRecord(learner="you", exercise=self.exercise.id, state=State.graded, checks=list(self._checks))

    def slow_left(self) -> int:
        """How many checks the run under way waits for, where all that are left took long the last time; else 0."""
        left = self._slow - {c.id for c in self._checks}
        return len(left) if self._known and len(self._checks) + len(left) >= self._known else 0

    def seconds_left(self) -> float:
        """Seconds until the run is given up."""
        return max(0.0, self._until - time.monotonic())

    def stop(self) -> None:
        """End the run under way."""
        self._end_run()
        self.running = False

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._drop_all()
        self._errors.close()

    def _end_run(self) -> None:
        if not self.running:
            return
        if not self._forking:
            self._drop()
            return
        self._stale += 1
        if self._run is not None:
            _kill(self._run)

    def _drop(self) -> None:
        if self._process is not None:
            if self._run is not None:
                _kill(self._run)
            _finish(self._process)
            self._warm.discard(self._process)
            self._process = None

    def _drop_all(self) -> None:
        self._drop()
        if self._spare is not None:
            _finish(self._spare)
            self._spare = None

    def _spawn(self) -> subprocess.Popen:
        exercise = self.exercise
        process = subprocess.Popen(
            [sys.executable, "-m", "llmkata.watch.warm", str(exercise.root), exercise.id, "fork" if self._forking else "once"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            start_new_session=True)  # Ctrl-C is for the loop
        threading.Thread(target=_read, args=(process, self.events), daemon=True).start()
        return process

    def _lost(self, ended: bytes, *, warm: bool) -> ExerciseRecord:
        if not warm:
            self._errors.seek(0)
            tail = self._errors.read()[-1500:].decode("utf-8", "replace").strip()
            return broken(self.exercise, State.infrastructure, f"The process that judges did not start: {tail}")
        code = int(ended or b"1")
        how = f"signal {_signal_name(-code)}" if code < 0 else "an exit inside your file"
        return broken(self.exercise, State.unreadable, f"Running your file ended the process ({how}).")


def first_failure(record: ExerciseRecord) -> CheckRecord | None:
    """The check to work on: the first, in the order of the tasks, that did not pass though it was judged."""
    failed = [c for c in record.checks if c.outcome is Outcome.failed]
    return min(failed, key=lambda c: c.task, default=None)


def _checks_as_they_are(exercise: Any) -> dict[Path, tuple[int, int] | None]:
    """The stamp of every file that checks come from: they change where a course is updated, or written."""
    files = exercise.visible_checks, exercise.reference, exercise.solution, *exercise.graders_dir.rglob("*.*")
    return {path: stamp(path) for path in files if path.parent.name != "__pycache__"}


def _read(process: subprocess.Popen, events: queue.SimpleQueue) -> None:
    for line in process.stdout:
        events.put((process, line))
    events.put((process, b""))


def _kill(pid: int) -> None:
    """End a run and what it started (it leads a group of its own where there are groups)."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


def _finish(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
