"""One's own work: the records of ``kata check`` and where they leave each exercise."""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from llmkata.cli.common import YOU, state_dir

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.records import ExerciseRecord
    from llmkata.records.store import RecordFile
    from llmkata.reports.view import Past


def record_file(course: Course) -> RecordFile:
    """``.kata/records.jsonl`` of the course."""
    from llmkata.records.store import RecordFile

    return RecordFile(state_dir(course) / "records.jsonl")


def own_records(course: Course) -> dict[str, ExerciseRecord]:
    """The record that stands for each exercise checked so far, by exercise id."""
    from llmkata.records.store import latest, read_records

    path = state_dir(course) / "records.jsonl"
    if not path.exists():
        return {}
    return {exercise: record for (who, exercise), record in latest(read_records([path]).records).items() if who == YOU}


def own_past(course: Course) -> Past:
    """How one got there: every attempt, the hints opened, the solutions opened without passing."""
    from llmkata.cli.hints import opened_levels
    from llmkata.reports.view import Past

    return Past(record_file(course).read().records, opened_levels(state_dir(course)), given_up(course))


def given_up(course: Course) -> dict[str, str]:
    """Exercise id -> when its solution was first opened without passing. A file that cannot be read tells nothing."""
    try:
        return msgspec.json.decode((state_dir(course) / "given_up.json").read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def remember_given_up(course: Course, exercise: str) -> None:
    """Record that the solution of ``exercise`` was opened now; the first time stands."""
    known = given_up(course)
    known.setdefault(exercise, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    state_dir(course).mkdir(parents=True, exist_ok=True)
    partial = state_dir(course) / f"given_up.json.{os.getpid()}"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(known)))
    partial.replace(state_dir(course) / "given_up.json")


def next_exercise(
    course: Course, records: dict[str, ExerciseRecord], broken: Collection[str] = ()
) -> Exercise | None:
    """What to work on: what an edit broke (ids in ``broken``), what was begun last, else the first whose prerequisites are
    passed, else a stretch task left over. None when everything is mastered.
    """
    from llmkata.gradebook import Standing, standing

    for exercise in course.available:
        if exercise.id in broken:
            return exercise
    where = {e.id: standing(records.get(e.id)) for e in course.available}
    begun = [e for e in course.available if where[e.id] in (Standing.in_progress, Standing.unreadable)]
    if begun:
        return max(begun, key=lambda e: records[e.id].graded_at)
    done = {e.slug for e in course.available if where[e.id] in (Standing.passed, Standing.mastered)}
    can_be_done = {e.slug for e in course.available}
    fresh = [e for e in course.available if e.slug not in done]
    ready = [e for e in fresh if done.issuperset(can_be_done.intersection(e.prerequisites))]
    left_over = [e for e in course.available if where[e.id] is Standing.passed]
    return next(iter([*ready, *fresh, *left_over]), None)
