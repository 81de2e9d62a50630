"""Keys of ``kata watch`` that ask before they do something."""

from __future__ import annotations

from types import SimpleNamespace

from llmkata.cli.hints import opened_levels
from llmkata.cli.watch import _ACTIONS
from llmkata.course import load_course

from .test_hint import priced

CHECK = "test_sums.py::test_empty"


def watching(toy) -> SimpleNamespace:
    course = load_course(toy)
    failing = SimpleNamespace(id=CHECK, hints=["What is the sum of nothing?", "It is 0."])
    return SimpleNamespace(
        course=course, exercise=course.exercise("sums"), failing=lambda: failing, opened={}, asking=None, note=""
    )


def press(w: SimpleNamespace, key: str) -> str:
    """As ``Watch.press`` does."""
    if w.asking is not None:
        answer, w.asking = w.asking, None
        return answer(key) or ""
    return _ACTIONS[key](w) or ""


def test_a_hint_that_costs_nothing_opens_at_once(toy) -> None:
    w = watching(toy)
    assert press(w, "h") == press(w, "h") == press(w, "h") == ""
    assert (w.opened, w.asking) == ({CHECK: 2}, None)
    assert opened_levels(toy / ".kata") == {"module0/sums": {"test_empty": 2}}


def test_a_price_is_told_and_asked_for(toy) -> None:
    priced(toy)
    w = watching(toy)
    assert press(w, "h") == "" and w.opened[CHECK] == 1  # the first is free
    assert press(w, "h").startswith("This hint costs 2 % of the points of this exercise on your card")
    assert press(w, "n") == "It stays closed." and w.opened[CHECK] == 1
    assert opened_levels(toy / ".kata") == {"module0/sums": {"test_empty": 1}}
    assert press(w, "h").endswith("Open it? y/n")
    assert press(w, "y") == "" and w.opened[CHECK] == 2
    w.opened[CHECK] = 1  # the loop was left in between: what is open costs nothing again
    assert press(w, "h") == "" and w.opened[CHECK] == 2



def test_the_list_is_as_long_as_the_window_allows(toy, monkeypatch) -> None:
    w = watching(toy)
    names = [f"e{n}" for n in range(40)]
    many = [SimpleNamespace(id=n, number="9.9", title=n) for n in names]
    w.course, w.exercise = SimpleNamespace(available=many), many[20]
    monkeypatch.setattr("llmkata.cli.verify.own_verified", lambda course: SimpleNamespace(where=lambda e: "not started"))
    monkeypatch.setattr("llmkata.cli.board.sign_of", lambda where: ("○", ""))
    for height, listed in ((50, 17), (24, 15), (14, 5), (5, 3)):
        w.console = SimpleNamespace(height=height)
        lines = press(w, "l").splitlines()
        assert len(lines) == listed + 1 and lines[listed // 2].startswith("> ○  9.9 e20") and "All of them" in lines[-1]
