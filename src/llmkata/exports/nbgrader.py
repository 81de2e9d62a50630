"""A ``gradebook.db`` for nbgrader, written through its own API: an assignment for each exercise, in it one notebook with a
grade cell for each task.

Assignments, notebooks and cells are named as ``kata export nbgrader-course`` names them. Source: nbgrader.api.Gradebook,
nbgrader 0.9.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkata.gradebook.standing import Standing

from .wording import explained, summary

if TYPE_CHECKING:
    from nbgrader.api import Notebook

    from llmkata.course import Exercise
    from llmkata.grading.csvfile import Row
    from llmkata.reports.view import ExerciseCard

    from .people import People
    from .results import Results

#: The cell that holds the comment on a notebook.
FEEDBACK_CELL = "feedback"


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``gradebook.db``. The list of people tells first_name, last_name and email."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gradebook.db"
        write(f"sqlite:///{path}", view, people)
        yield "gradebook.db", path.read_bytes()


def write(url: str, view: Results, people: People | None = None) -> None:
    """Write a gradebook at an SQLAlchemy URL. The score of each submission, less its penalty, is what counts."""
    from nbgrader.api import Gradebook, Student

    known = people.matched(view.cards) if people else {}
    with _surroundings(), Gradebook(url) as book:
        for exercise in view.exercises:
            book.add_assignment(exercise.slug)
            book.add_notebook(exercise.slug, exercise.slug)
            for cell, most in _cells(view, exercise).items():
                book.add_grade_cell(cell, exercise.slug, exercise.slug, max_score=most, cell_type="code")
            book.add_solution_cell(FEEDBACK_CELL, exercise.slug, exercise.slug)
        for learner, card in view.cards.items():
            book.db.add(Student(id=card.learner, **_student(known.get(learner))))
        for exercise in view.exercises:
            master = book.find_notebook(exercise.slug, exercise.slug)
            for learner in view.cards:
                book.db.add_all(_submission(master, view, learner, exercise))
        book.db.commit()


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """nbgrader calls ``alembic`` by its name, which only an activated environment has on the path, and SQLAlchemy warns of
    how nbgrader adds submissions.
    """
    from sqlalchemy.exc import SAWarning

    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)
            yield
    finally:
        os.environ["PATH"] = before


def _cells(view: Results, exercise: Exercise) -> dict[str, float]:
    """Grade cells and the points of each. Without a graded learner nothing tells the tasks apart: one cell holds all."""
    most: dict[str, float] = {}
    for learner in view.cards:
        for task in view.card(learner, exercise).tasks:
            cell = cell_of(task.number)
            most[cell] = max(most.get(cell, 0.0), task.max_points)
        for mark in view.card(learner, exercise).by_hand.rubric:
            if mark.points is not None:
                most[f"rubric-{mark.name}"] = mark.max_points
    return most or {cell_of(1): view.maxima[exercise.id]}


def cell_of(task: int) -> str:
    """The grade cell of a task."""
    return f"task-{task}"


def _student(row: Row | None) -> dict[str, str]:
    if row is None:
        return {}
    first, _, last = row.get("name", "full name").rpartition(" ")
    found = {
        "first_name": row.get("first name") or first,
        "last_name": row.get("last name", "surname") or last,
        "email": row.get("email", "email address"),
    }
    return {name: value for name, value in found.items() if value}


def _submission(master: Notebook, view: Results, learner: str, exercise: Exercise) -> list[Any]:
    """The rows of one submission; none where nothing was handed in or given by hand, which
    nbgrader counts as zero.

    ``Gradebook.add_submission`` makes the same rows, with a transaction and ten queries each.
    """
    from nbgrader.api import Comment, Grade, SubmittedAssignment, SubmittedNotebook, new_uuid

    card = view.card(learner, exercise)
    nothing = card.standing is Standing.missing or not (card.files or card.graded_at)
    if nothing and not card.by_hand.given:
        return []
    submission = SubmittedAssignment(
        id=new_uuid(), assignment_id=master.assignment_id, student_id=view.cards[learner].learner,
        timestamp=_utc(card.submitted_at),
    )  # fmt: skip
    notebook = SubmittedNotebook(id=new_uuid(), notebook_id=master.id, assignment_id=submission.id)
    score = view.score(learner, exercise)
    points = {cell_of(task.number): task.points for task in card.tasks}
    points |= {f"rubric-{m.name}": m.points for m in card.by_hand.rubric if m.points is not None}
    grades = [
        Grade(cell_id=cell.id, notebook_id=notebook.id, needs_manual_grade=score is None,
              auto_score=None if score is None else points.get(cell.name, 0.0))
        for cell in master.grade_cells
    ]  # fmt: skip
    if score is not None:
        # What counts less than the points of the tasks is a penalty, what counts more extra credit.
        over = score - sum(points.values())
        notebook.late_submission_penalty = max(0.0, -over)
        grades[0].extra_credit = max(0.0, over)
    [cell] = master.solution_cells
    remark = Comment(cell_id=cell.id, notebook_id=notebook.id, auto_comment=_told(view, learner, exercise, card))
    return [submission, notebook, *grades, remark]


def _told(view: Results, learner: str, exercise: Exercise, card: ExerciseCard) -> str:
    told = [f"{line.name}\n{explained(line)}" for line in view.lines(learner, exercise) if line.check and line.status != "pass"]
    return "\n\n".join([summary(card), *told])


def _utc(stamp: str) -> datetime.datetime | None:
    try:
        at = datetime.datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return at.astimezone(datetime.UTC).replace(tzinfo=None) if at.tzinfo else at
