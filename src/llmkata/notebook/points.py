"""``%kata points N``: the points of a task, as ``kata check`` gives them to what was run.

nbgrader's autograder runs a learner's notebook and these cells in one process, so what they say is only as good as the
learner is honest. ``kata grade submitted/`` judges the same notebooks in the sandbox.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llmkata.records import ExerciseRecord, State

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise


class NotJudged(Exception):
    """The grader failed: this is no zero. The message says how."""


class Points:
    """Records of ``kata check`` by exercise and source: the cells of one notebook ask for the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], ExerciseRecord] = {}

    def record(self, exercise: Exercise, source: str) -> ExerciseRecord:
        """What ``kata check`` says of a source, hidden checks included. Raises NotJudged."""
        key = (exercise.id, source)
        if key not in self._known:
            self._known[key] = checked(exercise, source)
        return self._known[key]


def has_graders(exercise: Exercise) -> bool:
    """Whether the hidden checks are here: on the instructor's machine."""
    return exercise.graders_dir.is_dir()


def for_a_grade() -> bool:
    """Whether nbgrader's autograder runs this process."""
    return os.environ.get("NBGRADER_EXECUTION") == "autograde"


def checked(exercise: Exercise, source: str) -> ExerciseRecord:
    """Run ``kata check --json`` on a source in a process of its own. Raises NotJudged where it gives no verdict."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{exercise.slug}.py"
        file.write_text(source, "utf-8")
        command = [
            sys.executable, "-m", "llmkata.cli.main", "--course", str(exercise.root), "check", exercise.id,
            "--submission", str(file), "--json", "--isolation", os.environ.get("KATA_ISOLATION", "sandbox"),
        ]  # fmt: skip
        # What a check leaves in the current folder would be handed back with the feedback.
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, cwd=folder, check=False)
    try:
        record = msgspec.json.decode(done.stdout, type=ExerciseRecord)
    except msgspec.DecodeError:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NotJudged(said[-1] if said else f"kata check ended with status {done.returncode}") from None
    if record.state is State.infrastructure:
        raise NotJudged(record.cause)
    return record


def of_task(record: ExerciseRecord, task: int) -> ExerciseRecord:
    """The part of a record that is about one task."""
    return msgspec.structs.replace(record, checks=[check for check in record.checks if check.task == task])


def only_task(course: Course, exercise: Exercise, task: int) -> Course:
    """The course as if the exercise had no other task: for a report on one."""
    changed = msgspec.structs.replace
    tasks = tuple(t for t in exercise.tasks if t.number == task)
    modules = tuple(
        changed(m, exercises=tuple(changed(e, tasks=tasks) if e.id == exercise.id else e for e in m.exercises))
        for m in course.modules
    )
    return changed(course, modules=modules)
