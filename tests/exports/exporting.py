"""A class of made-up records in every state, and each format written from it."""

from __future__ import annotations

import json
from pathlib import Path

from llmkata.exports.formats import FORMATS
from llmkata.exports.people import People, read_people
from llmkata.exports.results import Results, results
from llmkata.records import ExerciseRecord, State

from ..reports.factory import (
    KV_CACHE,
    MATRIX_CALCULUS,
    SELF_ATTENTION,
    course,
    in_progress,
    mastered,
    record,
    unreadable,
)

#: Formats that need no list of people.
ALONE = [name for name in FORMATS if name not in ("classroom50", "moodle-feedback")]


def a_class() -> list[ExerciseRecord]:
    """ann: a bit of everything; bob: all of one; eve: the grader failed; "=1+1": nothing but a name."""
    return [
        mastered("ann"), in_progress("ann"), unreadable("ann"),
        mastered("bob"), record("bob", SELF_ATTENTION, State.not_started), mastered("bob", KV_CACHE),
        record("eve", MATRIX_CALCULUS, State.infrastructure, cause="The grading child was killed."),
        record("=1+1", SELF_ATTENTION, State.missing, cause="No self_attention.py was handed in."),
    ]  # fmt: skip


def view(records: list[ExerciseRecord] | None = None, hidden: str = "counterexample", **more) -> Results:
    """The records as exports see them."""
    return results(course(hidden), a_class() if records is None else records, **more)


def exported(name: str, of: Results, people: People | None = None) -> dict[str, bytes]:
    """The files of a format."""
    files = list(FORMATS[name].files(of, people))
    assert len({path for path, _ in files}) == len(files)
    return dict(files)


def documents(name: str, of: Results, people: People | None = None) -> dict[str, dict]:
    """The JSON files of a format."""
    return {path: json.loads(data) for path, data in exported(name, of, people).items() if path.endswith(".json")}


def listed(folder: Path, text: str) -> People:
    """A list of people with this content."""
    path = folder / "people.csv"
    path.write_text(text, encoding="utf-8")
    return read_people(path)
