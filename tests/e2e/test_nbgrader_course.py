"""The toy course as a course of nbgrader, from source to feedback, by nbgrader's own commands."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from llmkata.grading.notebook import notebook_source

from ..toy.harness import ROOT, grade

#: What each learner fills in, by the name of what a cell defines; everything else stays as it was given out.
LEARNERS = {"full": None, "partial": ("softmax", "project", "stats"), "empty": ()}


def nbgrader(folder: Path, *words: str, status: int = 0) -> str:
    """A command of nbgrader in the course's folder; its output."""
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KATA_", "TOY_"))}
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words], cwd=folder, env=environment | {"PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    return done.stdout


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, 4)


def hand_in(folder: Path, learner: str, filled: tuple[str, ...] | None) -> None:
    """The released notebook with some of the model answer in it; a softmax that overflows for who did only a part."""
    answers = {cell.id: cell.source for cell in read(folder / "source/toy/toy.ipynb").cells}
    book = read(folder / "release/toy/toy.ipynb")
    for cell in book.cells:
        if cell.metadata.nbgrader.solution and (filled is None or cell.id.removeprefix("stub-") in filled):
            cell.source = answers[cell.id]
            if filled is not None:
                cell.source = cell.source.replace("x - x.amax(-1, keepdim=True)", "x")
    place = folder / "submitted" / learner / "toy"
    place.mkdir(parents=True)
    nbformat.write(book, place / "toy.ipynb")
    (place / "timestamp.txt").write_text("2026-03-01 12:00:00 UTC")


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> Path:
    """The folder of the course, after everything."""
    folder = tmp_path_factory.mktemp("nbgrader") / "course"
    command = [sys.executable, "-m", "llmkata.cli.main", "--course", str(ROOT), "export", "nbgrader-course", str(folder)]
    subprocess.run([*command, "--isolation", "process"], check=True, stdout=subprocess.DEVNULL)
    nbgrader(folder, "generate_assignment", "toy")
    for learner, filled in LEARNERS.items():
        hand_in(folder, learner, filled)
    nbgrader(folder, "autograde", "toy")
    nbgrader(folder, "generate_feedback", "toy")
    nbgrader(folder, "export")
    return folder


def test_each_learner_gets_the_points_kata_grade_gives(graded):
    with (graded / "grades.csv").open() as file:
        told = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}
    expected = {}
    for learner in LEARNERS:
        source, _ = notebook_source((graded / "submitted" / learner / "toy" / "toy.ipynb").read_bytes())
        record = grade(source, isolation="process")
        expected[learner] = (record.points, 21.0)
    assert told == expected
    assert [told[name][0] for name in LEARNERS] == [21, 12, 0]


def test_learners_get_the_stub_and_no_answer(graded):
    text = (graded / "release/toy/toy.ipynb").read_text()
    assert "NotImplementedError" in text and "task 1: one multiplication" in text
    for word in ("SOLUTION", "48271 * n", "amax", str(ROOT)):
        assert word not in text


def test_feedback_says_what_kata_check_says_and_nothing_else_comes_with_it(graded):
    page = (graded / "feedback/partial/toy/toy.html").read_text()
    assert "Without subtracting the maximum, exp overflows." in page
    assert {path.name for path in (graded / "feedback/partial/toy").iterdir()} == {"toy.html", "timestamp.txt"}


def test_validate_tells_a_full_answer_from_a_part_of_it(graded):
    assert nbgrader(graded, "validate", "source/toy/toy.ipynb").endswith("Success! Your notebook passes all the tests.\n")
    # As it was run when it was graded: running takes a while.
    said = nbgrader(graded, "validate", "autograded/partial/toy/toy.ipynb", "--Validator.preprocessors=[]")
    assert "%kata points 1" in said and "Partial credit" in said and "%kata points 2" not in said


def test_a_grader_that_fails_gives_no_grade(graded):
    """nbgrader says that it could not grade the notebook; a zero would look like one."""
    config = graded / "nbgrader_config.py"
    kept = config.read_text()
    config.write_text(kept.replace("isolation='process'", "isolation='nonsense'"))
    try:
        said = nbgrader(graded, "autograde", "toy", "--student", "full", "--force", status=1)
    finally:
        config.write_text(kept)
    assert "There was an error processing assignment 'toy' for student 'full'" in said
    assert "kata: not judged" in said
    assert not (graded / "autograded/full").exists() or not (graded / "autograded/full/toy").exists()
