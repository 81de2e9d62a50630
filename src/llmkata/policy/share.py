"""What one exercise of one learner counts for: points as a share of those to be had, less what lateness costs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from .deadlines import Lateness, lateness

if TYPE_CHECKING:
    from llmkata.course import Grading


class Grade(msgspec.Struct, frozen=True):
    """A share of the points to be had, 1 for all of them (above 1 with extra credit). None: not judged, nothing known."""

    #: As graded.
    raw: float | None
    #: What was deducted; ``raw - deduction`` counts, and what was given by hand.
    deduction: float = 0.0
    days_late: int = 0
    due: datetime | None = None
    #: One sentence on lateness, whatever it costs; "" in time.
    why: str = ""
    #: What was given (or, below 0, taken) by hand; never more taken than was there.
    adjustment: float = 0.0
    #: What the hints opened cost, on a learner's own card.
    hints: float = 0.0

    @property
    def counted(self) -> float | None:
        """The share that counts in the total."""
        return None if self.raw is None else self.raw - self.deduction - self.hints + self.adjustment


def grade(
    grading: Grading, module: int, learner: str, raw: float | None, submitted_at: str = "", *, marked_late: bool = False
) -> Grade:
    """The grade of what was handed in at ``submitted_at`` (see :func:`.deadlines.lateness`). Never below 0 and never
    above ``raw``.
    """
    late = lateness(grading, module, learner, submitted_at, marked_late=marked_late)
    if not late.days or raw is None:
        return Grade(raw, due=late.due, why=_unknown(grading) if late.unknown and raw else "")
    percent = min(grading.late.cap, late.days * grading.late.per_day) if grading.late else 0.0
    # Points that were not reached cannot be taken away.
    deduction = min(raw, percent / 100)
    return Grade(raw, deduction, late.days, late.due, _why(grading, late, submitted_at, percent))


def less_hints(made: Grade, percent: float) -> Grade:
    """The grade less what hints cost; never below 0."""
    if not made.raw or not percent:
        return made
    return msgspec.structs.replace(made, hints=min(made.raw - made.deduction, percent / 100))


def adjusted(made: Grade, share: float) -> Grade:
    """The grade with a share given by hand, which no lateness takes away; what counts is never below 0."""
    if made.raw is None or not share:
        return made
    return msgspec.structs.replace(made, adjustment=max(share, made.deduction + made.hints - made.raw))


def _unknown(grading: Grading) -> str:
    return "no time known: taken as handed in on time" if grading.late else ""


def _why(grading: Grading, late: Lateness, submitted_at: str, percent: float) -> str:
    from .deadlines import utc

    assert late.due is not None
    when = f"{late.due:%Y-%m-%d %H:%M %Z}"
    days = f"{late.days} day{'s' if late.days != 1 else ''}"
    moment = utc(submitted_at)
    if moment is None:
        said = f"marked late where it was handed in, by an unknown time; counted as {days}; due {when}"
    else:
        said = f"handed in {moment.astimezone(late.due.tzinfo):%Y-%m-%d %H:%M}, {days} begun after {when}"
    if grading.late is None or not grading.late.per_day:
        return f"{said}: nothing is deducted"
    capped = f", at most {grading.late.cap:g} %" if percent == grading.late.cap else ""
    return f"{said}: {percent:g} % deducted ({grading.late.per_day:g} % a day{capped})"
