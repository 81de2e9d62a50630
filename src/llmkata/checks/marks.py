"""What a check says about itself: its task, its points, what it needs, its hints. Plain pytest marks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

#: Registered with pytest by the plugin: name -> description.
MARKS = {
    "kata_task": "number of the task in the brief",
    "kata_points": "points earned when the check passes",
    "kata_gate": "later checks of the exercise are not judged when this one fails",
    "kata_needs": "names of checks that must have passed",
    "kata_hint": "hints, opened one level at a time",
}


def task(number: int) -> pytest.MarkDecorator:
    """The numbered task of the brief that the check belongs to; its tier (core, stretch) stands in course.yaml."""
    return pytest.mark.kata_task(number)


def points(n: float) -> pytest.MarkDecorator:
    """Points earned when the check passes. Visible checks earn none and need no mark."""
    return pytest.mark.kata_points(n)


def needs(*names: str) -> pytest.MarkDecorator:
    """Checks of the same exercise without which this one cannot be judged."""
    return pytest.mark.kata_needs(*names)


def hint(*levels: str) -> pytest.MarkDecorator:
    """Hints of this check, from a nudge to nearly the answer."""
    return pytest.mark.kata_hint(*levels)


def gate(fn: Callable) -> Callable:
    """Everything after this check hangs on it: if it fails, later checks are not judged."""
    return pytest.mark.kata_gate(fn)
