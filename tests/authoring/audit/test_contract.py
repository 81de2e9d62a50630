"""What the files promise one another: each promise broken once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from llmkata.authoring.audit.contract import brief_tasks, judge_contract, public_names
from llmkata.authoring.audit.report import Audit, Figures
from llmkata.course import load_course

from ..conftest import edit

GRADERS = "graders/module1/scale"
CORRECTNESS, BUDGETS = f"{GRADERS}/test_correctness.py", f"{GRADERS}/test_budgets.py"
VISIBLE, BRIEF = "exercises/module1/scale/test_scale.py", "exercises/module1/scale/README.md"
SOLUTION, STUB = "solutions/module1/scale.py", "exercises/module1/scale/scale.py"


def faults(root: Path, missed: set[str] = frozenset({"test_mix_flops"}), quick: bool = False) -> list[str]:
    exercise = load_course(root).exercise("scale")
    audit = Audit(Figures(exercise.id))
    judge_contract(exercise, set(missed), quick, audit)
    return [f"{f.where}: {f.what}" for f in audit.faults]


def test_the_toy_is_clean(toy: Path) -> None:
    assert faults(toy) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        (STUB, "task 1:", "task  1:", "is out of step: kata sync module1/scale"),
        (SOLUTION, "# END SOLUTION\n\n\ndef mix", "\n\ndef mix", "BEGIN SOLUTION inside the SOLUTION region"),
        (SOLUTION, "task 2: one product", "task 3: one product", "task 3 is not a task of course.yaml"),
        (f"{GRADERS}/alternatives/library.py", "def mix(scores: Tensor, values", "def mix(scores: Tensor, v",
         "mix(scores, v) must be mix(scores, values)"),
        (f"{GRADERS}/alternatives/library.py", "def softmax(x: Tensor)", "def softmax(x: Tensor, n=1)",
         "softmax(x, n=1) must be softmax(x)"),
        (BRIEF, "# 1.1 Weights", "# Weights", "must begin with the heading '# 1.1 <title>'"),
        (BRIEF, "## Tasks", "## To do", "has no section '## Tasks'"),
        (BRIEF, "## Tasks", "# More\n\n## Tasks", "a second heading of the first level"),
        (BRIEF, "2. **A weighted sum**", "3. **A weighted sum**", "its tasks are 1, 3, those of course.yaml 1, 2"),
        (CORRECTNESS, "@points(40)", "@points(41)", "the hidden checks sum to 101 points, not 100"),
        (CORRECTNESS, '@needs("test_softmax_matches")', '@needs("test_softmax")', "@needs('test_softmax'): there is no such"),
        (CORRECTNESS, "@task(1)", "@task(9)", "@task(9) is not a task"),
        (CORRECTNESS, "    same(submission.softmax(scores)", "    assert submission.softmax(scores) is not None\n    same(scores",
         "a bare assert tells a learner nothing"),
        (CORRECTNESS, '@hint("Subtract the maximum first.")\n', "", "test_large_numbers: has no @hint"),
        (CORRECTNESS, '    """The softmax equals that of PyTorch."""\n', "", "test_softmax_matches: has no docstring"),
        (CORRECTNESS, "def test_mix(", "def test_2(", "test_2: says nothing: name what must hold"),
        (BUDGETS, "def test_mix_flops(", "def test_mix(", "test_mix: is the name of graders/module1/scale/test_budgets.py"),
        (VISIBLE, '@task(1)\n@hint("Two equal', '@hint("Two equal', "test_two_rows"),
        (VISIBLE, "same(submission.mix(torch.zeros(1, 2), torch.tensor([[2.0], [4.0]])), torch.tensor([[3.0]]))",
         "submission.mix(torch.zeros(1, 2), torch.zeros(2, 1))", "test_mix_of_equals: says nothing that must hold"),
        (CORRECTNESS, "expect_error(ValueError", "expect_error(TypeError",
         "softmax promises ValueError, which no hidden check asks for"),
        (BRIEF, "**Softmax**", "**`softmin`**", "the stub has no softmin"),
        (BUDGETS, "    # 2 * 16 * 8 * 4 = 1024 FLOP\n", "", "no comment says how its limit was computed"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_told(toy: Path, file: str, before: str, after: str, told: str) -> None:
    path = toy / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    assert any(told in fault for fault in faults(toy)), faults(toy)


def test_a_task_without_a_hidden_check(toy: Path) -> None:
    path = toy / CORRECTNESS
    path.write_text(path.read_text().replace("@task(2)", "@task(1)"))
    (toy / BUDGETS).write_text((toy / BUDGETS).read_text().replace("@task(2)", "@task(1)"))
    assert "task 2: no hidden check judges it" in faults(toy)


def test_a_budget_that_nobody_misses(toy: Path) -> None:
    told = [f for f in faults(toy, missed=set()) if "no misconception misses it" in f]
    assert len(told) == 1
    assert "test_mix_flops" in told[0]
    assert faults(toy, missed=set(), quick=True) == []  # only the full audit can say
    path = toy / BUDGETS
    path.write_text(path.read_text() + "\n\n@task(2)\n@points(0)\ndef test_right_first(submission):\n    # of 3 numbers\n    pass\n")
    assert [f for f in faults(toy, missed=set()) if "no misconception misses it" in f] == told  # it is no budget


PROBES = """
import torch
from llmkata.checks import probe
LIMIT = 3

@probe
def counts(module, n: int = 4):
    import torch as t
    def inner(x):
        return [y for y in range(x)]
    try:
        return t.ones(n), inner(n), len(module.x)
    except ValueError as e:
        return str(e)
"""


def test_probes_hold_all_they_need(toy: Path) -> None:
    path = toy / CORRECTNESS
    clean = path.read_text()
    path.write_text(clean + PROBES)
    assert faults(toy) == []
    path.write_text(clean + PROBES.replace("len(module.x)", "LIMIT, torch.ones(1)"))
    told = [f for f in faults(toy) if "the probe counts uses" in f]
    assert len(told) == 2, faults(toy)
    assert "uses LIMIT of the grader" in told[0]


def test_an_error_that_given_code_raises_needs_no_check(toy: Path, kata) -> None:
    """What the stub does already earns nothing, so no hidden check must ask for it."""
    edit(toy / CORRECTNESS, "expect_error(ValueError", "expect_error(TypeError")
    guard = "    if x.dim() == 0:\n        raise ValueError(f\"softmax needs a dimension, not shape {tuple(x.shape)}\")\n"
    edit(toy / SOLUTION, guard, "")
    edit(toy / SOLUTION, "    # BEGIN SOLUTION task 1", "    check_rank(x)\n    # BEGIN SOLUTION task 1")
    assert any("softmax promises ValueError" in f for f in faults(toy))
    helper = "def check_rank(x: Tensor) -> None:\n" + guard + "\n\n"
    edit(toy / SOLUTION, "def softmax", helper + "def softmax")
    assert kata("--course", toy, "sync").status == 0
    assert faults(toy) == []


def test_files_that_nothing_reads(toy: Path) -> None:
    (toy / GRADERS / "notes.txt").write_text("x")
    (toy / GRADERS / "baseline.py").write_text("x = 1\n")
    (toy / "exercises/module1/scale/old.py").write_text("x = 1\n")
    told = [f for f in faults(toy) if "is read by nothing" in f]
    assert [f.partition(":")[0] for f in told] == [
        "exercises/module1/scale/old.py", f"{GRADERS}/baseline.py", f"{GRADERS}/notes.txt"]  # fmt: skip
    path = toy / BUDGETS
    path.write_text(path.read_text() + '\nBASELINE = "baseline.py"\n')
    assert not any("baseline.py" in f for f in faults(toy) if "is read by nothing" in f)


def test_a_formula_in_the_docstring_is_a_figure(toy: Path) -> None:
    path = toy / BUDGETS
    path.write_text(path.read_text().replace("    # 2 * 16 * 8 * 4 = 1024 FLOP\n", ""))
    assert any("no comment says how" in f for f in faults(toy))
    path.write_text(path.read_text().replace("costs one product.", "costs one product, 2·n·k·d FLOP."))
    assert faults(toy) == []


def test_lint_tells_and_runs_nothing(toy: Path, kata) -> None:
    assert kata("--course", toy, "lint").status == 0
    path = toy / CORRECTNESS
    path.write_text(path.read_text() + "\n1 / 0\n")
    assert kata("--course", toy, "lint", "1.1").status == 0
    path.write_text(path.read_text().replace('@hint("Subtract the maximum first.")\n', ""))
    done = kata("--course", toy, "lint")
    assert done.status == 1
    assert "test_large_numbers: has no @hint" in done.out


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("## Tasks\n\n1. one\n2. two\n   1. not this\n\n## More\n3. nor this\n", {1, 2}),
        ("## Tasks\n\n### Task 1 (core): a\n\n1. a step\n\n### Task 2: b\n", {1, 2}),
        ("No tasks.\n", set()),
    ],
)
def test_tasks_of_a_brief(text: str, numbers: set[int]) -> None:
    assert brief_tasks(text) == numbers


def test_public_names(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f(a: int, *, b=2) -> int: ...\ndef _g(): ...\nclass C:\n    def __init__(self, n): ...\n"
                    "    def m(self): ...\n    def _p(self): ...\n")
    assert public_names(path) == {"f": "(a, *, b=2)", "C": "", "C.__init__": "(self, n)", "C.m": "(self)"}


def test_the_module_is_importable_without_torch() -> None:
    """kata --help must not pay for torch: the command's module imports the audit only when it runs."""
    spec = importlib.util.find_spec("llmkata.cli.audit")
    assert "torch" not in Path(spec.origin).read_text()
