"""Deadlines: extensions, grace, days by the clock on the wall, time zones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkata.course import Extension, Grading, Late
from llmkata.course.grading import in_zone
from llmkata.policy import Lateness, due, lateness

OSLO = "Europe/Oslo"


def grading(text: str = "2026-10-05 23:59", *, grace: float = 0, extensions: dict[str, Extension] | None = None) -> Grading:
    deadline = in_zone(datetime.fromisoformat(text), OSLO)
    return Grading(OSLO, {2: deadline}, Late(10, 100, grace), extensions=extensions or {})


@pytest.mark.parametrize(
    ("submitted_at", "days"),
    [
        ("2026-10-05T23:59:00+02:00", 0),
        ("2026-10-05T21:59:00", 0),  # without an offset: UTC
        ("2026-10-05T23:59:01+02:00", 1),
        ("2026-10-06T23:59:00+02:00", 1),
        ("2026-10-06T23:59:01+02:00", 2),
        ("2026-10-05T18:00:00-05:00", 1),
        ("2027-10-05T23:59:00+02:00", 365),
    ],
)
def test_days_begun(submitted_at: str, days: int) -> None:
    assert lateness(grading(), 2, "ada", submitted_at).days == days


def test_a_day_across_the_change_of_clocks_has_25_hours() -> None:
    when = grading("2026-10-24 23:59")
    assert lateness(when, 2, "ada", "2026-10-25T23:59:00+01:00").days == 1
    assert lateness(when, 2, "ada", "2026-10-26T00:00:00+01:00").days == 2


def test_grace_takes_nothing_and_gives_no_day() -> None:
    when = grading(grace=15)
    assert lateness(when, 2, "ada", "2026-10-06T00:14:00+02:00").days == 0
    assert lateness(when, 2, "ada", "2026-10-06T00:14:01+02:00").days == 1
    assert lateness(when, 2, "ada", "2026-10-07T00:01:00+02:00").days == 2, "days begin at the deadline, not after grace"


def test_an_extension_is_the_learners_alone_and_may_be_of_one_module() -> None:
    extended = grading(extensions={"ada": Extension(2.5), "bob": Extension(1, {2: 4})})
    assert due(extended, 2, "ada") == in_zone(datetime(2026, 10, 8, 11, 59), OSLO)
    assert due(extended, 2, "bob") == in_zone(datetime(2026, 10, 9, 23, 59), OSLO)
    assert due(extended, 2, "eve") == in_zone(datetime(2026, 10, 5, 23, 59), OSLO)
    assert due(extended, 3, "ada") is None


def test_what_is_not_known() -> None:
    deadline = due(grading(), 2, "ada")
    assert lateness(grading(), 2, "ada", "") == Lateness(deadline, unknown=True)
    assert lateness(grading(), 2, "ada", "yesterday") == Lateness(deadline, unknown=True)
    assert lateness(grading(), 2, "ada", "", marked_late=True) == Lateness(deadline, 1, marked=True)
    assert lateness(grading(), 2, "ada", "2026-10-01T00:00:00", marked_late=True).days == 0, "a time is better than a mark"
    assert lateness(grading(), 3, "ada", "2030-01-01T00:00:00", marked_late=True) == Lateness()


MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1))


@given(
    MOMENTS, MOMENTS, st.sampled_from(["UTC", OSLO, "America/St_Johns", "Australia/Lord_Howe"]),
    st.floats(0, 10).map(lambda d: round(d, 2)), st.integers(0, 3000),
)  # fmt: skip
def test_days_are_the_least_that_reach(deadline: datetime, submitted: datetime, zone: str, extension: float, grace: int):
    """By its definition: the fewest days by which the deadline would have to be later."""
    late = Late(10, 100, grace)
    given_ = Grading(zone, {1: in_zone(deadline, zone)}, late, extensions={"ada": Extension(extension)})
    found = lateness(given_, 1, "ada", submitted.isoformat())
    moment = submitted.replace(tzinfo=UTC)
    assert found.due is not None
    wall = found.due.replace(tzinfo=None)

    def reaches(days: int) -> bool:
        return moment <= in_zone(wall + timedelta(days=days), zone).astimezone(UTC)

    if moment <= found.due.astimezone(UTC) + timedelta(minutes=grace):
        assert found.days == 0
    else:
        assert found.days >= 1 and reaches(found.days)
        assert found.days == 1 or not reaches(found.days - 1)


@given(MOMENTS, MOMENTS, MOMENTS, st.floats(0, 30), st.floats(0, 30))
def test_later_is_never_better_and_an_extension_never_worse(deadline, one, other, short, long):
    def days(at: datetime, extension: float) -> int:
        extensions = {"ada": Extension(extension)}
        return lateness(Grading(OSLO, {1: in_zone(deadline, OSLO)}, Late(5), extensions=extensions), 1, "ada",
                        at.isoformat()).days

    first, second = sorted([one, other])
    assert days(first, short) <= days(second, short)
    assert days(first, max(short, long)) <= days(first, min(short, long))
