"""Many submissions: one warm grading process, a fork of it per submission, records appended as they arrive.

A submission's death is its own record and nothing else: the fork that judged it says nothing any more, and the record
says so. Forks share what costs seconds (torch, the graders' imports, the templates); what the first of them had to import
besides, the others have from the start.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import select
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from llmkata.forks import with_libraries, without_libraries
from llmkata.inside.pages import MANY, collapse
from llmkata.places import RECORDS
from llmkata.records import ExerciseRecord, RecordFile, State, decode, encode
from llmkata.threads import one_thread

from .intake import Submission
from .isolation import require

#: Seconds beyond an exercise's own limit after which a grading fork is given up (times ``_GENEROSITY``).
_EXTRA_SECONDS = 120.0
_GENEROSITY = 10.0


@dataclass
class _Fork:
    """A grading fork and what it has said so far."""

    submission: Submission
    pid: int
    pipe: int
    until: float
    said: bytearray = field(default_factory=bytearray)


def grade_many(course: Any, submissions: Iterable[Submission], *, out: Path, workers: int = 1, seed: int | None = None,
               isolation: str = "sandbox", progress: Callable[[ExerciseRecord], None] | None = None,
               sure: Callable[[], None] = lambda: None) -> list[ExerciseRecord]:
    """Grade all, append each record to ``out/records.jsonl`` as it arrives, return the records in the order given: for a
    submission that counts for several learners one record each is appended, and the first returned. Graded exercise by
    exercise.

    ``sure`` is called once it is certain that this host can grade, before anything is written.

    Raises TooLittleIsolation before anything is graded on a host below the course's minimum.
    """
    submissions = list(submissions)
    if any(s.source is not None for s in submissions):
        require(course, isolation)
    sure()
    out.mkdir(parents=True, exist_ok=True)
    file = RecordFile(out / RECORDS)
    records: dict[int, ExerciseRecord] = {}

    def keep(submission: Submission, record: ExerciseRecord) -> None:
        file.append(*submission.shared(record))
        records[id(submission)] = record

    waiting: dict[str, list[Submission]] = {}
    for s in submissions:
        if s.source is None:
            keep(s, s.record())
        else:
            waiting.setdefault(s.exercise_id, []).append(s)
    if waiting:

        def ready(submission: Submission, record: ExerciseRecord) -> None:
            keep(submission, record)
            if progress is not None:
                progress(record)

        _warm(course, waiting)
        with _Forks(max(1, workers), ready) as forks:
            for name, todo in waiting.items():
                _grade(course, course.exercise(name), todo, seed, isolation, forks)
    return [records[id(s)] for s in submissions]


def _warm(course: Any, names: Iterable[str]) -> None:
    """Start the templates and import what is slow, once, before the first fork."""
    one_thread()
    import torch

    from llmkata.outside.process import template
    from llmkata.plugin.runs import load_module

    torch.set_num_threads(1)
    exercises = [course.exercise(name) for name in names]
    profiles = dict.fromkeys(["base", *(e.profile for e in exercises)])
    for profile in profiles:
        template(profile)
    for exercise in exercises:
        with contextlib.suppress(Exception):  # the checks that need it say so
            load_module(exercise.reference)
    for profile in profiles:
        template(profile).wait_ready()


def _grade(course: Any, exercise: Any, submissions: list[Submission], seed: int | None, isolation: str,
           forks: _Forks) -> None:
    """Start the grading of all; returns when the last has begun."""
    from llmkata.authoring.stub import StubError, is_stub

    from .provenance import grader_hash
    from .runner import with_collected

    def start_all(collected: Any) -> None:
        # Read and cut here, not by each fork.
        grader_hash(exercise)
        with contextlib.suppress(StubError):  # an exercise without one has no untouched file
            is_stub(exercise, b"")
        # What is here now is shared by all forks and never collected in them.
        gc.collect()
        gc.freeze()
        forks.many(len(submissions))
        for submission in submissions:
            forks.wait_for_room()
            forks.add(_start(course, exercise, submission, seed, isolation, collected))

    if problem := with_collected(exercise, start_all):
        for submission in submissions:
            forks.ready(submission, _infrastructure(submission, problem))


class _Forks:
    """Grading forks, at most ``workers`` at once, also while one exercise ends and the next begins. ``ready`` is called
    with each submission and its record."""

    def __init__(self, workers: int, ready: Callable[[Submission, ExerciseRecord], None]) -> None:
        self._workers, self.ready = workers, ready
        self._running: dict[int, _Fork] = {}
        self._collapsed = False

    def __enter__(self) -> Self:
        return self

    def many(self, count: int) -> None:
        """Prepare for ``count`` forks of this process as it is."""
        if count >= MANY and not self._collapsed:
            self._collapsed = bool(collapse())

    def add(self, fork: _Fork) -> None:
        """Take in a fork that was started."""
        self._running[fork.pipe] = fork

    def wait_for_room(self, room: int = 1) -> None:
        """Hear what the forks say until ``room`` more may run; of those that have ended the records are ready."""
        while len(self._running) + room > self._workers:
            ready, _, _ = select.select(list(self._running), [], [], 1.0)
            for pipe in ready:
                chunk = os.read(pipe, 1 << 20)
                self._running[pipe].said += chunk
                if not chunk:
                    fork = self._running.pop(pipe)
                    self.ready(fork.submission, _finished(fork))
            for fork in [f for f in self._running.values() if time.monotonic() > f.until]:
                os.kill(fork.pid, 9)

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None:
                self.wait_for_room(self._workers)
        finally:
            for fork in self._running.values():
                os.kill(fork.pid, 9)
                os.waitpid(fork.pid, 0)
                os.close(fork.pipe)


def _start(course: Any, exercise: Any, submission: Submission, seed: int | None, isolation: str, collected: Any) -> _Fork:
    import numpy as np

    from llmkata.outside.process import adopt, branches

    inherited = branches()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(read)
            adopt(inherited)
            # What was imported meanwhile may have drawn from these: each fork would find them otherwise.
            random.seed(seed or 0)
            np.random.seed((seed or 0) % (1 << 32))
            known = len(sys.modules)
            record = _judged(course, exercise, submission, seed, isolation, collected)
            data = memoryview(with_libraries(record, known))
            while data:
                data = data[os.write(write, data):]
            status = 0
        os._exit(status)
    os.close(write)
    for t in inherited.values():
        t.close()
    return _Fork(submission, pid, read, time.monotonic() + _GENEROSITY * exercise.wall + _EXTRA_SECONDS)


def _judged(course: Any, exercise: Any, submission: Submission, seed: int | None, isolation: str,
            collected: Any) -> bytes:
    """The encoded record; whatever breaks in the grader is told, and kept apart from the learner."""
    from .runner import grade_one

    try:
        record = grade_one(course, exercise, submission.source, learner=submission.learner, file=submission.file,
                           isolation=isolation, seed=seed, collected=collected)
        return encode(submission.signed(record))
    except BaseException as e:  # noqa: BLE001
        return encode(_infrastructure(submission, f"The grader failed: {type(e).__name__}: {e}"))


def _finished(fork: _Fork) -> ExerciseRecord:
    os.close(fork.pipe)
    _, status = os.waitpid(fork.pid, 0)
    if status == 0 and fork.said:
        try:
            return decode(without_libraries(bytes(fork.said)))
        except msgspec.MsgspecError as e:  # the run goes on: the others have done nothing
            return _infrastructure(fork.submission, f"The record of this cannot be read back: {e}")
    how = f"was ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended without a result"
    return _infrastructure(fork.submission, f"The process that judged this {how}. Grade it again: nothing is held "
                                            "against the learner.")


def _infrastructure(submission: Submission, cause: str) -> ExerciseRecord:
    return submission.signed(ExerciseRecord(submission.learner, submission.exercise_id, State.infrastructure, cause=cause))
