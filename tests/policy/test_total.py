"""The total: dropped exercises against all choices, extra credit, its cap."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkata.policy import Part, Sum, combine

SHARES = st.one_of(st.none(), st.floats(0, 1.2))
PARTS = st.lists(st.builds(Part, SHARES, st.floats(0.1, 10), st.booleans()), max_size=7)


def brute(parts: list[Part], drop: int, cap: float | None) -> float | None:
    """The best over every choice of what to drop."""
    judged = [p for p in parts if p.share is not None and not p.extra]
    bonus = sum(p.weight * p.share for p in parts if p.extra and p.share is not None)
    if not judged:
        return None
    best = max(
        (sum(p.weight * p.share for p in kept) + bonus) / sum(p.weight for p in kept)
        for kept in combinations(judged, max(1, len(judged) - drop))
    )
    return 100 * best if cap is None else min(100 * best, cap)


@given(PARTS, st.integers(0, 8), st.one_of(st.none(), st.floats(100, 120)))
def test_against_every_choice(parts, drop, cap):
    got = combine(parts, drop, cap)
    assert got.percent == (None if brute(parts, drop, cap) is None else pytest.approx(brute(parts, drop, cap)))
    kept = [p for i, p in enumerate(parts) if i not in got.dropped and p.share is not None and not p.extra]
    assert got.weight == pytest.approx(sum(p.weight for p in kept))
    assert got.pending == pytest.approx(sum(p.weight for p in parts if p.share is None and not p.extra))
    assert not any(parts[i].extra or parts[i].share is None for i in got.dropped)


@given(PARTS, st.integers(0, 8), st.integers(0, 6), st.floats(0, 1))
def test_more_points_or_more_dropped_never_cost(parts, drop, place, more):
    before = combine(parts, drop).percent
    if before is None:
        return
    assert combine(parts, drop + 1).percent >= before - 1e-9
    if place < len(parts) and parts[place].share is not None:
        part = parts[place]
        raised = [*parts[:place], Part(part.share + more, part.weight, part.extra), *parts[place + 1 :]]
        assert combine(raised, drop).percent >= before - 1e-9
    assert combine([*parts, Part(more, 1.0, extra=True)], drop).percent >= before - 1e-9, "on top never costs"


def test_the_lowest_share_is_not_always_the_one_that_costs_most() -> None:
    parts = [Part(0.9, 1), Part(0.5, 10), Part(0.4, 1)]
    assert combine(parts, 1) == Sum(pytest.approx(65.0), 2.0, 0.0, (1,))


def test_a_plain_mean_without_policy() -> None:
    assert combine([Part(1.0, 1), Part(0.5, 3), Part(None, 2)]) == Sum(62.5, 4.0, 2.0, ())


def test_one_always_stays() -> None:
    assert combine([Part(0.2), Part(0.6)], 5) == Sum(60.0, 1.0, 0.0, (0,))


def test_on_top_and_capped() -> None:
    parts = [Part(1.0, 2), Part(0.5, 1, extra=True)]
    assert combine(parts).percent == 125.0
    assert combine(parts, cap=110.0).percent == 110.0
    assert combine([Part(0.5, 1, extra=True)]) == Sum(None, 0.0, 0.0, ())
