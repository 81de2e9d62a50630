"""A course of one exercise with the checks that an attack is aimed at, graded as any other course is."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkata.course import Course, load_course
from llmkata.grading.intake import Submission, read_submissions
from llmkata.grading.runner import grade_one
from llmkata.records import CheckRecord, ExerciseRecord, Outcome

from ..toy import harness as toy

_COURSE = """
schema: llmkata/course/v1
title: An arena
policy:
  isolation: sandbox
  seed_env: ARENA_SEED
  weights: {{core: 1, stretch: 1}}
  feedback: {{visible: counterexample, hidden: diagnosis}}
limits: {{wall: {wall}, call: {call}, cpu: 20, memory: 256, output: 64, submission: 4096}}
modules:
  - number: 1
    title: Arena
    objective: One exercise.
    exercises:
      - number: "1.1"
        slug: arena
        title: Arena
        mission: Hold.
        difficulty: 1
        hours: {{core: 1, total: 1}}
        status: available
        tasks:
          - {{number: 1, tier: core, title: "Everything"}}
"""
_IMPORTS = """
import math
import hypothesis.strategies as st
import numpy as np
import torch
from llmkata.checks import *
"""


#: Makes the model answer differ from the stub that is cut from it.
_REGION = """

def _answered():
    # BEGIN SOLUTION task 1: everything
    return True
    # END SOLUTION
"""


@dataclass
class Arena:
    """The exercise and its model answer."""

    course: Course
    solution: str

    def grade(self, source: str | None = None, **options: Any) -> ExerciseRecord:
        """Grade ``source`` (the model answer where none is given)."""
        text = self.solution if source is None else textwrap.dedent(source)
        return grade_one(self.course, self.course.exercise("arena"), text.encode(), **options)

    def instead(self, code: str, **options: Any) -> ExerciseRecord:
        """Grade the model answer with ``code`` at its end, which replaces what it defines again."""
        return self.grade(f"{self.solution}\n\n{textwrap.dedent(code)}", **options)

    def stands(self, source: str | None = None, **options: Any) -> bool:
        """Whether the model answer (or ``source``) gets every point."""
        record = self.grade(source, **options)
        return record.points == record.max_points > 0 and all(c.outcome is Outcome.passed for c in record.checks)


def build(root: Path, solution: str, checks: str = "", budgets: str = "", *, visible: str = "", reference: str = "",
          misconceptions: str = "", forbid: str = "", files: dict[str, str] | None = None, wall: float = 20,
          call: float = 2) -> Arena:
    """Write the course into ``root``. ``checks`` and ``budgets``: test functions, each given ``@task(1)`` by its writer;
    NumPy, torch and ``llmkata.checks`` are imported. ``files``: more files of the graders' folder, by name."""
    graders, exercise = root / "graders/module1/arena", root / "exercises/module1/arena"
    solution = textwrap.dedent(solution)
    written = {
        root / "course.yaml": _COURSE.format(wall=wall, call=call),
        root / "solutions/module1/arena.py": solution + _REGION,
        root / "reference/module1/arena.py": textwrap.dedent(reference) or solution,
        exercise / "arena.py": "raise NotImplementedError('task 1: everything')\n",
        exercise / "README.md": "# Arena\n",
        exercise / "test_arena.py": _IMPORTS + textwrap.dedent(visible),
    }
    for name, text in {"test_correctness.py": checks, "test_budgets.py": budgets}.items():
        written[graders / name] = _IMPORTS + textwrap.dedent(text)
    for name, text in {"misconceptions.py": misconceptions, "forbid.py": forbid, **(files or {})}.items():
        if text:
            written[graders / name] = textwrap.dedent(text)
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return Arena(load_course(root), solution)


def check(record: ExerciseRecord, name: str) -> CheckRecord:
    """The record of one check."""
    found = [c for c in record.checks if c.id.split("::")[1].split("[")[0] == name]
    assert found, (record.state, record.cause, [c.id for c in record.checks])
    return found[0]


def shared(code: str) -> dict[str, Any]:
    """What a submission defines, run in this very process: a grader without a boundary."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(code), scope)  # noqa: S102 - the negative control of many attacks
    return scope


def plain_pytest(folder: Path, *options: str, **files: str) -> subprocess.CompletedProcess[str]:
    """Write ``files`` (by stem) beside each other and run pytest there, as graders without a boundary do."""
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(textwrap.dedent(text), "utf-8")
    environment = {"PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options], cwd=folder,
                          env=environment, capture_output=True, text=True, check=False, timeout=60)


def handed_in(root: Path, files: dict[str, str]) -> Submission:
    """What intake takes of a learner of the toy course who handed in ``files`` (by path)."""
    for path, text in files.items():
        target = root / "ann" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    return next(s for s in read_submissions(root, toy.COURSE) if s.exercise_id == toy.TOY.id)


_RACE = """
@task(1)
@points(1)
def test_right(submission):
    \"\"\"A sum.\"\"\"
    same(submission.work(3), 3 * {k} * ({k} - 1) // 2)

@task(1)
@points(3)
def test_faster(submission, budget, rng):
    \"\"\"At least three times as fast as a loop.\"\"\"
    numbers = {numbers}
    def validate(i, answer):
        same(answer, numbers[i] * {k} * ({k} - 1) // 2)
    budget.cpu_ratio("CPU time", candidate=lambda s, i: s.work(numbers[i]), baseline=lambda r, i: r.work(numbers[i]),
                     baseline_file="baseline.py", at_least=3.0, validate={validate})
"""
#: A loop over the whole sum, which the race is run against.
LOOP = "def loop(n):\n    t = 0\n    for i in range(100_000):\n        t += i * n\n    return t\n"


def race(root: Path, *, numbers: str = "rng.integers(1, 2**31, 100).tolist()", validate: str = "validate") -> Arena:
    """An arena whose check compares CPU time with that of a loop; the model answer has the closed form."""
    return build(root, "def work(n):\n    return n * (100_000 * 99_999 // 2)\n",
                 budgets=_RACE.format(k=100_000, numbers=numbers, validate=validate),
                 files={"baseline.py": LOOP + "work = loop\n"})


def notebook(*cells: Any, **metadata: Any) -> str:
    """A notebook of code cells: their source, or whole cells; ``metadata`` is that of the notebook."""
    made = [c if isinstance(c, dict) else {"cell_type": "code", "source": c, "metadata": {}, "outputs": [],
                                           "execution_count": None} for c in cells]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": made})
