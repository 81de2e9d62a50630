"""The toy course as a course of nbgrader, from source to feedback, by nbgrader's own commands."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass
class Done:
    """The folder of the course after everything; what ``validate`` said of its source; points by ``kata grade``."""

    folder: Path
    validated: str
    expected: dict[str, float]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    """All of it once, side by side where that is possible: starting nbgrader, kernels and checks takes its time."""
    folder = tmp_path_factory.mktemp("nbgrader") / "course"
    command = [sys.executable, "-m", "llmkata.cli.main", "--course", str(ROOT), "export", "nbgrader-course", str(folder)]
    subprocess.run([*command, "--isolation", "process"], check=True, stdout=subprocess.DEVNULL)
    with ThreadPoolExecutor() as pool:
        validated = pool.submit(nbgrader, folder, "validate", "source/toy/toy.ipynb")
        nbgrader(folder, "generate_assignment", "toy")
        for learner, filled in LEARNERS.items():
            hand_in(folder, learner, filled)
        graded = pool.submit(nbgrader, folder, "autograde", "toy")
        expected = {learner: by_kata_grade(folder / "submitted" / learner / "toy/toy.ipynb") for learner in LEARNERS}
        graded.result()
        nbgrader(folder, "generate_feedback", "toy")
        nbgrader(folder, "export")
        return Done(folder, validated.result(), expected)


def by_kata_grade(notebook: Path) -> float:
    source, _ = notebook_source(notebook.read_bytes())
    return grade(source, isolation="process").points


def test_each_learner_gets_the_points_kata_grade_gives(done):
    with (done.folder / "grades.csv").open() as file:
        told = {row["student_id"]: row for row in csv.DictReader(file)}
    assert {name: float(row["score"]) for name, row in told.items()} == done.expected
    assert done.expected == {"full": 21, "partial": 12, "empty": 0}
    assert {row["max_score"] for row in told.values()} == {"21.0"}


def test_learners_get_the_stub_and_no_answer(done):
    text = (done.folder / "release/toy/toy.ipynb").read_text()
    assert "NotImplementedError" in text and "task 1: one multiplication" in text
    for word in ("SOLUTION", "48271 * n", "amax", str(ROOT)):
        assert word not in text


def test_feedback_says_what_kata_check_says_and_nothing_else_comes_with_it(done):
    page = (done.folder / "feedback/partial/toy/toy.html").read_text()
    assert "Without subtracting the maximum, exp overflows." in page
    assert {path.name for path in (done.folder / "feedback/partial/toy").iterdir()} == {"toy.html", "timestamp.txt"}


def test_validate_tells_a_full_answer_from_a_part_of_it(done):
    assert done.validated.endswith("Success! Your notebook passes all the tests.\n")
    # As it was run when it was graded: running takes a while.
    said = nbgrader(done.folder, "validate", "autograded/partial/toy/toy.ipynb", "--Validator.preprocessors=[]")
    assert "%kata points 1" in said and "Partial credit" in said and "%kata points 2" not in said


def test_a_grader_that_fails_gives_no_grade(done):
    """nbgrader says that it could not grade the notebook; a zero would look like one."""
    config = done.folder / "nbgrader_config.py"
    kept = config.read_text()
    config.write_text(kept.replace("isolation='process'", "isolation='nonsense'"))
    try:
        said = nbgrader(done.folder, "autograde", "toy", "--student", "full", "--force", status=1)
    finally:
        config.write_text(kept)
    assert "There was an error processing assignment 'toy' for student 'full'" in said
    assert "kata: not judged" in said
    assert not (done.folder / "autograded/full").exists() or not (done.folder / "autograded/full/toy").exists()
