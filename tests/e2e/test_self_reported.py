"""What a submission says of itself earns at most a tenth of the points of any exercise, and docs/security.md lists it."""

from pathlib import Path

import pytest

from llmkata.course import load_course
from llmkata.grading.runner import check_files, grade_one, run_pytest
from llmkata.plugin.core import KataPlugin
from llmkata.plugin.runs import ExerciseRun, Setting
from llmkata.records import Outcome, Trust

from ..adversarial.arena import build

COURSE = load_course(Path(__file__).parents[2])
PAGE = (Path(__file__).parents[2] / "docs/security.md").read_text("utf-8")
#: A tenth of the points of an exercise.
MOST = 0.1


def points(exercise):
    """Points by the name of the check, as graders say."""
    run = ExerciseRun(exercise, Setting(), b"", exercise.slug)
    plugin = KataPlugin(lambda path: run, 0)
    assert not run_pytest(check_files(exercise, False), exercise.root, plugin, "--collect-only")
    return {c.name: c.points for c in plugin.checks()}


def self_reported(course, exercise):
    """Names of the checks of the model answer's record that hold a measure it reported itself."""
    budgets = grade_one(course, exercise, exercise.solution.read_bytes(), only="test_budgets")
    assert budgets.checks and all(c.outcome is not Outcome.failed for c in budgets.checks)
    return {c.id.split("::")[1] for c in budgets.checks if any(m.trust is Trust.self_reported for m in c.measures)}


@pytest.mark.parametrize("exercise", COURSE.available, ids=lambda e: e.id)
def test_it_is_little_and_told(exercise):
    if not list(exercise.graders_dir.glob("test_budgets.py")):
        pytest.skip("no budgets")
    of, found = points(exercise), self_reported(COURSE, exercise)
    told = "".join(line for line in PAGE.splitlines() if line.startswith(f"- {exercise.id} "))
    assert sum(of[name] for name in found) <= MOST * sum(of.values())
    for name in found:
        assert f"`{name}`" in told, f"docs/security.md does not list {name}"


def test_it_is_found(tmp_path):
    """The negative control: an exercise that is all word of mouth."""
    arena = build(tmp_path, "def f(x):\n    return x\n", budgets='''
@task(1)
@points(1)
def test_steps(submission, budget):
    """Few steps."""
    budget.require("steps", budget.steps(lambda s: s.f(1)), at_most=100, unit="steps")
''')
    exercise = arena.course.exercise("arena")
    assert self_reported(arena.course, exercise) == {"test_steps"} and points(exercise) == {"test_steps": 1}
