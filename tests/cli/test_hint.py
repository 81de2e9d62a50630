"""Hints: where they are read, in which order they open, and that they open one at a time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from llmkata.cli.hints import exercise_hints
from llmkata.cli.own import record_file
from llmkata.course import load_course


def test_hints_are_read_from_the_check_files(toy, hidden) -> None:
    exercise = load_course(toy).exercise("sums")
    found = exercise_hints(exercise)
    assert [c.name for c in found] == ["test_fast", "test_empty", "test_carry", "test_cost"]
    assert found[1].hints == ("What is the sum of nothing?", "It is 0: the neutral element.")
    assert (found[1].title, found[1].task) == ("The sum of an empty list is 0.", 1)
    assert (found[3].title, found[3].task) == ("test_cost", 1)


def test_a_released_repository_has_them_in_feedback(toy) -> None:
    exercise = load_course(toy).exercise("sums")
    check = {"id": "test_correctness.py::test_carry", "title": "Carries are kept.", "task": 1, "hints": ["Carry on."]}
    exercise.feedback.write_text(json.dumps({"schema": "x", "checks": [check]}))
    assert [c.name for c in exercise_hints(exercise)] == ["test_carry", "test_fast", "test_empty"]
    exercise.feedback.write_text("{")
    with pytest.raises(ValueError, match="feedback.json"):
        exercise_hints(exercise)


def test_a_computed_hint_is_refused_with_its_line(toy) -> None:
    exercise = load_course(toy).exercise("sums")
    exercise.visible_checks.write_text("@hint('a' + str(1))\ndef test_x(): ...\n")
    with pytest.raises(ValueError, match="test_sums.py, line 1: a task or hint must be written out"):
        exercise_hints(exercise)


def test_one_level_at_a_time_in_the_order_of_the_brief(toy, kata) -> None:
    first = kata("hint", "0.1").out
    assert "0.1 Sums, task 1: test_empty\n  The sum of an empty list is 0.\n" in first
    assert "Hint 1 of 2\n  What is the sum of nothing?\n" in first
    assert "neutral" not in first and "1 more for this check: kata hint module0/sums\n" in first
    second = kata("hint", "sums").out
    assert "What is the sum of nothing?" in second and "It is 0: the neutral element." in second
    assert "kata check module0/sums --only test_empty" in second
    assert "test_fast" in kata("hint", "sums").out
    assert "test_fast" in kata("hint", "sums").out
    assert json.loads((toy / ".kata/hints.json").read_text()) == {"module0/sums": {"test_empty": 2, "test_fast": 1}}


def test_the_check_that_failed_first_comes_first(toy, kata, make_record) -> None:
    record = make_record("module0/sums", "pass 1", "fail 2 stretch")
    record.checks[1].id = "test_sums.py::test_fast"
    record_file(load_course(toy)).append(record)
    assert "test_fast" in kata("hint", "0.1").out


def test_a_check_and_a_level_can_be_named(toy, kata) -> None:
    shown = kata("hint", "0.1", "--check", "empty", "--level", "2").out
    assert "neutral element" in shown
    again = kata("hint", "0.1", "--check", "test_empty", "--level", "1").out
    assert "neutral element" not in again
    assert json.loads((toy / ".kata/hints.json").read_text())["module0/sums"]["test_empty"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("hint", "0.1", "--check", "emty"), 'did you mean "test_empty"?'),
        (("hint", "0.1", "--check", "empty", "--level", "3"), "has 2 hints, so --level is 1 to 2"),
        (("hint", "0.2"), "module0/products has no hints"),
    ],
)
def test_what_cannot_be_hinted(toy, kata, words, says) -> None:
    done = kata(*words)
    assert done.status == 2 and says in done.err


def test_text_in_brackets_is_shown_as_it_is(toy, kata, hidden) -> None:
    assert "A carry [is] lost." in kata("hint", "0.1", "--check", "carry").out


def test_a_spoilt_state_file_counts_as_nothing_opened(toy, kata) -> None:
    (toy / ".kata").mkdir()
    (toy / ".kata/hints.json").write_text("{broken")
    assert "Hint 1 of 2" in kata("hint", "0.1").out
def priced(toy: Path) -> None:
    course = toy / "course.yaml"
    text = course.read_text().replace("weights: {core: 1, stretch: 1}}", "weights: {core: 1, stretch: 1}, hints: {price: 2, free: 1, at_most: 3}}")
    assert "price" in text
    course.write_text(text)


def test_a_price_is_told_before_a_hint_is_opened(toy, kata, monkeypatch) -> None:
    priced(toy)
    opened = toy / ".kata/hints.json"
    assert "costs" not in kata("hint", "0.1").out  # the first is free
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda text: bool(asked.append(text)))
    refused = kata("hint", "0.1")
    assert refused.status == 1 and "neutral" not in refused.out and len(asked) == 1
    assert "This hint costs 2 % of the points of this exercise on your card; so far 0 %" in refused.out
    assert "(1 free, then 2 % each, at most 3 %)" in " ".join(refused.out.split())
    assert json.loads(opened.read_text()) == {"module0/sums": {"test_empty": 1}}
    monkeypatch.setattr("typer.confirm", lambda text: True)
    assert "neutral element" in kata("hint", "0.1").out
    assert "This hint costs 1 %" in kata("hint", "0.1", "--check", "fast").out  # the most is reached
    monkeypatch.setattr("typer.confirm", lambda text: pytest.fail("what is open costs nothing again"))
    assert "neutral element" in kata("hint", "0.1", "--check", "empty", "--level", "2").out
    assert json.loads(opened.read_text()) == {"module0/sums": {"test_empty": 2, "test_fast": 1}}


def test_without_anybody_to_ask_it_stays_closed(toy, kata, monkeypatch) -> None:
    priced(toy)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    both = kata("hint", "0.1", "--check", "empty", "--level", "2")
    assert both.status == 2 and "These 2 hints cost 2 %" in both.out and "neutral" not in both.out
    assert "kata hint module0/sums --check test_empty --yes" in both.err
    assert not (toy / ".kata/hints.json").exists()
    assert "neutral" in kata("hint", "0.1", "--check", "empty", "--level", "2", "--yes").out


def test_what_hints_cost_is_on_the_card(toy, kata, make_record) -> None:
    """Of 100 points: 2 % for the second of two hints, and the total follows."""
    record_file(load_course(toy)).append(make_record("module0/sums", "pass 1", "pass 2 stretch"))
    kata("hint", "0.1", "--check", "empty", "--level", "2")

    def card() -> tuple[dict, float]:
        kata("scorecard")
        told = json.loads((toy / ".kata/scorecard/you.json").read_text("utf-8"))
        return told["exercises"][0], told["total"]["percent"]

    free, whole = card()
    assert (free["percent"], free["hints_cost"], free["hints_opened"]) == (100.0, 0.0, {"test_empty": 2})
    assert "They cost nothing." in (toy / ".kata/scorecard/you.html").read_text("utf-8")
    priced(toy)
    dear, less = card()
    assert (dear["percent"], dear["hints_cost"]) == (98.0, 2.0) and dear["points"] == free["points"]
    assert less == pytest.approx(whole * 0.98)
    for name in ("you.html", "you.md"):
        assert "They cost" in (text := (toy / ".kata/scorecard" / name).read_text("utf-8")) and "98 %" in text
