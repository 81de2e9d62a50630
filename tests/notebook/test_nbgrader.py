"""Source notebooks of nbgrader: what they hold, how they are cut, and the cells that give points."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator
from nbgrader.preprocessors import ClearSolutions

from llmkata.authoring.stub import StubError, is_untouched, pristine_stub
from llmkata.course import load_course
from llmkata.grading.worth import worth, worth_of_tasks
from llmkata.notebook.cutter import CutStub
from llmkata.notebook.magic import CheckFailed, Kata, KataFault
from llmkata.notebook.nbgrader import cut_cell, source_notebook
from llmkata.notebook.points import NotJudged, Points, checked
from llmkata.records import State

from ..toy.harness import grade

TOY = Path(__file__).parents[1] / "toy"
#: Regions that span several definitions, begin a file, and lie within a class.
SOLUTION = '''\
"""A file."""

from __future__ import annotations

# BEGIN HIDDEN
import math
# END HIDDEN


# BEGIN HIDDEN
def helper():
    return math.pi


def another():
    return 2
# END HIDDEN


class Layer:
    """A layer."""

    def forward(self):
        """Forward."""
        # BEGIN SOLUTION task 1: forward
        return helper()
        # END SOLUTION

    # BEGIN HIDDEN
    def aside(self):
        return another()
    # END HIDDEN


def given():
    return 1
'''


@pytest.fixture(scope="module")
def exercise():
    return load_course(TOY).exercise("toy")


def cells(exercise, solution: str | None = None, points=None) -> list[nbformat.NotebookNode]:
    text = source_notebook(exercise, solution or exercise.solution.read_text(), points or {1: 9.0, 4: 2.5, 5: 0.0})
    book = nbformat.reads(text, 4)
    nbformat.validate(book)
    return book.cells


def module(found: list[nbformat.NotebookNode], cut=cut_cell) -> str:
    """The learner's file after the cut."""
    stubs = [c for c in found if c.id.startswith("stub-")]
    return "\n\n".join(cut(c.source) if c.metadata.nbgrader.solution else c.source for c in stubs)


def test_cells_are_what_nbgrader_knows(exercise):
    found = cells(exercise)
    ids = [c.metadata.nbgrader.grade_id for c in found]
    assert len(set(ids)) == len(ids)
    for cell in found:
        MetadataValidator().validate_cell(cell)
        meta = cell.metadata.nbgrader
        assert set(meta) >= {"grade", "grade_id", "locked", "schema_version", "solution", "task"}
        assert meta.solution == ("BEGIN SOLUTION" in cell.source)
        assert meta.locked is not meta.solution
    graded = {c.metadata.nbgrader.grade_id: c for c in found if c.metadata.nbgrader.grade}
    assert {name: c.metadata.nbgrader.points for name, c in graded.items()} == {"task-1": 9, "task-4": 2.5}
    assert graded["task-4"].source.splitlines()[-1] == "%kata points 4"
    assert "Sums of rows in little memory (2.5 points)" in graded["task-4"].source


def test_the_cut_leaves_the_stub(exercise):
    assert is_untouched(pristine_stub(exercise), module(cells(exercise)))


def test_what_only_the_answer_needs_goes(exercise):
    left = module(cells(exercise, SOLUTION))
    for word in ("math", "helper", "another", "aside", "HIDDEN", "SOLUTION"):
        assert word not in left
    assert 'raise NotImplementedError("task 1: forward")' in left and "def given" in left


def test_nbgraders_own_cutter_leaks_nothing_either(exercise):
    """Without the configuration an exported course comes with, release cells are less helpful, and as safe."""

    def cut(source: str) -> str:
        cell = nbformat.v4.new_code_cell(source)
        assert ClearSolutions()._replace_solution_region(cell, "python")
        return cell.source

    left = module(cells(exercise, SOLUTION), cut)
    assert "YOUR CODE HERE" in left
    for word in ("math", "helper", "another", "aside"):
        assert word not in left


def test_regions_that_are_not_closed_are_told(exercise):
    with pytest.raises(StubError, match="never closed"):
        cells(exercise, "# BEGIN HIDDEN\nimport math\n\n\ndef f(): ...\n")


def test_ours_leaves_other_cells_alone():
    text, plain = nbformat.v4.new_markdown_cell("BEGIN SOLUTION"), nbformat.v4.new_code_cell("x = 1")
    assert not CutStub()._replace_solution_region(text, "python")
    assert not CutStub()._replace_solution_region(plain, "python")
    assert (text.source, plain.source) == ("BEGIN SOLUTION", "x = 1")


def test_what_each_task_is_worth(exercise):
    found = worth_of_tasks(exercise)
    assert found == {1: 9, 2: 6, 3: 4, 4: 2}
    assert worth(exercise) == 21


# The cells that give points


@pytest.fixture
def kata(monkeypatch):
    """The magics in a notebook on the toy exercise, graders and all, in which one function was run."""
    monkeypatch.setenv("KATA_COURSE", str(TOY))
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    made = Kata(lambda: ["%kata use toy", "def softmax(x):\n    return x.exp() / x.exp().sum(-1, keepdim=True)\n"])
    made.line("use toy")
    yield made
    made.close()


def test_points_are_those_of_kata_check(kata, monkeypatch, capsys):
    asked = []

    def answer(exercise, source):
        asked.append(source)
        return grade(source, isolation="process")

    monkeypatch.setattr("llmkata.notebook.points.checked", answer)
    record = grade(kata._source(kata._exercise), isolation="process")
    by_task = {task: sum(c.points for c in record.checks if c.task == task) for task in (1, 2)}
    assert {task: kata.line(f"points {task}") for task in by_task} == by_task
    assert by_task == {1: 5, 2: 0}
    assert len(asked) == 1 and "x.exp()" in asked[0], "judged once, with what was run"
    said = capsys.readouterr().out
    assert "Task 2" in said and "Task 3" not in said


def test_a_fault_of_the_grader_is_no_zero(kata, monkeypatch, capfd):
    def broken(exercise, source):
        raise NotJudged("out of memory")

    monkeypatch.setattr("llmkata.notebook.points.checked", broken)
    with pytest.raises(KataFault, match="not judged: out of memory"):
        kata.line("points 1")
    left = []
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    monkeypatch.setattr("os._exit", lambda status: left.append(status))
    with pytest.raises(KataFault):
        kata.line("points 1")
    assert left == [1], "the kernel ends, and nbgrader says that this notebook could not be graded"


def test_learners_get_the_visible_checks_of_the_task(tmp_path, monkeypatch, capsys):
    root = tmp_path / "toy"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__", "graders", "reference", "solutions"))
    monkeypatch.setenv("KATA_COURSE", str(root))
    answers = [(TOY / "solutions/module1/toy.py").read_text()]
    kata = Kata(lambda: answers)
    try:
        kata.line("use toy")
        assert kata.line("points 1") is None
        assert "Task 1" in capsys.readouterr().out
        answers.append("def softmax(x):\n    return x\n")
        with pytest.raises(CheckFailed):
            kata.line("points 1")
        monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
        monkeypatch.setattr("os._exit", lambda status: None)
        with pytest.raises(KataFault, match="no graders in .*KATA_COURSE"):
            kata.line("points 1")
    finally:
        kata.close()


def test_kata_check_is_what_answers(exercise, monkeypatch):
    monkeypatch.setenv("KATA_ISOLATION", "process")
    record = checked(exercise, exercise.solution.read_text())
    assert (record.state, record.points) == (State.graded, 21)
    monkeypatch.setenv("KATA_ISOLATION", "nonsense")
    with pytest.raises(NotJudged, match="nonsense"):
        Points().record(exercise, "x = 1\n")


def test_metadata_is_json_of_the_exercise(exercise):
    assert json.loads(source_notebook(exercise, SOLUTION, {}))["metadata"]["llmkata"] == {"exercise": "module1/toy"}
