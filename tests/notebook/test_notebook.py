"""Notebooks as written: valid, with nbgrader's metadata; executed for real by a kernel; handed in and graded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from llmkata.course import load_course
from llmkata.grading.notebook import notebook_source
from llmkata.grading.runner import grade_one
from llmkata.notebook.pieces import pieces
from llmkata.notebook.write import notebook
from llmkata.records import Outcome, State

TOY = Path(__file__).parents[1] / "toy"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The toy course, without what a learner has not."""
    root = tmp_path / "toy"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__", "graders", "reference", "solutions", "*.py[co]"))
    kept = root / ".kata-stubs/module1/toy.py"
    kept.parent.mkdir(parents=True)
    shutil.copy(TOY / "exercises/module1/toy/toy.py", kept)
    return root


def made(root: Path) -> nbformat.NotebookNode:
    exercise = load_course(root).exercise("toy")
    return nbformat.reads(notebook(exercise, exercise.stub.read_text("utf-8")), 4)


def executed(book: nbformat.NotebookNode, root: Path) -> nbformat.NotebookNode:
    NotebookClient(book, timeout=120, kernel_name="python3", allow_errors=True,
                   resources={"metadata": {"path": str(root)}}).execute()
    return book


def said(cell: nbformat.NotebookNode) -> str:
    """All a code cell put out, errors by their traceback as a reader sees it."""
    return "\n".join("\n".join(o["traceback"]) if o.output_type == "error" else o.get("text", "") for o in cell.outputs)


def failed(cell: nbformat.NotebookNode) -> bool:
    return any(o.output_type == "error" for o in cell.outputs)


def code(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(text)


def by_id(book: nbformat.NotebookNode, ident: str) -> nbformat.NotebookNode:
    return next(c for c in book.cells if c.id == ident)


def solved(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Every solution cell filled in with the model answer."""
    answers = {p.name: p.text.strip("\n") for p in pieces((TOY / "solutions/module1/toy.py").read_text("utf-8"))}
    for cell in book.cells:
        if cell.metadata.nbgrader.solution:
            cell.source = answers[cell.id.removeprefix("stub-")]
    return book


def test_valid_with_the_metadata_of_nbgrader(toy):
    book = made(toy)
    nbformat.validate(book)
    meta = [c.metadata.nbgrader for c in book.cells]
    assert len({m.grade_id for m in meta}) == len(meta)
    keys = {"grade", "grade_id", "locked", "schema_version", "solution", "task"}
    assert all(set(m) == keys | ({"points"} if m.grade else set()) and m.schema_version == 3 for m in meta)
    tasks = [c for c in book.cells if "NotImplementedError" in c.source and c.cell_type == "code"]
    assert tasks and all(c.metadata.nbgrader.solution and not c.metadata.nbgrader.locked for c in tasks)
    assert all(c.metadata.nbgrader.locked for c in book.cells if c not in tasks)
    assert sum(m.grade for m in meta) == (TOY / "exercises/module1/toy/test_toy.py").read_text().count("def test_")
    brief = (TOY / "exercises/module1/toy/README.md").read_text("utf-8").strip("\n")
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source == brief


def test_a_session(toy):
    """Nothing written, a wrong answer, its hint, the right answer, the whole model answer: in one kernel."""
    book = made(toy)
    before, check = by_id(book, "set-up"), by_id(book, "check-test_two_numbers")
    shared, everything = by_id(book, "checks-shared"), by_id(book, "check-all")
    early = code(check.source)
    wrong = code("def softmax(x):\n    e = x.exp()\n    return e / e.sum(-1, keepdim=True) / 2\n\nsoftmax(torch.zeros(3))")
    first_hint, second_hint = code("%kata hint"), code("%kata hint toy")
    right = code("def helper(e):\n    return e.sum(-1, keepdim=True)\n\n"
                 "def softmax(x):\n    e = (x - x.amax(-1, keepdim=True)).exp()\n    return e / helper(e)\n")
    endless = code("def magic(n):\n    import os\n    os._exit(3)")
    unknown, usage, still = code("%kata check tyo"), code("%kata"), code("print(6 * 7)")
    stub = [c for c in book.cells if c.id.startswith("stub-")]
    again = code(check.source)
    answers = [c for c in solved(made(toy)).cells if c.id.startswith("stub-")]
    passing = [code(c.source) for c in book.cells if c.metadata.nbgrader.grade]
    book.cells = [before, early, *stub, shared, code(check.source), wrong, check, first_hint, second_hint, right, again,
                  everything, endless, unknown, usage, still, *answers, *passing]
    executed(book, toy)
    assert "1.1 Toy operations: task 1" in said(before)
    assert failed(early) and "run the cell that begins with %%kata checks first" in said(early)
    untouched = book.cells[book.cells.index(shared) + 1]
    assert failed(untouched) and "not started" in said(untouched)
    assert failed(check) and "✗ The softmax of two equal numbers is one half for each." in said(check)
    assert "expected" in said(check) and "Traceback" not in said(check) and "Error" not in said(check)
    assert "Hint 1 of 2: Which dimension is summed over?" in said(first_hint)
    assert "Hint 2 of 2: The last one." in said(second_hint)
    assert not failed(again) and said(again).strip() == "passed"
    assert not failed(everything) and "1/1 checks" in said(everything) and "not started" in said(everything)
    assert failed(unknown) and "kata: " in said(unknown) and "did you mean" in said(unknown)
    assert "%kata check [EXERCISE]" in said(usage) and "42" in said(still)
    assert [said(c).strip() for c in passing] == ["passed"] * 2


def test_solved_it_is_graded_like_a_file_and_the_stub_earns_nothing(toy):
    book = solved(made(toy))
    source, notes = notebook_source(nbformat.writes(book).encode())
    assert "def test_" not in source and "llmkata.checks" not in source
    assert notes and "%%kata check" in notes[0]
    course = load_course(TOY)
    record = grade_one(course, course.exercise("toy"), source.encode(), transport="loopback", visible_only=True)
    assert {c.outcome for c in record.checks} == {Outcome.passed}, [c.cause for c in record.checks]

    stub, _ = notebook_source(nbformat.writes(made(toy)).encode())
    assert grade_one(course, course.exercise("toy"), stub.encode(), transport="loopback", visible_only=True).state is State.not_started


def test_loading_the_package_loads_nothing_heavy():
    program = "import sys, llmkata; assert callable(llmkata.load_ipython_extension); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "IPython", "llmkata.notebook"} & set(done.stdout.split())


def test_a_hint_with_a_price_opens_when_told_to(toy, monkeypatch, capsys):
    from llmkata.notebook.magic import Kata

    course = toy / "course.yaml"
    text = course.read_text("utf-8")
    course.write_text(text.replace("  seed_env:", "  hints: {price: 5, free: 1}\n  seed_env:"), "utf-8")
    assert "price" in course.read_text("utf-8")
    monkeypatch.setenv("KATA_COURSE", str(toy))
    kata = Kata(list)
    kata.line("use toy")
    kata.line("hint")
    first = capsys.readouterr().out
    assert "Hint 1 of 2: Which dimension" in first and "costs" not in first
    kata.line("hint")
    priced = capsys.readouterr().out
    assert "This hint costs 5 %" in priced and "%kata hint --yes opens it." in priced and "Hint 2" not in priced
    kata.line("hint --yes")
    assert "Hint 2 of 2: The last one." in capsys.readouterr().out
