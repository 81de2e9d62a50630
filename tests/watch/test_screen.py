"""The screen: the first failing check on top, the bar at the bottom, as high as the window, no state by colour alone."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llmkata.course import load_course
from llmkata.records import CheckRecord, Diagnosis, Evidence, ExerciseRecord, Measure, Outcome, Spot, State
from llmkata.watch.judge import first_failure
from llmkata.watch.screen import View, paint, task_states


@pytest.fixture
def exercise(toy, monkeypatch):
    monkeypatch.chdir(toy)
    return load_course(toy).exercise("toy")


def check(name: str, task: int, outcome: str = "failed", **more) -> CheckRecord:
    cause = "" if outcome == "passed" else more.pop("cause", "It differs.")
    return CheckRecord(id=f"test_toy.py::test_{name}", title=f"What {name} must do.", task=task, tier="core", max_points=0,
                       points=0, outcome=Outcome(outcome), visibility="visible", cause=cause, **more)


def record(*checks: CheckRecord, state: State = State.graded, cause: str = "") -> ExerciseRecord:
    return ExerciseRecord(learner="you", exercise="module1/toy", state=state, checks=list(checks), cause=cause)


def shown(exercise, rec, *, width: int = 110, height: int = 34, color: bool = False, **view) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, no_color=not color, color_system="truecolor" if color else None,
                      highlight=False)
    text = paint(View(exercise, rec, view.pop("busy", False), **view), console, height)
    bare = re.sub(r"\x1b\]8;[^\x1b]*\x1b\\|\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return text.split("\n") if color else bare.split("\n")


FAILING = check("scores", 2, hints=["Look at the axes.", "Swap them."], diagnosis=Diagnosis("swapped", "You swapped the axes."),
                evidence=Evidence("It differs.", call="scores(tensor (2, 3))", expected="1 in tensor (2, 2)", got="2 in tensor (2, 2)",
                                  index="(0, 1)", frames=["toy.py:7 in softmax: e = x"]),
                measures=[Measure("FLOPs", 400.0, "FLOP", at_most=200.0, reference=100.0, ok=False,
                                  spots=[Spot("aten::mm", 300.0, 12)])])


def test_the_failing_check_stands_on_top_and_the_bar_at_the_bottom(exercise):
    lines = shown(exercise, record(check("one", 1, "passed"), check("late", 3), FAILING))
    assert lines[0].startswith("1.1 Toy operations")
    assert lines[1] == "✗ Task 2: What scores must do."
    text = "\n".join(lines)
    for part in ("→ You swapped the axes.", "scores(tensor (2, 3))", "expected 1 in tensor (2, 2)", "got 2 in tensor", "(0, 1)",
                 "at exercises/module1/toy/toy.py:7 in softmax: e = x", "at most 200 FLOP", "2× the limit", "model answer 100 FLOP",
                 "300 FLOP  aten::mm  line 12", "h opens hint 1 of 2", "--only test_scores"):
        assert part in text, part
    assert re.match(r"\[#+-+\] 1/4 tasks   ✓1  ✗2  ✗3  ○4$", lines[-3]), lines[-3]
    assert lines[-2].endswith("toy.py") and lines[-1].startswith("h hint   n next")
    assert text.index("You swapped") < text.index("scores(tensor") < text.index("expected")


@pytest.mark.parametrize("size", [(110, 34), (60, 20), (40, 12), (200, 60)])
def test_as_high_as_the_window(exercise, size):
    lines = shown(exercise, record(FAILING), width=size[0], height=size[1], hints=2)
    assert len(lines) == size[1]
    assert all(len(line) <= size[0] for line in lines)
    text = "\n".join(lines)
    assert "✗ Task 2" in text and "hint 2: Swap them." in text and "0/4 tasks" in text
    assert ("more lines in a higher window" in text) == (size[1] < 15)


def test_what_a_run_waits_for_is_told(exercise):
    busy = {"busy": True, "so_far": 11}
    assert shown(exercise, record(FAILING), **busy)[0].endswith("checking... 11 passed so far")
    assert shown(exercise, record(FAILING), slow=1, **busy)[0].endswith("11 passed so far, 1 that takes longer still to come")
    assert shown(exercise, record(FAILING), slow=2, **busy)[0].endswith("11 passed so far, 2 that take longer still to come")


def test_hints_open_one_by_one(exercise):
    closed, one = ("\n".join(shown(exercise, record(FAILING), hints=n)) for n in (0, 1))
    assert "Look at the axes" not in closed and "hint 1: Look at the axes." in one and "Swap" not in one


def test_every_state_has_a_sign_without_colour(exercise):
    rec = record(check("a", 1, "passed"), check("b", 2), check("c", 3, cause="not started: task 3"),
                 check("d", 4, "not judged", cause="no GPU"))
    assert [sign for _, sign, _ in task_states(exercise, rec)] == ["✓", "✗", "○", "–"]
    half = (check("a", 1, "passed"), check("b", 1, cause="not started: task 1"))
    assert task_states(exercise, record(*half))[0][1] == "◐"
    assert task_states(exercise, record(*half, check("c", 1)))[0][1] == "✗"
    assert "✓1  ✗2  ○3  –4" in "\n".join(shown(exercise, rec))


def test_no_color_has_no_colour(exercise):
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", "".join(shown(exercise, record(FAILING), color=True)))
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, no_color=True, highlight=False)
    assert not re.search(r"\x1b\[[0-9;]*\b(3[0-7]|9[0-7])m", paint(View(exercise, record(FAILING), False), console, 30))


def test_paths_are_links(exercise):
    text = "\n".join(shown(exercise, record(FAILING), color=True))
    assert f"{exercise.stub.as_uri()}\x1b\\" in text


def test_other_screens(exercise):
    assert "checking..." in "\n".join(shown(exercise, None, busy=True))
    assert "begin with task 1" in "\n".join(shown(exercise, record(state=State.not_started)))
    assert "✗ line 3: no" in "\n".join(shown(exercise, record(state=State.unreadable, cause="line 3: no")))
    done = "\n".join(shown(exercise, record(*(check(str(n), n, "passed") for n in (1, 2, 3, 4)))))
    assert "✓ All visible checks pass." in done and "4/4 tasks" in done
    begun = "\n".join(shown(exercise, record(check("a", 1, "passed"), check("b", 2, cause="not started: task 2: a product"))))
    assert "○ Task 2 is next" in begun and "✗" not in begun
    half = "\n".join(shown(exercise, record(check("a", 2, "passed"), check("b", 2, cause="not started: task 2: a product"))))
    assert "◐ Task 2 goes on: What b must do." in half and "◐2" in half and "✗" not in half


def test_nothing_of_a_record_acts_on_the_terminal(exercise):
    evil = check("x", 1, cause="a\x1b]0;title\x07b\x1b[2Jc[red]d")
    text = "\n".join(shown(exercise, record(evil), color=True))
    assert "\x1b]0;" not in text and "\x1b[2J" not in text and "abc[red]d" in text


def test_the_first_failure_is_that_of_the_first_task():
    assert first_failure(record(check("a", 3), check("b", 2), check("c", 2))).id.endswith("test_b")
    assert first_failure(record(check("a", 3, "passed"), check("b", 1, "not judged"))) is None
