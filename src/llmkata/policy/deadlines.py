"""When something is due for a learner, and how late it is.

Days are those of the clock on the wall: a deadline at 23:59 is at 23:59 a day later too, whether or not the clocks were
changed in between.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from llmkata.course import Grading


class Lateness(msgspec.Struct, frozen=True):
    """How late a submission is."""

    #: The learner's deadline, extension included; None: there is none.
    due: datetime | None = None
    #: Days begun after it; 0 in time.
    days: int = 0
    #: Whether it is late by a mark alone: the system it was handed in to says so and gives no time.
    marked: bool = False
    #: Whether there is a deadline and nothing says when it was handed in.
    unknown: bool = False


def due(grading: Grading, module: int, learner: str) -> datetime | None:
    """The deadline of a module for a learner, with the extension; None: there is none."""
    deadline = grading.deadlines.get(module)
    extension = grading.extensions.get(learner)
    if deadline is None or extension is None:
        return deadline
    return later(deadline, extension.of(module), grading.timezone)


def lateness(grading: Grading, module: int, learner: str, submitted_at: str, *, marked_late: bool = False) -> Lateness:
    """How late something handed in at ``submitted_at`` (ISO 8601; without an offset: UTC; "" where unknown) is.

    ``marked_late``: another system calls it late. Where no time is known it is taken as late by a day; where one is
    known, that decides.
    """
    deadline = due(grading, module, learner)
    if deadline is None:
        return Lateness()
    moment = utc(submitted_at)
    if moment is None:
        return Lateness(deadline, 1 if marked_late else 0, marked=marked_late, unknown=not marked_late)
    grace = timedelta(minutes=grading.late.grace if grading.late else 0)
    if moment <= deadline.astimezone(UTC) + grace:
        return Lateness(deadline)
    # Off by one at most, where the clocks were changed in between.
    days = max(1, (moment - deadline.astimezone(UTC)).days - 1)
    while moment > later(deadline, days, grading.timezone).astimezone(UTC):
        days += 1
    return Lateness(deadline, days)


def later(moment: datetime, days: float, zone: str) -> datetime:
    """``moment`` some days later by the clock on the wall of the zone."""
    from llmkata.course.grading import in_zone

    wall = in_zone(moment, zone).replace(tzinfo=None)
    return in_zone(wall + timedelta(days=days), zone)


def utc(stamp: str) -> datetime | None:
    """The time of an ISO 8601 stamp in UTC; None where it is none."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
