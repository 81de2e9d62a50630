"""Many submissions: one warm grading process, forks of it that judge, records appended as they arrive, some at a time.

A submission's death is its own record and nothing else: the fork that judged it says nothing any more, and the record
says so. Forks share what costs seconds (torch, the graders' imports, the templates); what the first of them had to import
besides, the others have from the start.
"""

from __future__ import annotations

import contextlib
import gc
import select
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llmkata.garbage import uncollected
from llmkata.inside.pages import MANY, collapse
from llmkata.places import RECORDS
from llmkata.records import ExerciseRecord, RecordFile
from llmkata.threads import one_thread

from .intake import Submission
from .isolation import require

if TYPE_CHECKING:
    from .judges import Class, Judge

#: Seconds that a record waits for others to be written with.
BATCH_SECONDS = 0.25
#: Seconds beyond an exercise's own limit after which a grading fork is given up (times ``_GENEROSITY``).
_EXTRA_SECONDS = 120.0
_GENEROSITY = 10.0
#: Submissions of an exercise from which it pays that a fork judges more than one: one of them is judged twice then.
_SHARED = 8
#: How many are at most, one after the other: it may be a submission that does not do the same twice.
_PROBES = 3
#: Hashes of the graders for which this process has seen that it may be.
_may_share: set[str] = set()


def grade_many(course: Any, submissions: Iterable[Submission], *, out: Path, workers: int = 1, seed: int | None = None,
               isolation: str = "sandbox", progress: Callable[[ExerciseRecord], None] | None = None,
               sure: Callable[[], None] = lambda: None, meanwhile: Callable[[], None] = lambda: None) -> list[ExerciseRecord]:
    """Grade all, append the records to ``out/records.jsonl`` as they arrive, return them in the order given: for a
    submission that counts for several learners one record each is appended, and the first returned. Graded exercise by
    exercise. What is killed loses the records of the last moment; nothing is half written.

    ``sure`` is called once it is certain that this host can grade, before anything is written; ``meanwhile`` while
    templates are getting ready, for what takes time and has to be done anyway.

    Raises TooLittleIsolation before anything is graded on a host below the course's minimum.
    """
    submissions = list(submissions)
    waiting: dict[str, list[Submission]] = {}
    for s in submissions:
        if s.source is not None:
            waiting.setdefault(s.exercise_id, []).append(s)
    if waiting:
        with uncollected():
            _warm(course, waiting)
            meanwhile()
        require(course, isolation)
    sure()
    out.mkdir(parents=True, exist_ok=True)
    records: dict[int, ExerciseRecord] = {}
    with _Appending(RecordFile(out / RECORDS)) as file:

        def keep(submission: Submission, record: ExerciseRecord) -> None:
            file.add(*submission.shared(record))
            records[id(submission)] = record

        def ready(submission: Submission, record: ExerciseRecord) -> None:
            keep(submission, record)
            if progress is not None:
                progress(record)

        for s in submissions:
            if s.source is None:
                keep(s, s.record())
        if waiting:
            with _Forks(max(1, workers), ready, file.write_due) as forks:
                for name, todo in waiting.items():
                    _grade(course, course.exercise(name), todo, seed, isolation, forks)
    return [records[id(s)] for s in submissions]


class _Appending:
    """Records on their way to the file, written together: the disk may take longer over each than its grading."""

    def __init__(self, file: RecordFile) -> None:
        self._file = file
        self._waiting: list[ExerciseRecord] = []
        self._since = 0.0

    def __enter__(self) -> Self:
        return self

    def add(self, *records: ExerciseRecord) -> None:
        """Have them written within ``BATCH_SECONDS``, as long as ``write_due`` is called as often."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += records

    def write_due(self) -> None:
        """Write what has waited for long enough."""
        if self._waiting and time.monotonic() - self._since >= BATCH_SECONDS:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._file.append(*waiting)

    def __exit__(self, *_: object) -> None:
        self._write()


def begin() -> None:
    """Have what every grading needs get ready in a process beside this one: the class may be read meanwhile."""
    from llmkata.outside.process import template

    template("base")


def _warm(course: Any, names: Iterable[str]) -> None:
    """Start the templates and import what is slow, once, before the first fork. Templates get ready meanwhile."""
    one_thread()
    from llmkata.outside.process import template

    exercises = [course.exercise(name) for name in names]
    for profile in dict.fromkeys(["base", *(e.profile for e in exercises)]):
        template(profile)
    import torch

    from llmkata.plugin.runs import load_module

    torch.set_num_threads(1)
    for exercise in exercises:
        with contextlib.suppress(Exception):  # the checks that need it say so
            load_module(exercise.reference)


def _grade(course: Any, exercise: Any, submissions: list[Submission], seed: int | None, isolation: str,
           forks: _Forks) -> None:
    """Start the grading of all; returns when the last has begun."""
    from llmkata.authoring.stub import StubError, is_stub

    from .judges import Class, infrastructure
    from .provenance import grader_hash
    from .runner import with_collected

    def start_all(collected: Any) -> None:
        # Read and cut here, not by each fork.
        probe = _Probe(len(submissions), grader_hash(exercise))
        with contextlib.suppress(StubError):  # an exercise without one has no untouched file
            is_stub(exercise, b"")
        # What is here now is shared by all forks and never collected in them.
        gc.collect()
        gc.freeze()
        forks.judge(Class(course, exercise, submissions, seed, isolation, collected), probe)

    if problem := with_collected(exercise, start_all):
        for submission in submissions:
            forks.ready(submission, infrastructure(submission, problem))


class _Probe:
    """Whether the graders of an exercise may judge several submissions in one process: tried on the first ones."""

    def __init__(self, submissions: int, graders: str) -> None:
        self._left = _PROBES if submissions >= _SHARED else 0
        self._graders = graders
        self._judge: Judge | None = None

    @property
    def passed(self) -> bool:
        """Whether a submission was judged twice and nothing differed."""
        if self._judge is not None and self._judge.alike:
            _may_share.add(self._graders)
        return self._graders in _may_share

    @property
    def given_up(self) -> bool:
        """Whether each submission has a fork of its own from now on."""
        return self._left == 0 and not self.passed and not self._tells()

    def wanted(self) -> bool:
        """Whether one more submission should be judged twice."""
        return self._left > 0 and not self.passed and not self._tells()

    def _tells(self) -> bool:
        """Whether one is being judged twice."""
        return self._judge is not None and self._judge.alike is None and not self._judge.ended

    def put_to(self, judge: Judge) -> None:
        """``judge`` judges one twice."""
        self._left -= 1
        self._judge = judge


class _Forks:
    """Grading forks, at most ``workers`` at once, also while one exercise ends and the next begins. ``ready`` is called
    with each submission and its record, ``now_and_then`` while forks are waited for."""

    def __init__(self, workers: int, ready: Callable[[Submission, ExerciseRecord], None],
                 now_and_then: Callable[[], None]) -> None:
        self._workers, self.ready, self._now_and_then = workers, ready, now_and_then
        self._running: dict[int, Judge] = {}
        self._forks = 0
        #: Whether this process's memory was put into huge pages: nobody is given work meanwhile.
        self._collapsed = False

    def __enter__(self) -> Self:
        return self

    def judge(self, of: Class, probe: _Probe) -> None:
        """Have all submissions of an exercise judged by forks of this process as it is; returns when the last is given
        to one."""
        seconds = _GENEROSITY * of.exercise.wall + _EXTRA_SECONDS
        for place in range(len(of.submissions)):
            judge = self._free(of, probe, left=len(of.submissions) - place)
            if twice := probe.wanted():
                probe.put_to(judge)
            judge.give(place, 2 * seconds if twice else seconds, twice=twice)

    def _free(self, of: Class, probe: _Probe, left: int) -> Judge:
        """A fork with nothing to do: one that has judged others of the exercise where that makes no difference, or a new
        one. ``left``: submissions of the exercise that are to be judged."""
        from llmkata.outside.process import any_ended

        from .judges import MOST, start

        while True:
            for judge in [j for j in self._running.values() if j.submission is None]:
                if judge.submissions is of.submissions and probe.passed and not any_ended():
                    return judge
                self._dismiss(judge)
            if len(self._running) < self._workers:
                self._forks += 1
                to_come = left if probe.given_up else left // MOST
                if not self._collapsed and self._forks + to_come > 2 * MANY:
                    collapse()
                    self._collapsed = True
                judge = start(of, self._running.values())
                self._running[judge.wire.fileno()] = judge
                return judge
            self._hear()

    def _hear(self) -> None:
        """Wait until a fork has something to say; records are ready then."""
        from .judges import MOST, uneventful

        heard, _, _ = select.select(list(self._running), [], [], BATCH_SECONDS)
        for wire in heard:
            judge = self._running[wire]
            submission, record = judge.submission, judge.hear()
            if judge.ended:
                del self._running[wire]
            elif record is not None and (judge.given >= MOST or not uneventful(record)):
                self._dismiss(judge)
            if record is not None:
                self.ready(submission, record)
        for judge in [j for j in self._running.values() if time.monotonic() > j.until]:
            judge.kill()
        self._now_and_then()

    def _dismiss(self, judge: Judge) -> None:
        del self._running[judge.wire.fileno()]
        judge.end()

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            while failed is None and any(j.submission is not None for j in self._running.values()):
                self._hear()
        finally:
            for judge in self._running.values():
                judge.kill()
                judge.end()
