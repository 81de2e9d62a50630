"""Which submissions of a run would be judged by other checks now."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llmkata.gradebook import counting
from llmkata.records import ExerciseRecord, State

from .provenance import grader_hash, result_key
from .sources import submission_of

if TYPE_CHECKING:
    from llmkata.course import Course

    from .submission import Submission


@dataclass(frozen=True)
class Stale:
    """A submission to grade again."""

    submission: Submission
    record: ExerciseRecord
    seed: int | None
    why: str


@dataclass
class Found:
    """What a run holds that may be graded again. ``lost``: records whose sources the folder does not have."""

    stale: list[Stale] = field(default_factory=list)
    lost: list[ExerciseRecord] = field(default_factory=list)
    unchanged: int = 0


def find(
    course: Course, folder: Path, records: Iterable[ExerciseRecord], *, seed: int | None, isolation: str,
    changed: bool, only: Collection[str] = (),
) -> Found:
    """The submissions that count, or all attempts where the best of them counts, and why each is graded again.

    ``seed``: None for the one each was graded with. ``changed``: leave out those whose verdict is by today's checks.
    ``only``: ids of exercises, all where empty.
    """
    result = Found()
    records = list(records)
    seeds = {r.provenance.seed for r in records if r.provenance}
    # A file that nobody touched was judged without one; it goes by that of its class.
    common = seeds.pop() if len(seeds) == 1 else None
    for record in _submissions(records, course):
        if only and record.exercise not in only:
            continue
        submission = submission_of(folder, record)
        if submission is None:
            result.lost.append(record)
            continue
        exercise = course.exercise(record.exercise)
        used = record.provenance.seed if record.provenance else common
        wanted = used if seed is None else seed
        why = ""
        if result_key(course, exercise, submission.source or b"", wanted or 0, isolation) != record.key:
            why = _why(exercise, record, wanted)
        if why or not changed:
            result.stale.append(Stale(submission, record, wanted, why or "asked for"))
        else:
            result.unchanged += 1
    return result


def _submissions(records: Iterable[ExerciseRecord], course: Course) -> list[ExerciseRecord]:
    """The latest grading of each submission that matters and was once read."""
    records = [r for r in records if r.state not in (State.missing,) and (r.submission_sha or r.state is State.infrastructure)]
    if course.policy.grading.attempts != "best":
        return list(counting(records, course).values())
    attempts: dict[tuple[str, str, str, str], list[ExerciseRecord]] = {}
    for r in records:
        attempts.setdefault((r.learner, r.exercise, r.submission_sha, r.submitted_at), []).append(r)
    return [next(iter(counting(same, course).values())) for same in attempts.values()]


def _why(exercise: object, record: ExerciseRecord, seed: int | None) -> str:
    if record.state is State.infrastructure:
        return "it could not be judged"
    if record.provenance is None or record.provenance.grader_hash != grader_hash(exercise):
        return "its checks or the framework changed"
    if (record.provenance.seed or 0) != (seed or 0):
        return "the seed is another"
    return "libraries, limits or the sandbox changed"
