"""The sources that were graded, by content, in the folder of a run: grading them again needs nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from llmkata.gradebook import MARKED_LATE
from llmkata.records import ExerciseRecord

from .submission import Submission

#: Within the folder of a run.
SOURCES = "sources"


def keep(folder: Path, submissions: Iterable[Submission]) -> None:
    """Put the sources there that are not there yet."""
    store = folder / SOURCES
    store.mkdir(parents=True, exist_ok=True)
    for submission in submissions:
        if submission.source is not None:
            path = _path(folder, hashlib.sha256(submission.source).hexdigest())
            if not path.exists():
                part = path.with_suffix(f".{os.getpid()}")
                part.write_bytes(submission.source)
                part.replace(path)


def submission_of(folder: Path, record: ExerciseRecord) -> Submission | None:
    """The submission that ``record`` is about, as it was handed in; None where its source is not in the folder."""
    path = _path(folder, record.submission_sha)
    if not record.submission_sha or not path.is_file():
        return None
    return Submission(
        record.learner, record.exercise, path.read_bytes(), record.files[0] if record.files else "", record.submitted_at,
        ignored=record.ignored, notes=[n for n in record.notes if n != MARKED_LATE], marked_late=MARKED_LATE in record.notes,
    )


def _path(folder: Path, sha: str) -> Path:
    return folder / SOURCES / f"{sha}.py"
