"""Judges the current file in a fork of a warm process, so that a verdict costs milliseconds and a crash costs nothing.
Checks arrive one by one (a line of JSON each), so that the first failing one is on the screen at once.

The warm process has imported torch and the checks of the exercise; the fork imports the learner's file. A save while
a fork is at work ends it and starts another.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import msgspec

from llmkata.records import CheckRecord, Evidence, ExerciseRecord, State, decode, encode

#: Seconds after which a run is given up.
PATIENCE = 30.0


class Judge:
    """One exercise; ``start`` begins a run, ``poll`` gives its record when there is one."""

    def __init__(self, course: Any, exercise: Any) -> None:
        self.course, self.exercise = course, exercise
        self._pid: int | None = None
        self._pipe = -1
        self._said = bytearray()
        self._until = 0.0
        self._warm = False

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self._pid is not None

    def fileno(self) -> int:
        """The descriptor that becomes readable when the run has something to say."""
        return self._pipe

    def warm(self) -> None:
        """Import what every run needs, once (seconds). Raises RuntimeError where the checks cannot be collected."""
        if not self._warm:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            import torch

            from llmkata.grading.runner import collect

            torch.set_num_threads(1)
            collect(self.course, self.exercise)
            self._warm = True

    def start(self) -> None:
        """Judge the file as it is now; a run under way is ended."""
        self.stop()
        self.warm()
        try:
            source = self.exercise.stub.read_bytes()
        except OSError as e:
            source = None
            missing = _broken(self.exercise, State.missing, f"{self.exercise.stub} cannot be read: {e.strerror}")
        read, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(read)
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            record = missing if source is None else self._judged(source, lambda c: _send(write, b"C", encode(c)))
            _send(write, b"R", encode(record))
            os._exit(0)
        os.close(write)
        self._pipe, self._said, self._until = read, bytearray(), time.monotonic() + PATIENCE

    def _judged(self, source: bytes, on_check: Callable[[CheckRecord], None]) -> ExerciseRecord:
        from llmkata.grading.runner import grade_one

        try:
            return grade_one(self.course, self.exercise, source, file=str(self.exercise.stub), transport="loopback",
                             visible_only=True, on_check=on_check)
        except BaseException as e:  # noqa: BLE001 - the fork must answer
            return _broken(self.exercise, State.infrastructure, f"The checks could not run: {type(e).__name__}: {e}")

    def poll(self) -> ExerciseRecord | None:
        """The record, once it is complete; one that says so when the run took too long or died."""
        if self._pid is None:
            return None
        if time.monotonic() > self._until:
            self.stop()
            return _broken(self.exercise, State.unreadable,
                           f"The checks did not finish within {PATIENCE:g} s: is there a loop that never ends?")
        chunk = os.read(self._pipe, 1 << 20)
        if chunk:
            self._said += chunk
            return None
        os.close(self._pipe)
        _, status = os.waitpid(self._pid, 0)
        self._pid, self._pipe = None, -1
        final = [line[1:] for line in self._said.splitlines() if line.startswith(b"R")]
        if final:
            return decode(final[0])
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an exit inside your file"
        return _broken(self.exercise, State.unreadable, f"Running your file ended the process ({how}).")

    def so_far(self) -> ExerciseRecord:
        """The checks that have arrived from the run under way, as a record that is not complete."""
        whole = self._said[: self._said.rfind(b"\n") + 1]
        checks = [msgspec.json.decode(line[1:], type=CheckRecord) for line in whole.splitlines() if line.startswith(b"C")]
        return ExerciseRecord(learner="you", exercise=self.exercise.id, state=State.graded, checks=checks)

    def seconds_left(self) -> float:
        """Seconds until the run is given up."""
        return max(0.0, self._until - time.monotonic())

    def stop(self) -> None:
        """End the run under way."""
        if self._pid is not None:
            os.killpg(self._pid, signal.SIGKILL) if _leads(self._pid) else os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._pipe)
            self._pid, self._pipe = None, -1


def _send(fd: int, kind: bytes, data: bytes) -> None:
    line = memoryview(kind + data + b"\n")
    while line:
        line = line[os.write(fd, line):]


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _broken(exercise: Any, state: State, cause: str) -> ExerciseRecord:
    return ExerciseRecord(learner="you", exercise=exercise.id, state=state, cause=cause, evidence=Evidence(cause))


def first_failure(record: ExerciseRecord) -> CheckRecord | None:
    """The check to work on: the first, in the order of the tasks, that did not pass though it was judged."""
    from llmkata.records import Outcome

    failed = [c for c in record.checks if c.outcome is Outcome.failed]
    return min(failed, key=lambda c: c.task, default=None)
