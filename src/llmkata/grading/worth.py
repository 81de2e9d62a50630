"""What an exercise is worth, asked of its graders without running them."""

from __future__ import annotations

from typing import Any


def worth(exercise: Any) -> float:
    """Points that the hidden checks of an exercise can give. Raises RuntimeError where they cannot be collected."""
    return sum(worth_of_tasks(exercise).values())


def worth_of_tasks(exercise: Any) -> dict[int, float]:
    """Points that the checks of each task can give, by its number. Raises RuntimeError where they cannot be collected."""
    from llmkata.grading.runner import check_files, run_pytest
    from llmkata.plugin.core import KataPlugin
    from llmkata.plugin.runs import ExerciseRun, Setting

    run = ExerciseRun(exercise, Setting(), b"", exercise.slug)
    plugin = KataPlugin(lambda path: run, 0)
    try:
        problem = run_pytest(check_files(exercise, False), exercise.root, plugin, "--collect-only")
    finally:
        run.close()
    if problem:
        raise RuntimeError(problem)
    points: dict[int, float] = {}
    for check in plugin.checks():
        points[check.task] = points.get(check.task, 0.0) + check.points
    return dict(sorted(points.items()))
