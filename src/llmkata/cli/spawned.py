"""Grading where processes that hold torch cannot be forked safely (macOS, Windows): each submission in a process of its
own, started afresh and without a sandbox.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.grading.intake import Submission
    from llmkata.records import ExerciseRecord

#: Hidden checks are many more than those of the loop, which wants an answer soon.
_PATIENCE = 300.0
_NOTE = "Checked in a process of its own without a sandbox, which this system has not."


def judge_spawned(
    exercise: Exercise, read: Submission, *, only: str | None = None, seed: int | None = None,
    printed: dict[str, str] | None = None,
) -> ExerciseRecord:  # fmt: skip
    """The record of one submission that can be read, hidden checks too. ``printed`` as for ``cli.check.judge``."""
    from llmkata.watch.judge import Judge
    from llmkata.watch.warm import Request

    judge = Judge(exercise, forking=False, patience=_PATIENCE)
    try:
        source = base64.b64encode(read.source).decode()
        record = judge.verdict(Request(source=source, only=only or "", hidden=True, seed=seed))
        if printed is not None:
            printed.update(judge.printed)
    finally:
        judge.close()
    record.notes.append(_NOTE)
    return record


def grade_spawned(
    course: Course, submissions: Iterable[Submission], *, out: Path, seed: int | None, isolation: str,
    progress: Callable[[ExerciseRecord], None], sure: Callable[[], None],
) -> list[ExerciseRecord]:
    """As ``grading.executor.grade_many``, one after the other. Raises TooLittleIsolation unless ``isolation`` is
    "process" or the course asks for no more.
    """
    from llmkata.grading.isolation import TooLittleIsolation
    from llmkata.places import RECORDS
    from llmkata.records import RecordFile

    if "process" not in (isolation, course.policy.isolation):
        raise TooLittleIsolation("this system has no sandbox for submissions; see './kata doctor', or grade with "
                                 "--isolation=process if you trust every submission")
    sure()
    out.mkdir(parents=True, exist_ok=True)
    file, records = RecordFile(out / RECORDS), []
    for read in submissions:
        if read.source is None:
            record = read.record()
        else:
            record = read.signed(judge_spawned(course.exercise(read.exercise_id), read, seed=seed))
            progress(record)
        file.append(*read.shared(record))
        records.append(record)
    return records
