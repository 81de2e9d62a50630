"""Progress is re-verified, not believed: a passed exercise whose file changed is judged again before it is shown."""

from __future__ import annotations

import hashlib
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.records import ExerciseRecord


def changed_since_passed(course: Course, records: dict[str, ExerciseRecord]) -> list[str]:
    """Ids of exercises recorded as passed or mastered whose file is not the one that was judged."""
    from llmkata.gradebook import Standing, standing

    out = []
    for ident, record in records.items():
        exercise = course.exercise(ident)
        if standing(record) in (Standing.passed, Standing.mastered) and exercise.stub.is_file():
            if hashlib.sha256(exercise.stub.read_bytes()).hexdigest() != record.submission_sha:
                out.append(ident)
    return out


def reverified(course: Course, records: dict[str, ExerciseRecord]) -> tuple[dict[str, ExerciseRecord], list[str]]:
    """-> (records with broken exercises as they are now, a sentence for each exercise that was judged again).

    The visible checks are run in a process of their own; they cannot vouch for the hidden ones, and the sentence says so.
    """
    from llmkata.cli.common import prog
    from llmkata.records import Outcome, State
    from llmkata.watch.judge import Judge

    records, said = dict(records), []
    for ident in changed_since_passed(course, records):
        judge = Judge(course, course.exercise(ident))
        judge.start()
        record = None
        while record is None:
            select.select([judge], [], [], judge.seconds_left() + 0.1)
            record = judge.poll()
        broken = record.state is not State.graded or any(c.outcome is Outcome.failed for c in record.checks)
        if broken:
            records[ident] = record
            said.append(f"{ident} was passed and is broken since your last edit: {prog()} check {ident}")
        else:
            said.append(f"{ident} was edited since it was passed; its visible checks still pass. All of them: "
                        f"{prog()} check {ident}")
    return records, said
