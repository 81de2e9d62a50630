"""Grades for Moodle, in one of two layouts.

- With an assignment's grading worksheet (*View all submissions, Download grading worksheet*) as the list of people: the
  same worksheet with Grade and Feedback comments filled in, for *Upload grading worksheet*. Moodle finds a line by its
  Identifier and reads Grade, Last modified (grade) and Feedback comments. Source: mod/assign/feedback/offline.
- Otherwise a file for the course's gradebook (*Grades, Import, CSV file*), where the teacher says which column is what:
  Username, Email address, ID number, then a column an exercise with points, and one with a comment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmkata.reports.text import plain

from .formats import ExportError
from .layout import number, to_csv
from .wording import comment, summary

if TYPE_CHECKING:
    from llmkata.grading.csvfile import Row

    from .people import People
    from .results import Results

_GRADE, _MOST, _COMMENT = "grade", "maximum grade", "feedback comments"


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``moodle.csv``. Learners that are not on the list of people are left out; lines nobody answers to stay as they are.

    Raises ExportError where the worksheet has no number under Maximum grade.
    """
    worksheet = people is not None and people.has("identifier", _GRADE)
    yield "moodle.csv", to_csv(_worksheet(view, people) if worksheet else _gradebook(view, people))


def _gradebook(view: Results, people: People | None) -> Iterator[list[object]]:
    names = [f"{exercise.number} {exercise.title}" for exercise in view.exercises]
    yield ["Username", "Email address", "ID number", *(f(n) for n in names for f in (str, "{} (feedback)".format))]
    known = people.matched(view.cards) if people else {}
    for learner, card in view.cards.items():
        row = known.get(learner)
        if people and row is None:
            continue
        identity = (
            [row.get("username", "login", "learner"), row.get("email address", "email"), row.get("id number", "id")]
            if row else [card.learner, card.learner if "@" in card.learner else "", ""]
        )  # fmt: skip
        cells: list[object] = []
        for exercise in view.exercises:
            score = view.score(learner, exercise)
            cells += ["" if score is None else number(score), summary(view.card(learner, exercise))]
        yield [*identity, *cells]


def _worksheet(view: Results, people: People) -> Iterator[list[object]]:
    yield list(people.header)
    learners = {row.line: learner for learner, row in people.matched(view.cards).items()}
    for row in people.rows:
        cells = dict(row.cells)
        learner = learners.get(row.line)
        percent = view.cards[learner].total.percent if learner is not None else None
        if learner is not None and percent is not None:
            # An assignment there has no more than its maximum to give; the comment tells what was reached.
            cells[_GRADE] = f"{min(percent, 100) / 100 * _most(people, row):.2f}"
            cells[_COMMENT] = "<br>".join(_escaped(comment(view.cards[learner])).split("\n"))
        yield [cells.get(name, "") for name in people.columns]


def _most(people: People, row: Row) -> float:
    text = row.get(_MOST).replace(",", ".")
    try:
        return float(text or 100)
    except ValueError:
        raise ExportError(f"{people.path}:{row.line}: Maximum grade is {text!r}, not a number") from None


def _escaped(text: str) -> str:
    """Moodle takes a feedback comment for HTML."""
    return plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
