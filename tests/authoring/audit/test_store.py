"""Kept results: unchanged trials are not run again, and anything a verdict hangs on counts as a change."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llmkata.authoring.audit.answers import answer_trials
from llmkata.authoring.audit.mistakes import mistake_trials, mistakes
from llmkata.authoring.audit.mutants import mutant_trials
from llmkata.authoring.audit.pool import perform
from llmkata.authoring.audit.store import Store
from llmkata.authoring.audit.trial import Result, Seen, Trial
from llmkata.course import load_course
from llmkata.records import Outcome

from ..conftest import edit

RESULT = Result([Seen("test_a", Outcome.passed, 1, 1, headroom=0.25)], cpu_seconds=1.5)


def kinds(root: Path) -> dict[str, Trial]:
    exercise = load_course(root).exercise("scale")
    known = mistakes(exercise)
    named = next(m for m in known if m.caught_by == "test_large_numbers")
    return {"solution": answer_trials(exercise, True)[0], "visible": answer_trials(exercise, True)[1],
            "mistake": mistake_trials(exercise, [named], True)[0], "mutant": mutant_trials(exercise)[1][0]}


def test_a_result_comes_back_as_it_was(toy: Path) -> None:
    trial = kinds(toy)["solution"]
    Store(load_course(toy)).put(trial, RESULT)
    assert Store(load_course(toy)).get(trial) == RESULT
    assert Store(load_course(toy)).get(msgspec.structs.replace(trial, seed=1)) is None


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("graders/module1/scale/test_correctness.py", {"solution", "mistake", "mutant"}),
        ("graders/module1/scale/test_budgets.py", {"solution", "mutant"}),
        ("exercises/module1/scale/test_scale.py", {"visible"}),
        ("reference/module1/scale.py", {"solution", "visible", "mistake", "mutant"}),
        ("graders/module1/scale/misconceptions.py", {"mistake"}),
        ("graders/module1/scale/alternatives/library.py", set()),
        ("graders/module1/scale/forbid.py", {"solution", "visible", "mistake", "mutant"}),
    ],
)
def test_what_makes_a_result_stale(toy: Path, file: str, stale: set[str]) -> None:
    trials = kinds(toy)
    for trial in trials.values():
        Store(load_course(toy)).put(trial, RESULT)
    with (toy / file).open("a") as stream:
        stream.write("\n# changed\n")
    store = Store(load_course(toy))
    assert {kind for kind, trial in trials.items() if store.get(trial) is None} == stale


@pytest.mark.parametrize(
    ("before", "after", "stale"),
    [
        ('"""Rows of', '"""All rows of', False),  # another check
        ("atol=1e-9, rtol=0)\n\n\n@task(1)\n@points(10)\n@hint(\"Subtract", "atol=1e-8, rtol=0)\n\n\n@task(1)\n@points(10)\n@hint(\"Subtract", True),
        ("st.integers(2, 5)", "st.integers(2, 6)", True),  # the cases it draws
        ("import torch\n", "import torch\nimport math\n", True),
        ("@task(1)\n@points(40)", "@task(1)\n@points(41)", True),
    ],
)
def test_a_kill_stands_while_its_check_does(toy: Path, before: str, after: str, stale: bool) -> None:
    mutant = kinds(toy)["mutant"]
    kill = Result([Seen("test_softmax_matches", Outcome.failed, 0, 40, cause="output differs")])
    Store(load_course(toy)).put(mutant, kill)
    path = toy / "graders/module1/scale/test_correctness.py"
    path.write_text(path.read_text().replace('"""Large numbers', '"""Rows of large numbers'))
    assert Store(load_course(toy)).get(mutant) == kill
    edit(path, before, after)
    assert (Store(load_course(toy)).get(mutant) is None) is stale


def test_what_else_a_kill_hangs_on(toy: Path) -> None:
    mutant = kinds(toy)["mutant"]
    Store(load_course(toy)).put(mutant, Result(problem="it cannot be imported"))
    (toy / "graders/module1/scale/test_correctness.py").write_text("")
    assert Store(load_course(toy)).get(mutant) is not None
    edit(toy / "reference/module1/scale.py", "def softmax", "\n\ndef softmax")
    assert Store(load_course(toy)).get(mutant) is None


def test_a_survivor_is_run_again_after_any_change(toy: Path) -> None:
    mutant = kinds(toy)["mutant"]
    Store(load_course(toy)).put(mutant, RESULT)
    edit(toy / "graders/module1/scale/test_correctness.py", '"""Large', '"""Quite large')
    assert Store(load_course(toy)).get(mutant) is None


def test_limits_and_tasks_count(toy: Path) -> None:
    trial = kinds(toy)["solution"]
    Store(load_course(toy)).put(trial, RESULT)
    path = toy / "course.yaml"
    path.write_text(path.read_text().replace("memory: 512", "memory: 513"))
    assert Store(load_course(toy)).get(trial) is None


def test_a_grader_that_went_wrong_is_not_kept(toy: Path) -> None:
    trial, store = kinds(toy)["solution"], Store(load_course(toy))
    store.put(trial, Result(problem="the process died", fault=True))
    store.put(trial, Result([Seen("test_a", Outcome.not_judged, cause="The grader failed", fault=True)]))
    assert store.get(trial) is None


def test_a_broken_file_is_run_again(toy: Path) -> None:
    trial, store = kinds(toy)["solution"], Store(load_course(toy))
    store.put(trial, RESULT)
    next((toy / ".kata/audit/module1/scale").iterdir()).write_bytes(b'{"checks": [')
    assert store.get(trial) is None


def test_kept_results_start_no_process(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course, trials = load_course(toy), list(kinds(toy).values())
    for trial in trials:
        Store(course).put(trial, RESULT)
    monkeypatch.setattr("llmkata.authoring.audit.pool._forked", lambda *a: pytest.fail("a process was started"))
    done: list[Trial] = []
    assert perform(course, trials, workers=2, progress=done.append) == dict.fromkeys(trials, RESULT)
    assert done == trials
