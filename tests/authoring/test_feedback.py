"""``kata sync`` and feedback.json: wrong answers on visible inputs, fresh or not."""

from __future__ import annotations

import json
from pathlib import Path

from llmkata.authoring import feedback
from llmkata.authoring.feedback import is_fresh, is_made
from llmkata.course import load_course

from .conftest import edit

FEEDBACK = "exercises/module1/scale/feedback.json"


def test_it_is_fresh_until_what_it_is_made_from_changes(toy: Path, kata) -> None:
    assert kata("--course", toy, "sync", "--check").status == 0
    edit(toy / "graders/module1/scale/misconceptions.py", "Your softmax runs", "The softmax runs")
    found = kata("--course", toy, "sync", "--check")
    assert found.status == 1
    assert "module1/scale: feedback.json is out of step" in found.err
    assert "The softmax runs" not in (toy / FEEDBACK).read_text()
    assert kata("--course", toy, "sync").status == 0
    assert "The softmax runs" in (toy / FEEDBACK).read_text()
    assert kata("--course", toy, "sync", "--check").status == 0


def test_it_is_not_fresh_where_requests_were_written_down_otherwise(toy: Path, monkeypatch) -> None:
    exercise = load_course(toy).exercise("scale")
    assert is_fresh(exercise)
    monkeypatch.setattr(feedback, "_REQUESTS", feedback._REQUESTS + 1)
    assert not is_fresh(exercise)


def test_alternatives_and_mutants_play_no_part(toy: Path) -> None:
    exercise = load_course(toy).exercise("scale")
    (toy / "graders/module1/scale/alternatives/third.py").write_text("x = 1\n")
    (toy / "graders/module1/scale/mutants.yaml").write_text("[]\n")
    assert is_fresh(exercise)


def test_the_same_files_give_the_same_bytes(toy: Path, kata) -> None:
    before = (toy / FEEDBACK).read_bytes()
    (toy / FEEDBACK).unlink()
    done = kata("--course", toy, "sync")
    assert "+wrong_axis: test_scale.py::test_rows_sum_to_one" in done.out
    assert (toy / FEEDBACK).read_bytes() == before


def test_answers_are_those_of_visible_checks_only(toy: Path) -> None:
    told = json.loads((toy / FEEDBACK).read_text())
    checks = {check for mistake in told["mistakes"] for check in mistake["answers"]}
    assert checks
    assert all(check.startswith("test_scale.py::") for check in checks)


def test_checks_that_cannot_be_run_are_told(toy: Path, kata) -> None:
    edit(toy / "exercises/module1/scale/test_scale.py", "import torch\n", "import torch\n1 / 0\n")
    done = kata("--course", toy, "sync")
    assert done.status == 2
    assert "ZeroDivisionError" in done.err


def test_an_exercise_without_mistakes_has_none(toy: Path, kata) -> None:
    (toy / "graders/module1/scale/misconceptions.py").unlink()
    (toy / FEEDBACK).unlink()
    assert not is_made(load_course(toy).exercise("scale"))
    assert kata("--course", toy, "sync", "--check").status == 0
