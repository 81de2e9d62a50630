"""What hints cost: nothing, a price each beyond the free ones, never more than the most, never below 0."""

from __future__ import annotations

import pytest

from llmkata.course import Hints
from llmkata.policy import Grade, adjusted, hint_cost, less_hints


@pytest.mark.parametrize(
    ("hints", "opened", "percent"),
    [
        (Hints(), 12, 0.0),
        (Hints(price=2.0), 3, 6.0),
        (Hints(price=2.0, free=1), 0, 0.0),
        (Hints(price=2.0, free=1), 1, 0.0),
        (Hints(price=2.0, free=1), 3, 4.0),
        (Hints(price=2.0, free=1, at_most=5.0), 9, 5.0),
        (Hints(price=40.0), 9, 100.0),
    ],
)
def test_cost(hints: Hints, opened: int, percent: float) -> None:
    assert hint_cost(hints, opened) == percent


def test_what_counts() -> None:
    assert less_hints(Grade(0.8), 10.0).counted == pytest.approx(0.7)
    assert less_hints(Grade(0.8, 0.3), 10.0).counted == pytest.approx(0.4)
    assert less_hints(Grade(0.05), 10.0).counted == 0.0
    assert less_hints(Grade(None), 10.0).counted is None
    taken = adjusted(less_hints(Grade(0.5), 10.0), -0.9)
    assert (taken.adjustment, taken.counted) == (pytest.approx(-0.4), pytest.approx(0.0))
