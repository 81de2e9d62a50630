"""How often a learner may ask the hidden checks: a number of judgements of an exercise within some hours.

The record file of earlier runs is the ledger, and nothing else is: an attempt is a submission (its digest) that hidden
checks judged. The same file again is no attempt, since it would learn nothing new; neither is a run that the grader
failed on. This holds where the learner cannot write the ledger, that is in the instructor's own repository. In a
repository of the learner's it holds nobody who deletes the file.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from llmkata.records import ExerciseRecord, State


@dataclass(frozen=True)
class Allowance:
    """At most ``attempts`` different submissions judged within ``hours``, for each learner and exercise."""

    attempts: int
    hours: float = 24.0


@dataclass(frozen=True)
class Answer:
    """Whether a submission may be judged by hidden checks now."""

    allowed: bool
    #: Attempts within the hours, this one included where it is allowed.
    used: int
    #: All attempts there have been, in the same sense.
    total: int
    #: When the next one is allowed, where this one is not.
    next_at: datetime.datetime | None = None


def ask(
    allowance: Allowance | None,
    ledger: Iterable[ExerciseRecord],
    *,
    learner: str,
    exercise: str,
    submission_sha: str,
    now: datetime.datetime | None = None,
) -> Answer:
    """May this submission be judged? ``allowance`` None: always, and attempts are only counted."""
    now = now or datetime.datetime.now(datetime.UTC)
    first: dict[str, datetime.datetime] = {}
    for record in ledger:
        if (record.learner, record.exercise) == (learner, exercise) and is_attempt(record):
            when = _moment(record.graded_at)
            first[record.submission_sha] = min(when, first.get(record.submission_sha, when))
    total = len(first.keys() | {submission_sha})
    if allowance is None:
        return Answer(True, total, total)
    window = datetime.timedelta(hours=allowance.hours)
    recent = sorted(when for sha, when in first.items() if now - when < window and sha != submission_sha)
    if submission_sha in first or len(recent) < allowance.attempts:
        return Answer(True, len(recent) + 1, total)
    return Answer(False, len(recent), len(first), recent[-allowance.attempts] + window)


def is_attempt(record: ExerciseRecord) -> bool:
    """Whether hidden checks judged it: a file that cannot be imported is an attempt, a grader's fault is none."""
    if record.state is State.unreadable:
        return bool(record.submission_sha)
    return record.state is State.graded and any(check.visibility == "hidden" for check in record.checks)


def _moment(stamp: str) -> datetime.datetime:
    """Of an ISO 8601 stamp; one that cannot be read is long ago."""
    try:
        when = datetime.datetime.fromisoformat(stamp)
    except ValueError:
        return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
