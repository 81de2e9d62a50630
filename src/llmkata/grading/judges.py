"""Forks that judge: each holds what the grading process holds, and is given one submission after the other.

What a fork touches first is copied for it, page by page: its first submission costs three times what the next ones do.
That none of them meets what another left is seen to in four ways. Code of a submission never runs here. What checks are
known to change (:class:`_Surroundings`) is set back before each. A fork whose submission was out of the ordinary is given
no other, and none more than ``MOST``. And the first submission of a class is judged twice by one fork: graders that say
something else the second time keep something, and are then given a fork for each submission.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch

from llmkata.forks import with_libraries, without_libraries
from llmkata.outside.process import forked
from llmkata.plugin.verdict import is_fault
from llmkata.records import ExerciseRecord, State, decode, encode

from .submission import Submission

#: Submissions that one fork judges at most: what libraries keep must not add up.
MOST = 32

#: To a fork: the place of a submission, and whether to judge it twice. From it: the length of what follows, and whether
#: both times were alike.
_ORDER, _ANSWER = struct.Struct("<I?"), struct.Struct("<Q?")


@dataclass(frozen=True)
class Class:
    """What judging the submissions of one exercise needs."""

    course: Any
    exercise: Any
    submissions: list[Submission]
    seed: int | None
    isolation: str
    #: The checks, see ``runner.Collected``.
    collected: Any


@dataclass
class Judge:
    """A fork, as the process sees it that made it."""

    submissions: list[Submission]
    pid: int
    wire: socket.socket
    #: What it is judging, and until when it may; None while it has nothing to do.
    submission: Submission | None = None
    until: float = math.inf
    given: int = 0
    #: Whether what it judged twice was alike; None: nothing was.
    alike: bool | None = None
    _twice: bool = False
    _said: bytearray = field(default_factory=bytearray)

    def give(self, place: int, seconds: float, *, twice: bool = False) -> None:
        """Have it judge a submission, which may take ``seconds``."""
        self.submission, self.until, self.given = self.submissions[place], time.monotonic() + seconds, self.given + 1
        self._twice = twice
        with contextlib.suppress(OSError):  # it has ended: hearing it will tell
            self.wire.send(_ORDER.pack(place, twice))

    def hear(self) -> ExerciseRecord | None:
        """Read what there is -> the record of its submission once that is complete. A fork that ended without one has an
        ``infrastructure`` record, and ``wire`` is closed."""
        chunk = self.wire.recv(1 << 20)
        self._said += chunk
        if not chunk:
            return self._lost()
        if len(self._said) < _ANSWER.size:
            return None
        length, alike = _ANSWER.unpack_from(self._said)
        if len(self._said) < _ANSWER.size + length:
            return None
        data, self._said = bytes(self._said[_ANSWER.size:]), bytearray()
        submission, self.submission, self.until = self.submission, None, math.inf
        if self._twice:
            self.alike, self._twice = alike, False
        try:
            return decode(without_libraries(data))
        except msgspec.MsgspecError as e:  # the run goes on: the others have done nothing
            return infrastructure(submission, f"The record of this cannot be read back: {e}")

    def _lost(self) -> ExerciseRecord | None:
        status, submission = self.end(), self.submission
        if submission is None:
            return None
        how = f"was ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended without a result"
        return infrastructure(submission, f"The process that judged this {how}. Grade it again: nothing is held against "
                                          "the learner.")

    @property
    def ended(self) -> bool:
        """Whether it is gone, and waited for."""
        return self.wire.fileno() < 0

    def kill(self) -> None:
        """End it now; hearing it tells."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Give it nothing more and wait for its end -> its wait status."""
        self.wire.close()
        return os.waitpid(self.pid, 0)[1]


def start(of: Class, others: Iterable[Judge]) -> Judge:
    """Fork a judge. ``others`` that are there: it would hold their ends of the wire, too."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        for wire in (ours, *(other.wire for other in others)):
            wire.close()
        _serve(of, theirs)

    pid = forked(serve)
    theirs.close()
    return Judge(of.submissions, pid, ours)


def uneventful(record: ExerciseRecord) -> bool:
    """Whether the fork that judged this may be given another one."""
    return record.state is not State.infrastructure and "broke the protocol" not in record.cause and not any(
        c.flags or is_fault(c) for c in record.checks)


def infrastructure(submission: Submission, cause: str) -> ExerciseRecord:
    """The record of a submission that could not be judged through no fault of its own."""
    return submission.signed(ExerciseRecord(submission.learner, submission.exercise_id, State.infrastructure, cause=cause))


def _serve(of: Class, wire: socket.socket) -> None:
    surroundings = _Surroundings(of.seed or 0)
    while order := wire.recv(_ORDER.size, socket.MSG_WAITALL):
        place, twice = _ORDER.unpack(order)
        known = len(sys.modules)
        surroundings.restore()
        record = _judged(of, of.submissions[place])
        if twice:
            surroundings.restore()
        alike = twice and _told(_judged(of, of.submissions[place])) == _told(record)
        data = with_libraries(record, known)
        wire.sendall(_ANSWER.pack(len(data), alike) + data)


def _judged(of: Class, submission: Submission) -> bytes:
    """The encoded record; whatever breaks in the grader is told, and kept apart from the learner."""
    from .runner import grade_one

    try:
        record = grade_one(of.course, of.exercise, submission.source, learner=submission.learner, file=submission.file,
                           isolation=of.isolation, seed=of.seed, collected=of.collected)
        return encode(submission.signed(record))
    except BaseException as e:  # noqa: BLE001
        return encode(infrastructure(submission, f"The grader failed: {type(e).__name__}: {e}"))


def _told(record: bytes) -> list[Any]:
    """What a learner is told, without what differs from run to run by its nature."""
    read = decode(record)
    return [read.state, read.cause, *((c.id, c.outcome, c.points, c.cause, c.evidence, c.diagnosis) for c in read.checks)]


class _Surroundings:
    """What checks and oracles may change in their process, as it was: generators, and switches of libraries."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._torch = torch.get_default_dtype(), torch.is_grad_enabled()
        self._errors = np.geterr()
        self._warnings = list(warnings.filters)
        self._environment, self._folder = dict(os.environ), os.getcwd()

    def restore(self) -> None:
        """Set everything back; generators start afresh, for what is imported may have drawn from them."""
        random.seed(self._seed)
        np.random.seed(self._seed % (1 << 32))
        torch.default_generator.manual_seed(self._seed)
        dtype, grad = self._torch
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        np.seterr(**self._errors)
        if warnings.filters != self._warnings:
            warnings.filters[:] = self._warnings
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        os.chdir(self._folder)
