"""A toy course on disk, and ``kata`` called as from a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State

COURSE = """\
schema: llmkata/course/v1
title: A toy course
policy:
  {isolation: sandbox, seed_env: TOY_SEED, feedback: {visible: counterexample, hidden: diagnosis},
   weights: {core: 1, stretch: 1}}
limits: {wall: 20, call: 5, cpu: 30, memory: 1024, output: 64, submission: 4096}
modules:
  - number: 0
    title: Numbers
    objective: Count.
    exercises:
      - {number: "0.1", slug: sums, title: Sums, mission: Add numbers., difficulty: 1, hours: {core: 1, total: 2},
         status: available, tasks: [{number: 1, title: Add, tier: core}, {number: 2, title: Fast, tier: stretch}]}
      - {number: "0.2", slug: products, title: Products, mission: Multiply., difficulty: 2, hours: {core: 1, total: 1},
         prerequisites: [sums], status: available, tasks: [{number: 1, title: Multiply, tier: core}]}
      - {number: "0.3", slug: powers, title: Powers, mission: Raise., difficulty: 3, hours: {core: 1, total: 1},
         status: planned}
"""

VISIBLE = '''\
from llmkata.checks import hint, task


@task(2)
@hint("Think of a pairwise sum.")
def test_fast(submission):
    """Adding is fast."""


@task(1)
@hint("What is the sum of nothing?", "It is 0: "
      "the neutral element.")
def test_empty(submission):
    """The sum of an empty list is 0.

    More words.
    """


def test_without_hints(submission):
    """No hints here."""
'''

HIDDEN = '''\
from llmkata import checks


@checks.task(1)
@checks.hint("A carry [is] lost.")
def test_carry(submission):
    """Carries are kept."""
'''


@dataclass
class Done:
    """What a call came to."""

    status: int
    out: str
    err: str


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a toy course, which is also the current folder."""
    root = tmp_path / "toy"
    files = {
        "course.yaml": COURSE,
        "exercises/module0/sums/README.md": "# Sums\n",
        "exercises/module0/sums/sums.py": 'def add(x):\n    raise NotImplementedError("task 1: add")\n',
        "exercises/module0/sums/test_sums.py": VISIBLE,
        "exercises/module0/products/README.md": "# Products\n",
        "exercises/module0/products/products.py": "def multiply(x):\n    raise NotImplementedError\n",
        "exercises/module0/products/test_products.py": "def test_it(submission): ...\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.chdir(root)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return root


@pytest.fixture
def kata(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``kata("hint", "0.1")`` in this process, through the entry point."""
    from llmkata.cli.main import main

    def call(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["kata", *words])
        status = 0
        try:
            main()
        except SystemExit as left:
            status = left.code or 0
        shown = capsys.readouterr()
        return Done(status, shown.out, shown.err)

    return call


@pytest.fixture
def make_record() -> Callable[..., ExerciseRecord]:
    """``make_record("module0/sums", "pass 1", "fail 2 stretch")``: a record with checks ``test_0``, ``test_1``..."""

    def make(
        exercise: str, *checks: str, graded_at: str = "2026-01-01T00:00:00+00:00", **more: object
    ) -> ExerciseRecord:
        rows = []
        for number, text in enumerate(checks):
            outcome, task, *tier = text.split()
            passed = outcome == "pass"
            rows.append(
                CheckRecord(
                    id=f"test_correctness.py::test_{number}", title="T", task=int(task),
                    tier=tier[0] if tier else "core", max_points=4, points=4 if passed else 0,
                    outcome={"pass": Outcome.passed, "fail": Outcome.failed, "none": Outcome.not_judged}[outcome],
                )
            )  # fmt: skip
        given = {"learner": "you", "state": State.graded} | more
        return ExerciseRecord(exercise=exercise, checks=rows, graded_at=graded_at, **given)

    return make


@pytest.fixture
def hidden(toy: Path) -> None:
    """The toy course as a clone has it: with graders, solutions and references."""
    budgets = "from llmkata.checks import hint\n@hint('Fewer.')\ndef test_cost(): ...\n"
    files = {
        "graders/module0/sums/test_correctness.py": HIDDEN,
        "graders/module0/sums/test_budgets.py": budgets,
        "graders/module0/products/test_correctness.py": "",
    }
    files |= {f"{side}/module0/{slug}.py": "" for side in ("solutions", "reference") for slug in ("sums", "products")}
    for name, text in files.items():
        (toy / name).parent.mkdir(parents=True, exist_ok=True)
        (toy / name).write_text(text)
