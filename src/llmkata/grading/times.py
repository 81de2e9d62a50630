"""When learners handed in, as a table that staff give: bulk downloads do not say it.

A CSV file with ``id`` (or any name that the roster finds the learner by), ``submitted at``, and where times differ
``exercise``; or the grading worksheet of a Moodle assignment as it was downloaded (*View all submissions, Download
grading worksheet*). Times without an offset are in the time zone of ``policy.grading``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmkata.course import UnknownExercise
from llmkata.course.grading import in_zone

from .csvfile import TableError, read_table
from .roster import AmbiguousName, Roster
from .submission import Submission

if TYPE_CHECKING:
    from llmkata.course import Course

#: Columns of one's own table, and of Moodle's worksheet in English.
_TIME, _MOODLE_TIME = "submitted at", "last modified (submission)"
_NAMES = ("id", "learner", "name", "identifier", "username", "id number", "email", "email address", "full name")
#: As Moodle in English writes a time; other languages and settings are not guessed.
_MOODLE_FORMATS = ("%A, %d %B %Y, %I:%M %p", "%A, %d %B %Y, %H:%M")


@dataclass(frozen=True)
class _Row:
    names: tuple[str, ...]
    #: Exercise id; "" for all.
    exercise: str
    submitted_at: str


class Times:
    """A table of times; see :func:`read_times`."""

    def __init__(self, rows: Iterable[_Row]) -> None:
        self._rows = tuple(rows)

    def stamped(self, submissions: Iterable[Submission], roster: Roster | None) -> list[Submission]:
        """The submissions with the times the table gives for them; one without a file or a row as it is. A row for the
        exercise comes before one for all; of several the last. A name that two people have stands for neither.
        """
        known = self._by_name(roster)
        return [
            replace(s, submitted_at=stamp) if s.file and (stamp := _stamp(s, known)) else s for s in submissions
        ]

    def _by_name(self, roster: Roster | None) -> dict[tuple[str, str], str]:
        people: dict[str, set[str]] = {}
        named = [(row, _names(row, roster)) for row in self._rows]
        for row, names in named:
            for name in names:
                people.setdefault(name, set()).add(row.names[0])
        return {
            (name, row.exercise): row.submitted_at for row, names in named for name in names if len(people[name]) == 1
        }


def _names(row: _Row, roster: Roster | None) -> tuple[str, ...]:
    """The names by which submissions of the person of a row may go."""
    if roster is None:
        return row.names
    try:
        person = roster.find(*row.names)
    except AmbiguousName:
        return row.names[:1]
    return (person.id,) if person else row.names


def _stamp(submission: Submission, known: Mapping[tuple[str, str], str]) -> str:
    found = (
        known.get((learner, exercise), "")
        for exercise in (submission.exercise_id, "") for learner in (submission.learner, *submission.mates)
    )  # fmt: skip
    return next(filter(None, found), "")


def read_times(path: Path, course: Course) -> Times:
    """The table in a CSV file.

    Raises:
        TableError: not such a file, or faults in it: no column of times or of names, an exercise the course does not have,
            a time that cannot be read.
    """
    table = read_table(path, "id,submitted at")
    time = next((column for column in (_TIME, _MOODLE_TIME) if column in table.columns), None)
    names = [column for column in table.columns if column in _NAMES]
    if time is None or not names:
        raise TableError(table.lacks(_TIME if time is None else "id"))
    found, faults = [], []
    for row in table.rows:
        if row.get(time) in ("", "-"):
            continue
        try:
            exercise = course.exercise(row.get("exercise")).id if row.get("exercise") else ""
        except UnknownExercise as error:
            faults.append(table.fault(row.line, f"exercise: {error}"))
            continue
        try:
            stamp = _moment(row.get(time), course.policy.grading.timezone)
        except ValueError as error:
            faults.append(table.fault(row.line, f"{time}: {error}"))
            continue
        found.append(_Row(tuple(row.get(name) for name in names if row.get(name)), exercise, stamp))
    if faults:
        raise TableError("\n".join(faults))
    return Times(found)


def _moment(text: str, zone: str) -> str:
    if len(text) <= len("2026-10-05"):
        raise ValueError(f"{text!r} has no time of day; write it as 2026-10-05 23:59")
    readings = [datetime.fromisoformat, *(partial(_written, form=form) for form in _MOODLE_FORMATS)]
    for reading in readings:
        try:
            return in_zone(reading(text), zone).isoformat()
        except ValueError:
            continue
    raise ValueError(f"{text!r} is no time; write it as 2026-10-05 23:59")


def _written(text: str, form: str) -> datetime:
    return datetime.strptime(text, form)
