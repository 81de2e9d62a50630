"""What lateness costs one exercise."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkata.course import Grading, Late
from llmkata.course.grading import in_zone
from llmkata.policy import Grade, grade

DUE = in_zone(datetime(2026, 10, 5, 23, 59), "Europe/Oslo")


def policy(late: Late | None) -> Grading:
    return Grading("Europe/Oslo", {1: DUE}, late)


def after(days: float) -> str:
    return (DUE + timedelta(days=days)).isoformat()


def test_in_time_everything_counts() -> None:
    assert grade(policy(Late(10)), 1, "ada", 0.8, after(0)) == Grade(0.8, due=DUE)


def test_percent_of_the_points_to_be_had_for_each_day() -> None:
    got = grade(policy(Late(10)), 1, "ada", 0.8, after(1.5))
    assert (got.raw, got.deduction, got.days_late) == (0.8, 0.2, 2)
    assert got.counted == pytest.approx(0.6)
    assert got.why == (
        "handed in 2026-10-07 11:59, 2 days begun after 2026-10-05 23:59 CEST: 20 % deducted (10 % a day)"
    )


def test_the_cap_is_said() -> None:
    got = grade(policy(Late(10, 30)), 1, "ada", 1.0, after(40))
    assert got.deduction == 0.3
    assert got.why.endswith("30 % deducted (10 % a day, at most 30 %)")


def test_nothing_is_taken_that_was_not_reached() -> None:
    got = grade(policy(Late(10)), 1, "ada", 0.05, after(1))
    assert (got.deduction, got.counted) == (0.05, 0.0)


def test_without_a_price_lateness_is_told_and_costs_nothing() -> None:
    got = grade(policy(None), 1, "ada", 1.0, after(1))
    assert (got.counted, got.days_late) == (1.0, 1)
    assert got.why.endswith("nothing is deducted")


def test_a_mark_without_a_time() -> None:
    got = grade(policy(Late(10)), 1, "ada", 1.0, marked_late=True)
    assert got.counted == 0.9
    assert "marked late where it was handed in" in got.why


def test_no_time_is_told_where_it_could_cost() -> None:
    assert grade(policy(Late(10)), 1, "ada", 1.0).why == "no time known: taken as handed in on time"
    assert grade(policy(None), 1, "ada", 1.0).why == ""
    assert grade(policy(Late(10)), 1, "ada", 0.0).why == "", "there is nothing to deduct"


def test_what_was_not_judged_is_not_late() -> None:
    got = grade(policy(Late(10)), 1, "ada", None, after(3))
    assert (got.counted, got.deduction, got.why) == (None, 0.0, "")


@given(
    st.floats(0, 1.5), st.floats(0, 100), st.floats(0, 100), st.floats(0, 5000), st.floats(-3, 60), st.floats(-3, 60),
    st.booleans(),
)  # fmt: skip
def test_bounds_and_order(raw, per_day, cap, grace, one, other, marked):
    late = policy(Late(per_day, cap, grace))
    first, second = (grade(late, 1, "ada", raw, after(d), marked_late=marked) for d in sorted([one, other]))
    for got in (first, second):
        assert 0 <= got.counted <= raw
        assert got.deduction <= cap / 100
        assert bool(got.why) == bool(got.days_late)
    assert second.counted <= first.counted, "later is never better"
    assert grade(policy(Late(per_day / 2, cap, grace)), 1, "ada", raw, after(one)).counted >= grade(
        late, 1, "ada", raw, after(one)
    ).counted
    assert grade(policy(None), 1, "ada", raw, after(one)).counted == raw
