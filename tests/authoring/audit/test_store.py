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
