"""Many submissions: one warm grading process, a fork of it per submission, records appended as they arrive.

A submission's death is its own record and nothing else: the fork that judged it says nothing any more, and the record
says so. Forks share what costs seconds (torch, the graders' imports, the templates); what the first of them had to import
besides, the others have from the start.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmkata.forks import with_libraries, without_libraries
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
    submission that counts for several learners one record each is appended, and the first returned.

    ``sure`` is called once it is certain that this host can grade, before anything is written.

    Raises TooLittleIsolation before anything is graded on a host below the course's minimum.
    """
    submissions = list(submissions)
    if any(s.source is not None for s in submissions):
        require(course, isolation)
    sure()
    out.mkdir(parents=True, exist_ok=True)
    file = RecordFile(out / "records.jsonl")
    records: dict[tuple[str, str], ExerciseRecord] = {}
    by_pair = {(s.learner, s.exercise_id): s for s in submissions}

    def keep(record: ExerciseRecord) -> None:
        file.append(*by_pair[record.learner, record.exercise].shared(record))
        records[record.learner, record.exercise] = record

    waiting = []
    for s in submissions:
        if s.source is None:
            keep(s.record())
        else:
            waiting.append(s)
    if waiting:
        _warm(course, waiting)
        for record in _graded(course, waiting, max(1, workers), seed, isolation):
            keep(record)
            if progress is not None:
                progress(record)
    return [records[s.learner, s.exercise_id] for s in submissions]


def _warm(course: Any, submissions: list[Submission]) -> None:
    """Import what graders import and start the templates, once, before the first fork."""
    one_thread()
    import torch

    from llmkata.outside.process import template
    from llmkata.plugin.runs import load_module

    from .runner import collect

    torch.set_num_threads(1)
    exercises = [course.exercise(ident) for ident in dict.fromkeys(s.exercise_id for s in submissions)]
    for profile in dict.fromkeys(["base", *(e.profile for e in exercises)]):
        template(profile)
    for exercise in exercises:
        collect(course, exercise)
        with contextlib.suppress(Exception):  # the checks that need it say so
            load_module(exercise.reference)
    for profile in dict.fromkeys(e.profile for e in exercises):
        template(profile).wait_ready()
    template("base").wait_ready()
    # What is here now is shared by all forks and never collected in them.
    gc.collect()
    gc.freeze()


def _graded(course: Any, submissions: list[Submission], workers: int, seed: int | None, isolation: str) -> Any:
    """Records as forks finish; at most ``workers`` at once."""
    waiting, running = list(reversed(submissions)), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                fork = _start(course, waiting.pop(), seed, isolation)
                running[fork.pipe] = fork
            ready, _, _ = select.select(list(running), [], [], 1.0)
            for pipe in ready:
                chunk = os.read(pipe, 1 << 20)
                running[pipe].said += chunk
                if not chunk:
                    yield _finished(running.pop(pipe))
            for fork in [f for f in running.values() if time.monotonic() > f.until]:
                os.kill(fork.pid, 9)
    finally:
        for fork in running.values():
            os.kill(fork.pid, 9)
            os.waitpid(fork.pid, 0)
            os.close(fork.pipe)


def _start(course: Any, submission: Submission, seed: int | None, isolation: str) -> _Fork:
    from llmkata.outside.process import adopt, branches

    exercise = course.exercise(submission.exercise_id)
    inherited = branches()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(read)
            adopt(inherited)
            known = set(sys.modules)
            data = memoryview(with_libraries(_judged(course, exercise, submission, seed, isolation), known))
            while data:
                data = data[os.write(write, data):]
            status = 0
        os._exit(status)
    os.close(write)
    for t in inherited.values():
        t.close()
    return _Fork(submission, pid, read, time.monotonic() + _GENEROSITY * exercise.wall + _EXTRA_SECONDS)


def _judged(course: Any, exercise: Any, submission: Submission, seed: int | None, isolation: str) -> bytes:
    """The encoded record; whatever breaks in the grader is told, and kept apart from the learner."""
    from .runner import grade_one

    try:
        record = grade_one(course, exercise, submission.source, learner=submission.learner, file=submission.file,
                           isolation=isolation, seed=seed)
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
