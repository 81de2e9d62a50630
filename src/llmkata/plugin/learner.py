"""Plain ``pytest exercises/...``: visible checks on the learner's own files, a short scorecard at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkata.course import load_course
from llmkata.records import Outcome

from .core import KataPlugin
from .runs import ExerciseRun, Setting
from .verdict import NOT_STARTED


class LearnerPlugin(KataPlugin):
    """KataPlugin over loopback for a course folder, with the summary in pytest's own terminal."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self._root = root
        self._course = load_course(root)
        self._found: dict[str, ExerciseRun] = {}
        super().__init__(self._run_of, seed)

    def _run_of(self, path: Path) -> ExerciseRun | None:
        try:
            parts = path.resolve().relative_to(self._root.resolve()).parts
        except ValueError:
            return None
        if len(parts) < 4 or parts[0] not in ("exercises", "graders"):
            return None
        ident = "/".join(parts[1:3])
        if ident not in self._found:
            exercise = self._course.exercise(ident)
            self._found[ident] = ExerciseRun(exercise, Setting(), exercise.stub.read_bytes(), str(exercise.stub))
        return self._found[ident]

    def pytest_sessionfinish(self, session: Any = None, exitstatus: int = 0) -> None:
        """An untouched stub is no success: skipped checks alone do not exit with 0."""
        super().pytest_sessionfinish()
        records = [r for run in self.runs.values() for r in run.records]
        if session is not None and exitstatus == 0 and any(r.outcome is not Outcome.passed for r in records):
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line per task, and the next step."""
        t = terminalreporter
        for run in self.runs.values():
            if not run.records:
                continue
            t.section(f"{run.exercise.number} {run.exercise.title}")
            if all(r.cause.startswith(NOT_STARTED) for r in run.records):
                t.write_line(f"  not started. Open {run.exercise.stub.relative_to(self._root)}; the brief is "
                             f"{run.exercise.brief.relative_to(self._root)}.")
                continue
            for task in run.exercise.tasks:
                mine = [r for r in run.records if r.task == task.number]
                if not mine:
                    continue
                passed = sum(r.outcome is Outcome.passed for r in mine)
                state = "done" if passed == len(mine) else NOT_STARTED if all(
                    r.cause.startswith(NOT_STARTED) for r in mine) else f"{passed}/{len(mine)} checks"
                mark = {"done": "[x]", NOT_STARTED: "[ ]"}.get(state, "[~]")
                t.write_line(f"  {mark} task {task.number}  {task.title} ({task.tier}): {state}")
            t.write_line(f"  All checks, hidden ones too: ./kata check {run.exercise.id}")


def learner_plugin(root: Path) -> LearnerPlugin:
    """The plugin for a course folder."""
    return LearnerPlugin(root)
