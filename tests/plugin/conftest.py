"""Courses of one exercise, made on the spot, and their checks run on a submission."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkata.authoring.stub import cut_stub
from llmkata.course import load_course
from llmkata.grading.runner import grade_one
from llmkata.records import CheckRecord, ExerciseRecord

from ..toy.harness import ROOT

COURSE = """\
schema: llmkata/course/v1
title: A course of one exercise
policy: {isolation: sandbox, seed_env: SEED, feedback: {visible: counterexample, hidden: diagnosis}, weights: {core: 1, stretch: 1}}
limits: {wall: 10, call: 2, cpu: 10, memory: 256, output: 64, submission: 4096}
modules:
  - number: 1
    title: One
    objective: One.
    exercises:
      - {number: "1.1", slug: SLUG, title: One, mission: Do it., difficulty: 1, hours: {core: 1, total: 1},
         status: available, tasks: [{number: 1, title: First, tier: core}, {number: 2, title: Second, tier: stretch}]}
"""
HEAD = ("import numpy as np\nimport pytest\nimport torch\nfrom llmkata.checks import *\nfrom llmkata.checks import sk\n"
        "from llmkata.checks import NotJudged, GraderFault\n\n\ndef hidden(f):\n    return task(1)(points(1)(f))\n\n\n")


SOLUTION = """\
def f(x):
    # BEGIN SOLUTION task 1: all of it
    return x + 1
    # END SOLUTION
"""
#: A slug of its own for each: pytest imports a check file once in a process, by its place in the course.
_NUMBERS = itertools.count(1)


class Made:
    """A course on disk with one exercise."""

    def __init__(self, root: Path, slug: str, checks: str, visible: str, budgets: str, solution: str, **files: str) -> None:
        self.root = root
        texts = {
            "course.yaml": COURSE.replace("SLUG", slug),
            f"exercises/module1/{slug}/test_{slug}.py": HEAD + textwrap.dedent(visible),
            f"graders/module1/{slug}/test_correctness.py": HEAD + textwrap.dedent(checks),
            f"graders/module1/{slug}/test_budgets.py": HEAD + textwrap.dedent(budgets) if budgets else "",
            f"solutions/module1/{slug}.py": textwrap.dedent(solution),
            f"exercises/module1/{slug}/README.md": "# One\n",
            f"exercises/module1/{slug}/{slug}.py": cut_stub(textwrap.dedent(solution)),
            f"reference/module1/{slug}.py": "def f(x): return x + 1\n",
        } | {path.replace("SLUG", slug): textwrap.dedent(text) for path, text in files.items()}
        for path, text in texts.items():
            if text:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text, encoding="utf-8")
        self.course = load_course(root)
        self.exercise = self.course.exercises[0]

    def grade(self, source: str, **options: Any) -> ExerciseRecord:
        return grade_one(self.course, self.exercise, textwrap.dedent(source).encode("utf-8", "surrogatepass"), **options)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Made]:
    """``made(checks, visible=..., budgets=..., solution=...)`` -> a course; further files by path (SLUG stands for the slug)."""

    def make(checks: str = "", *, visible: str = "", budgets: str = "", solution: str = SOLUTION,
             files: dict[str, str] | None = None) -> Made:
        slug = f"one{next(_NUMBERS)}"
        return Made(tmp_path / slug, slug, checks, visible, budgets, solution, **(files or {}))

    return make


@pytest.fixture
def course(tmp_path):
    """A copy of the toy course, as a learner has it."""
    for part in ("course.yaml", "exercises", "graders", "reference", "solutions"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "kata").touch()
    return tmp_path


def by_name(record: ExerciseRecord) -> dict[str, CheckRecord]:
    """Checks by the name of their function."""
    return {c.id.split("::")[1]: c for c in record.checks}
