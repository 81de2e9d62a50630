"""M9: edit the checks, or the workflow, in one's own copy of the repository."""

import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import read_submissions

from ..toy.harness import COURSE, SOLUTION, TOY, outcomes, solution_with
from .acts import naive


@pytest.fixture
def folder(tmp_path):
    """A learner's repository whose checks and workflow say that all is well."""
    home = tmp_path / "class" / "eve"
    (home / "exercises/module1/toy").mkdir(parents=True)
    (home / ".github/workflows").mkdir(parents=True)
    (home / "exercises/module1/toy/toy.py").write_text(solution_with("def magic(n): return 0"))
    (home / "exercises/module1/toy/test_toy.py").write_text("def test_one_entry(): pass\n")
    (home / ".github/workflows/grade.yml").write_text("on: push\n")
    (home / "course.yaml").write_text("title: mine\n")
    return tmp_path


def graded(folder):
    (record,) = grade_many(COURSE, read_submissions(folder / "class", COURSE), out=folder / "out", workers=1)
    return record


def test_the_checks_are_the_courses(folder, honest):
    record = graded(folder)
    assert record.points == 19 and set(outcomes(record)) == set(outcomes(honest))


def test_honest_work_passes(folder):
    (folder / "class/eve/exercises/module1/toy/toy.py").write_text(SOLUTION)
    assert graded(folder).points == 21


def test_whoever_runs_the_learners_checks_finds_all_well(tmp_path):
    assert TOY.visible_checks.exists()
    assert naive(tmp_path, "def magic(n): return 0", "def test_magic(): pass\n") == 0
