"""Progress is re-verified, not believed: a passed exercise whose file changed is judged again before it is shown.

What came of it is kept in ``.kata/verified.json`` under the hash of the file and of the checks, so that it is done once
for each edit. The file only saves time: deleting it loses nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.records import ExerciseRecord


@dataclass
class Verified:
    """Where one stands, as far as it was looked at again."""

    #: By exercise id: the records of ``kata check``, and in place of those that no longer hold what is so now.
    records: dict[str, ExerciseRecord]
    #: Ids of exercises that were passed and fail now.
    broken: set[str] = field(default_factory=set)
    #: A sentence for each exercise that was edited since it was passed.
    said: list[str] = field(default_factory=list)

    def where(self, exercise: Exercise) -> str:
        """The state of an exercise in words."""
        from llmkata.gradebook import standing

        return "broken" if exercise.id in self.broken else standing(self.records.get(exercise.id)).value


def own_verified(course: Course, say: Callable[[str], None] = lambda text: None) -> Verified:
    """One's own records, looked at again."""
    from llmkata.cli.own import own_records

    return reverified(course, own_records(course), say)


def changed_since_passed(course: Course, records: dict[str, ExerciseRecord]) -> list[str]:
    """Ids of exercises recorded as passed or mastered whose file is not the one that was judged."""
    from llmkata.gradebook import Standing, standing

    out = []
    for exercise in course.available:
        record = records.get(exercise.id)
        if standing(record) not in (Standing.passed, Standing.mastered) or not exercise.stub.is_file():
            continue
        if hashlib.sha256(exercise.stub.read_bytes()).hexdigest() != record.submission_sha:
            out.append(exercise.id)
    return out


def reverified(
    course: Course, records: dict[str, ExerciseRecord], say: Callable[[str], None] = lambda text: None
) -> Verified:
    """Judge again what was edited since it was passed.

    The visible checks are run in a process of their own; they cannot vouch for the hidden ones, and the sentence says so.
    ``say`` is told before anything slow.
    """
    from llmkata.cli.common import prog, state_dir
    from llmkata.records import State
    from llmkata.reports.text import line

    known = Verified(dict(records))
    kept = _Kept(state_dir(course) / "verified.json")
    for ident in changed_since_passed(course, records):
        exercise = course.exercise(ident)
        record = kept.get(exercise)
        if record is None:
            say(f"checking {ident}, which was edited since it was passed...")
            record = _judged(exercise)
            kept.put(exercise, record)
        if record.state is State.infrastructure:
            known.said.append(f"{ident} was edited since it was passed and could not be checked again: {line(record.cause, 160)}")
        elif record.state is State.not_started:
            known.records[ident] = record
            known.said.append(f"{ident} was passed and is back at the stub.")
        elif record.state is not State.graded or _lost(records[ident], record):
            known.records[ident] = record
            known.broken.add(ident)
            known.said.append(f"{ident} was passed and is broken since your last edit: {prog()} watch {ident}")
        else:
            known.said.append(f"{ident} was edited since it was passed; its visible checks still pass. All of them: "
                              f"{prog()} check {ident}")
    return known


def _lost(before: ExerciseRecord, now: ExerciseRecord) -> bool:
    """Whether a check that had passed fails."""
    from llmkata.records import Outcome

    had = {check.id for check in before.checks if check.outcome is Outcome.passed}
    return any(check.id in had and check.outcome is Outcome.failed for check in now.checks)


def _judged(exercise: Exercise) -> ExerciseRecord:
    from llmkata.watch.judge import Judge

    judge = Judge(exercise)
    try:
        return judge.verdict()
    finally:
        judge.close()


class _Kept:
    """Verdicts by exercise, each with the hash of what it was reached on."""

    def __init__(self, path: Path) -> None:
        from llmkata.records import ExerciseRecord

        self.path = path
        self._type = dict[str, tuple[str, ExerciseRecord]]
        try:
            self._known = msgspec.json.decode(path.read_bytes(), type=self._type)
        except (OSError, msgspec.DecodeError):
            self._known = {}

    def get(self, exercise: Exercise) -> ExerciseRecord | None:
        """The verdict on the file and the checks as they are now."""
        key, record = self._known.get(exercise.id, ("", None))
        return record if key == _key(exercise) else None

    def put(self, exercise: Exercise, record: ExerciseRecord) -> None:
        """Keep a verdict; one that the grader failed on is not kept."""
        from llmkata.records import State

        if record.state is State.infrastructure:
            return
        self._known[exercise.id] = (_key(exercise), record)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        partial.write_bytes(msgspec.json.encode(self._known))
        partial.replace(self.path)


def _key(exercise: Exercise) -> str:
    digest = hashlib.sha256()
    for path in (exercise.stub, exercise.visible_checks):
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()
