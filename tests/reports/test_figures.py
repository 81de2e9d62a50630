"""Geometry of bars and plots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkata.records import Measure
from llmkata.reports.figures import bar, growth, histogram, near, strip, timeline, usage, verdict

NUMBER = st.floats(0, 1e18)
LIMIT = st.none() | NUMBER


def test_a_bar_is_linear_where_the_numbers_are_close() -> None:
    drawn = bar(Measure("m", 50, "x", at_most=100, reference=25))
    assert not drawn.log
    places = {mark.role: mark.at for mark in drawn.marks}
    assert drawn.measured == pytest.approx(places["limit"] / 2, abs=0.01)
    assert drawn.measured == pytest.approx(places["reference"] * 2, abs=0.02)
    assert drawn.beyond == drawn.measured


def test_a_bar_is_logarithmic_where_they_are_far_apart() -> None:
    drawn = bar(Measure("m", 1e6, "x", at_most=100, ok=False))
    (limit,) = drawn.marks
    assert drawn.log
    assert 0 < limit.at == drawn.beyond < drawn.measured < 100


@given(NUMBER, LIMIT, LIMIT, LIMIT)
def test_bars_stay_in_their_frame_and_in_order(
    value: float, at_most: float | None, at_least: float | None, reference: float | None
) -> None:
    drawn = bar(Measure("m", value, "x", at_most=at_most, at_least=at_least, reference=reference))
    for place in (drawn.measured, drawn.beyond, *(mark.at for mark in drawn.marks)):
        assert 0 <= place <= 100
    assert drawn.beyond <= drawn.measured
    for mark, limit in zip(drawn.marks, [x for x in (at_most, at_least, reference) if x is not None], strict=True):
        assert (mark.at >= drawn.measured) or limit <= value


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (Measure("m", 198, "x", at_most=100, ok=False), "1.98× the limit"),
        (Measure("m", 75, "x", at_most=100), "75 % of the limit"),
        (Measure("m", 99.7, "x", at_most=100), "99 % of the limit"),
        (Measure("m", 100, "x", at_most=100), "100 % of the limit"),
        (Measure("m", 0.1, "x", at_most=100), "<1 % of the limit"),
        (Measure("m", 1, "x", at_most=0, ok=False), "over the limit"),
        (Measure("m", 0, "x", at_most=0), "within the limit"),
        (Measure("m", 0.8, "×", at_least=2, ok=False), "40 % of what is needed"),
        (Measure("m", 10, "x", at_most=100, at_least=50, ok=False), "20 % of what is needed"),
        (Measure("m", 3, "x", ok=False), "not accepted"),
        (Measure("m", 2, "exponent", at_most=1.25, ok=False, series=[(1, 1), (2, 4)]), "grows too fast"),
    ],
)
def test_verdicts(measure: Measure, words: str) -> None:
    assert verdict(measure) == words


def test_near_the_limit_is_ten_percent_on_either_side() -> None:
    assert [near(usage(v, 100, None)) for v in (80, 91, 100, 109, 120)] == [False, True, True, True, False]
    assert [near(usage(v, None, 2.0)) for v in (1.5, 1.9, 2.1, 3.0)] == [False, True, True, False]
    assert not near(usage(5, None, None))
    assert not near(usage(0, 0, None))


def test_a_growth_plot_is_log_log() -> None:
    plot = growth(Measure("m", 2.0, "exponent", at_most=1.0, series=[(400, 160000.0), (100, 10000.0), (200, 40000.0)]))
    assert plot is not None
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = plot.points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2), "a power is a straight line"
    assert plot.guide is not None
    assert plot.guide[:2] == (x0, y0)
    assert y2 < plot.guide[3] < y0, "linear growth ends below quadratic growth"
    assert plot.text.startswith("size 100: 10\u202f000")


@pytest.mark.parametrize("series", [[], [(1, 1)], [(1, 1), (1, 2)], [(0, 1), (2, 1)], [(1, 0), (2, 0)]])
def test_no_plot_of_what_has_no_slope(series: list[tuple[float, float]]) -> None:
    assert growth(Measure("m", 1.0, "exponent", series=series)) is None


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(1e-9, 1e18)), max_size=6), LIMIT)
def test_plots_stay_in_their_frame(series: list[tuple[float, float]], limit: float | None) -> None:
    plot = growth(Measure("m", 1.0, "exponent", at_most=min(limit, 5) if limit is not None else None, series=series))
    for x, y in [(p[0], p[1]) for p in plot.points] if plot else []:
        assert 0 <= x <= plot.width
        assert 0 <= y <= plot.height


def test_the_histogram_holds_everybody() -> None:
    bins = histogram([0, 9.99, 10, 55, 99.9, 100])
    assert [b.count for b in bins] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert max(b.height for b in bins) == 100
    assert [b.height for b in histogram([])] == [0] * 10


def test_strips_mark_the_limit() -> None:
    dots, limit, log = strip([("a", 0.5, "", True), ("b", 1.0, "", True), ("c", 1.5, "", False)])
    assert not log
    assert dots[0].at < dots[1].at == limit < dots[2].at < 100
    assert strip([("a", 100.0, "", False), ("b", 0.9, "", True)])[2]


def test_a_time_line_in_hours_days_and_several_days() -> None:
    hours = timeline(["2026-03-01T10:59:59Z", "2026-03-01T12:00:00+01:00", "2026-03-01T13:30:00Z", "soon", ""])
    assert [(s.label, s.count) for s in hours] == [("1 Mar 10:00", 1), ("1 Mar 11:00", 1), ("1 Mar 12:00", 0),
                                                  ("1 Mar 13:00", 1)]  # fmt: skip
    days = timeline(["2026-02-27T23:00:00", "2026-03-02T23:30:00", "2026-03-02T01:00:00Z"])
    assert [(s.label, s.count, s.height) for s in days] == [
        ("27 Feb", 1, 50.0), ("28 Feb", 0, 0.0), ("1 Mar", 0, 0.0), ("2 Mar", 2, 100.0)
    ]  # fmt: skip
    year = timeline(["2026-01-01T00:00:00Z", "2026-12-31T00:00:00Z"])
    assert len(year) <= 61
    assert sum(s.count for s in year) == 2
    assert timeline([]) == timeline(["never"]) == []
