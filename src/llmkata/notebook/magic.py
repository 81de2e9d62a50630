"""The magics of ``%load_ext llmkata``::

    %kata use EXERCISE      what the cells of this notebook are about
    %kata check [EXERCISE]  judge what was run, by all visible checks
    %kata hint [EXERCISE]   open the next hint for the check that failed first (--yes: also one that costs something)
    %kata points TASK       judge a task; its points where the hidden checks are here (cells graded by nbgrader)
    %%kata checks           (a cell) what the checks below share
    %%kata check NAME       (a cell) judge by the check in this cell; raises where it fails

The verdict is reached in a warm process of its own, as ``kata watch`` does: a loop without end does not take the kernel
with it.
"""

from __future__ import annotations

import ast
import atexit
import base64
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkata.records import ExerciseRecord, Outcome, State
from llmkata.watch.judge import Judge, first_failure
from llmkata.watch.warm import Request

from .points import NotJudged, Points, for_a_grade, has_graders, of_task, only_task
from .source import module_source

_USAGE = "%kata use EXERCISE | %kata check [EXERCISE] | %kata hint [EXERCISE] | %kata points TASK"


class CheckFailed(AssertionError):
    """A check cell that did not pass. It shows what the check says, and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class KataFault(Exception):
    """A magic that was used in a way it cannot be."""

    def _render_traceback_(self) -> list[str]:
        return [f"kata: {self}"]


class Kata:
    """State behind the magics. ``cells`` gives the sources of the cells that were run."""

    def __init__(self, cells: Callable[[], list[str]]) -> None:
        self._cells = cells
        self._course: Any = None
        self._exercise: Any = None
        self._judges: dict[str, Judge] = {}
        self._shared = ""
        self._last: ExerciseRecord | None = None
        self._points = Points()

    def line(self, text: str) -> float | None:
        """A line magic. What it returns is the result of its cell."""
        word, *rest = shlex.split(text) or [""]
        if word == "use" and len(rest) == 1:
            self._exercise = self._found(rest[0])
            print(f"{self._exercise.number} {self._exercise.title}: {_tasks(self._exercise)}")
        elif word == "check" and len(rest) <= 1:
            exercise = self._found(*rest)
            print(_report(self._judged(exercise, Request()), self._course))
        elif word == "hint" and len(names := [w for w in rest if w != "--yes"]) <= 1:
            print(self._hint(self._found(*names), yes="--yes" in rest))
        elif word == "points" and len(rest) == 1 and rest[0].isdecimal():
            return self._task(self._found(), int(rest[0]))
        else:
            raise KataFault(_USAGE)
        return None

    def cell(self, text: str, body: str) -> None:
        """A cell magic."""
        words = shlex.split(text)
        if words == ["checks"]:
            self._shared = body
            return
        if len(words) != 2 or words[0] != "check":
            raise KataFault("a cell begins with %%kata checks or %%kata check NAME")
        if not self._shared:
            raise KataFault("run the cell that begins with %%kata checks first")
        exercise, name = self._found(), words[1]
        if name not in {node.name for node in ast.parse(body).body if isinstance(node, ast.FunctionDef)}:
            raise KataFault(f"this cell defines no check {name}")
        record = self._judged(exercise, Request(checks=f"{self._shared}\n\n{body}", only=name))
        outcomes = {c.outcome for c in record.checks}
        if record.state is not State.graded or Outcome.failed in outcomes:
            raise CheckFailed(_report(record, self._course))
        print("passed" if Outcome.passed in outcomes else f"not judged: {record.checks[0].cause}")

    def close(self) -> None:
        """End the processes that judge."""
        for judge in self._judges.values():
            judge.close()
        self._judges.clear()

    def _found(self, name: str = "") -> Any:
        from llmkata.course import CourseError, load_course

        if self._course is None:
            self._course = load_course(_root())
        if not name:
            if self._exercise is None:
                raise KataFault("which exercise? %kata use EXERCISE")
            return self._exercise
        try:
            exercise = self._course.exercise(name)
        except CourseError as e:
            raise KataFault(str(e)) from None
        if not exercise.available:
            raise KataFault(f"{exercise.id} is planned: it is not written yet")
        return exercise

    def _task(self, exercise: Any, task: int) -> float | None:
        """The points of a task; without hidden checks None, or CheckFailed."""
        course = only_task(self._course, exercise, task)
        if has_graders(exercise):
            try:
                record = of_task(self._points.record(exercise, self._source(exercise)), task)
            except NotJudged as fault:
                return _without_a_grade(f"not judged: {fault}")
            print(_report(record, course))
            return float(record.points)
        if for_a_grade():
            return _without_a_grade(f"no graders in {exercise.root}: set KATA_COURSE to the folder of the course")
        record = of_task(self._judged(exercise, Request()), task)
        if record.state is not State.graded or Outcome.failed in {c.outcome for c in record.checks}:
            raise CheckFailed(_report(record, course))
        print(_report(record, course) if record.checks else f"task {task} has no visible checks")
        return None

    def _source(self, exercise: Any) -> str:
        """The learner's file, from what was run."""
        from llmkata.authoring.stub import pristine_stub

        stub = pristine_stub(exercise) or exercise.stub.read_text("utf-8")
        return module_source(stub, self._cells())

    def _judged(self, exercise: Any, request: Request) -> ExerciseRecord:
        request.source = base64.b64encode(self._source(exercise).encode()).decode()
        judge = self._judges.setdefault(exercise.id, Judge(exercise))
        self._last = judge.verdict(request)
        return self._last

    def _hint(self, exercise: Any, *, yes: bool) -> str:
        from llmkata.cli.hints import exercise_hints, next_hint, offer, opened_levels, remember_level

        state = exercise.root / ".kata"
        failed = []
        if self._last is not None and self._last.exercise == exercise.id and (failing := first_failure(self._last)):
            failed = [failing.id.rpartition("::")[2]]
        hints = exercise_hints(exercise)
        if not hints:
            return f"{exercise.id} has no hints; its brief may help."
        opened = opened_levels(state).get(exercise.id, {})
        check = next_hint(hints, opened, failed)
        level = min(opened.get(check.name, 0) + 1, len(check.hints))
        if (price := offer(self._course.policy.hints, opened, check.name, level)) and not yes:
            return f"Task {check.task}: {check.title}\n{price}\n%kata hint --yes opens it."
        remember_level(state, exercise.id, check.name, level)
        lines = [f"Task {check.task}: {check.title}"]
        lines += [f"Hint {n} of {len(check.hints)}: {text}" for n, text in enumerate(check.hints[:level], start=1)]
        return "\n".join(lines)


def load(shell: Any) -> Kata:
    """Register the magics with an IPython shell."""
    kata = Kata(lambda: [cell for cell in shell.history_manager.input_hist_raw if cell.strip()])

    def magic(line: str, cell: str | None = None) -> float | None:
        return kata.line(line) if cell is None else kata.cell(line, cell)

    shell.register_magic_function(magic, magic_kind="line_cell", magic_name="kata")
    atexit.register(kata.close)
    return kata


def _root() -> Path:
    """The course of KATA_COURSE, else of the nearest folder upwards, else the one this package lies in."""
    here = Path.cwd()
    if given := os.environ.get("KATA_COURSE"):
        return Path(given)
    for folder in (here, *here.parents, Path(__file__).resolve().parents[3]):
        if (folder / "course.yaml").is_file():
            return folder
    raise KataFault(f"no course.yaml in {here} or above it: start Jupyter in the course's folder, or set KATA_COURSE to it")


def _without_a_grade(why: str) -> None:
    """No verdict is no zero: an error in the cell, but where nbgrader grades that would be zero points, so there the
    kernel ends and nbgrader says that the notebook could not be graded.
    """
    if for_a_grade():
        sys.__stderr__.write(f"kata: {why}\n")
        sys.__stderr__.flush()
        time.sleep(0.5)  # a thread of the kernel carries it on
        os._exit(1)
    raise KataFault(why)


def _tasks(exercise: Any) -> str:
    return "; ".join(f"task {t.number} {t.title} ({t.tier})" for t in exercise.tasks)


def _report(record: ExerciseRecord, course: Any) -> str:
    """What ``kata check`` prints, as plain text."""
    import io

    from llmkata.reports.terminal import check_report, console

    out = io.StringIO()
    console(out, width=100).print(check_report(record, course))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
