"""The toy course, and how tests grade changed copies of its solution."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from llmkata.course import load_course
from llmkata.grading.runner import grade_one
from llmkata.outside.link import Link
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.worker import WorkerLink
from llmkata.records import CheckRecord, ExerciseRecord, Outcome

ROOT = Path(__file__).parent
COURSE = load_course(ROOT)
TOY = COURSE.exercise("toy")
SOLUTION = TOY.solution.read_text(encoding="utf-8")
STUB = TOY.stub.read_text(encoding="utf-8")


def solution_with(code: str) -> str:
    """The model answer with ``code`` at its end, which replaces what it defines again."""
    return f"{SOLUTION}\n\n{textwrap.dedent(code)}"


def grade(source: str = SOLUTION, **options: Any) -> ExerciseRecord:
    """Grade a source text, in the sandboxed worker unless told otherwise."""
    return grade_one(COURSE, TOY, source.encode("utf-8", "surrogatepass"), **options)


def named(record: ExerciseRecord, name: str) -> CheckRecord:
    """The record of the check called ``name``."""
    found = [c for c in record.checks if c.id.split("::")[1] == name]
    assert found, f"no check {name} in {record.state}: {record.cause} {[c.id for c in record.checks]}"
    return found[0]


def outcomes(record: ExerciseRecord) -> dict[str, Outcome]:
    """Outcome by the name of the check."""
    return {c.id.split("::")[1]: c.outcome for c in record.checks}


def link_to(source: str, transport: str = "worker", **options: Any) -> Link:
    """A link to a module with that source."""
    make = LoopbackLink if transport == "loopback" else WorkerLink
    return make("learner", "learner.py", textwrap.dedent(source).encode(), **options)
