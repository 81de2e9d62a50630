"""What earlier runs found need not be found again: a submission under the same key has the same verdict.

That is what makes a run that was killed go on where it was, and a class that hands in once more cost only what is new;
and of files that are the same in one run, as those that nobody touched, one is judged.
A check that could not be judged is never taken over: it may be judged now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from llmkata.records import ExerciseRecord, Outcome, State

from .provenance import result_key

if TYPE_CHECKING:
    from llmkata.course import Course

    from .submission import Submission


#: The cause of a check that was not tried, since it had nothing to stand on: it fails where the other one does.
_FOLLOWS = re.compile(r"needs \S+, which did not pass")


@dataclass
class Plan:
    """How a run is split by what is known: ``taken`` is to be written into the record file, ``rest`` is to be graded, and
    ``copies`` are the same as one of these, as files that nobody touched are; what stands in the file already is in none.
    """

    taken: list[ExerciseRecord] = field(default_factory=list)
    rest: list[Submission] = field(default_factory=list)
    copies: list[Submission] = field(default_factory=list)


def plan(
    course: Course, submissions: Iterable[Submission], records: Iterable[ExerciseRecord], *, seed: int | None,
    isolation: str,
) -> Plan:
    """Hold ``submissions`` against the records of earlier runs. ``seed``: as for ``grade_many``."""
    verdicts: dict[str, ExerciseRecord] = {}
    last: dict[tuple[str, str], tuple[object, ...]] = {}
    for record in records:
        last[record.learner, record.exercise] = _identity(record)
        if record.key and final(record):
            verdicts[record.key] = record
    now = datetime.now(UTC).isoformat(timespec="seconds")
    asked: set[str] = set()
    result = Plan()
    for submission in submissions:
        if submission.source is None:
            found = submission.record()
        else:
            exercise = course.exercise(submission.exercise_id)
            key = result_key(course, exercise, submission.source, seed or 0, isolation)
            if key not in verdicts:
                (result.copies if key in asked else result.rest).append(submission)
                asked.add(key)
                continue
            # Its notes are about the file of that time; signing adds those of this one.
            found = submission.signed(msgspec.structs.replace(verdicts[key], notes=[], graded_at=now))
        # What was written last counts as handed in last, where no times are known.
        result.taken += [r for r in submission.shared(found) if last.get((r.learner, r.exercise)) != _identity(r)]
    return result


def final(record: ExerciseRecord) -> bool:
    """Whether grading once more could not say anything else."""
    if record.state in (State.missing, State.not_started):
        return True
    if record.state is State.unreadable:
        return not record.submission_sha  # told by reading the file; what cannot be imported is tried again
    return record.state is State.graded and all(
        c.outcome is not Outcome.not_judged or c.excused or _FOLLOWS.fullmatch(c.cause) for c in record.checks)


def _identity(record: ExerciseRecord) -> tuple[object, ...]:
    """Equal for records that say the same of the same submission."""
    return (record.learner, record.exercise, record.key, record.state, record.submitted_at, record.cause,
            *record.files, *record.notes)
