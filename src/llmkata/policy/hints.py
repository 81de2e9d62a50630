"""What hints cost on a learner's own card."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkata.course import Hints


def hint_cost(hints: Hints, opened: int) -> float:
    """Percent of the points of an exercise that so many of its hints cost."""
    return min(hints.at_most, hints.price * max(0, opened - hints.free))
