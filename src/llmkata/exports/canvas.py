"""Grades for Canvas: *Gradebook, Import*.

Canvas asks for the columns Student, ID (or SIS User ID, SIS Login ID) and Section, then one column an assignment; the
line after the header holds the points to be had, its first cell "Points Possible". An empty cell changes nothing. A
column whose name ends with the number of an assignment in parentheses, as in a gradebook exported from Canvas, goes to
that assignment; for any other name Canvas asks. Source: Canvas's instructor guide, "How do I import grades in the
Gradebook?".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .layout import number, to_csv

if TYPE_CHECKING:
    from llmkata.course import Exercise

    from .people import People
    from .results import Results

IDENTITY = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """With a list of people (a gradebook exported from Canvas) their names and numbers, without it the learner's name
    stands for the student and as the SIS login. Learners that are not on the list are left out.
    """
    header = [_column(exercise, people) for exercise in view.exercises]
    rows: list[list[object]] = [
        [*IDENTITY, *header],
        ["Points Possible", "", "", "", "", *(number(view.maxima[e.id]) for e in view.exercises)],
    ]
    known = people.matched(view.cards) if people else {}
    for learner, card in view.cards.items():
        if people and learner not in known:
            continue
        row = known.get(learner)
        identity = (
            [row.get("student", "name", "full name") or card.learner,
             row.get("id" if people.has("student") else "canvas id"),
             row.get("sis user id", "student id"), row.get("sis login id", "login id", "username", "login"),
             row.get("section")]
            if row and people else [card.learner, "", "", card.learner, ""]
        )  # fmt: skip
        scores = [view.score(learner, exercise) for exercise in view.exercises]
        rows.append([*identity, *("" if score is None else number(score) for score in scores)])
    yield "canvas.csv", to_csv(rows)


def _column(exercise: Exercise, people: People | None) -> str:
    """The assignment's column as the exported gradebook spells it, else a name for a new assignment."""
    name = f"{exercise.number} {exercise.title}"
    for column in people.header if people else ():
        if re.fullmatch(re.escape(name) + r"\s*\(\d+\)", column, re.IGNORECASE):
            return column
    return name
