"""Remarks beside the learner's lines: one for each task that failed, the first thing to look at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmkata.gradebook.standing import Standing
from llmkata.reports.actions import Annotation
from llmkata.reports.view import CheckCard, ExerciseCard, Scorecard, TaskCard

from .items import check_line, own_line, stub_path, told

if TYPE_CHECKING:
    from llmkata.course import Course

#: Lines of expected and got that a remark shows each.
_MOST_LINES = 8


def remarks(card: Scorecard, course: Course, sources: Mapping[str, str]) -> list[Annotation]:
    """Core tasks first, in the order of the course. ``sources``: exercise id -> text of the learner's file."""
    core, stretch = [], []
    for exercise in card.exercises:
        file = stub_path(course.exercise(exercise.id))
        name = f"{exercise.number} {exercise.title}"
        if exercise.standing is Standing.unreadable:
            at = own_line(exercise.evidence.frames, file) if exercise.evidence else 0
            core.append(Annotation(file, at, name, exercise.cause))
        for task in exercise.tasks:
            check = _first_failed(task)
            if check is not None:
                at = check_line(check, file, sources.get(exercise.id, ""))
                note = Annotation(file, at, f"{name}, task {task.number}: {task.title}", _message(exercise, check))
                (core if task.tier == "core" else stretch).append(note)
    return core + stretch


def _first_failed(task: TaskCard) -> CheckCard | None:
    """Of a task that was begun; a recognised mistake is the best start."""
    failed = [check for check in task.checks if check.outcome == "failed"]
    return min(failed, key=lambda check: check.diagnosis is None, default=None) if task.started else None


def _message(exercise: ExerciseCard, check: CheckCard) -> str:
    parts = [check.title, told(check)]
    if check.evidence:
        rows = {"Input": check.evidence.call, "Expected": check.evidence.expected, "Got": check.evidence.got}
        parts += [f"{name}: {_few(text)}" for name, text in rows.items() if text]
    parts.append(f"Again: ./kata check {exercise.id} --only {check.name}")
    return "\n".join(part for part in parts if part)


def _few(text: str) -> str:
    lines = text.split("\n")
    return "\n".join([*lines[:_MOST_LINES], "…"] if len(lines) > _MOST_LINES else lines)
