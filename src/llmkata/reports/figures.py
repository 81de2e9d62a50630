"""Geometry of the drawings: where things lie on a bar or in a plot. The templates turn it into SVG.

Positions on bars are percentages of the width, so that a bar fits any page; plots have coordinates of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from llmkata.records import Measure

from .text import amount, ratio

#: Beyond this quotient between the largest and the smallest number on a bar the scale is logarithmic.
LOG_FROM = 6.0
#: A measure this close to its limit, on either side of it, is near the limit.
NEAR = 0.10


@dataclass(frozen=True)
class Mark:
    """A line across a bar."""

    role: str  # "limit" | "floor" | "reference"
    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A measured number against its limits; positions in percent of the width."""

    measured: float
    #: Where the part beyond the limit starts; equal to ``measured`` where nothing is beyond.
    beyond: float
    marks: list[Mark]
    log: bool
    #: The same in words, e.g. ``1.98× the limit``.
    verdict: str


def bar(measure: Measure) -> Bar:
    """The bar of a measure. Scale: linear from 0, or logarithmic where the numbers lie far apart."""
    rules = [("limit", measure.at_most), ("floor", measure.at_least), ("reference", measure.reference)]
    numbers = [measure.value] + [value for _, value in rules if value is not None]
    largest, smallest = max(numbers), min(numbers)
    log = smallest > 0 and largest / smallest > LOG_FROM
    start, end = (math.log(smallest / 3), math.log(largest * 1.3)) if log else (0.0, largest * 1.12)

    def at(value: float) -> float:
        if end <= start:
            return 0.0
        place = (math.log(value) if value > 0 else start) if log else value
        return round(100 * min(1.0, max(0.0, (place - start) / (end - start))), 2)

    marks = [Mark(role, at(value), amount(value, measure.unit)) for role, value in rules if value is not None]
    over = measure.at_most is not None and measure.value > measure.at_most
    beyond = at(measure.at_most) if over and measure.at_most is not None else at(measure.value)
    return Bar(at(measure.value), beyond, marks, log, verdict(measure))


def verdict(measure: Measure) -> str:
    """How a measure stands to its limits, in words."""
    value, most, least = measure.value, measure.at_most, measure.at_least
    if measure.series and most is not None:
        # The values are exponents: a ratio of them says nothing.
        return "grows too fast" if not measure.ok else "grows no faster than allowed"
    if most is not None and value > most:
        return f"{ratio(value / most)} the limit" if most > 0 else "over the limit"
    if least is not None and value < least:
        share = f"{round(100 * value / least)} % of" if least > 0 and value >= 0 else "below"
        return f"{share} what is needed"
    if not measure.ok:
        return "not accepted"
    share = usage(value, most, least)
    return "within the limit" if share is None else f"{_percent_used(share)} of the limit"


def _percent_used(share: float) -> str:
    # 99.6 % is not "100 % of the limit" when it is within it.
    return "<1 %" if 0 < share < 0.01 else f"{min(round(100 * share), 99) if share < 1 else 100} %"


def usage(value: float, at_most: float | None, at_least: float | None) -> float | None:
    """The share of the limit that is used: 1 is at the limit, more is beyond; None where there is no usable limit."""
    if at_most is not None:
        return value / at_most if at_most > 0 else None
    return at_least / value if at_least is not None and value > 0 and at_least > 0 else None


def near(share: float | None) -> bool:
    """Whether a share of the limit (see :func:`usage`) is within 10 % of it."""
    return share is not None and abs(share - 1) <= NEAR


@dataclass(frozen=True)
class Plot:
    """A log-log plot of a growth series in its own coordinates."""

    width: float
    height: float
    points: list[tuple[float, float, str]]
    path: str
    #: Line of the steepest growth allowed, through the first point; None without a limit.
    guide: tuple[float, float, float, float] | None
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]
    #: The drawing in words.
    text: str


def growth(measure: Measure, width: float = 300.0, height: float = 170.0) -> Plot | None:
    """The plot behind a growth exponent; None where there are fewer than two points a log-log plot can show.

    The measure's value and limit are exponents: value grows like size to that power.
    """
    series = sorted((x, y) for x, y in measure.series if x > 0 and y > 0)
    if len(series) < 2 or series[0][0] == series[-1][0]:
        return None
    left, right, top, bottom = 62.0, 14.0, 12.0, 26.0
    xs = [math.log(x) for x, _ in series]
    ys = [math.log(y) for _, y in series]
    low, high = min(ys), max(ys)
    guide_end = ys[0] + measure.at_most * (xs[-1] - xs[0]) if measure.at_most is not None else None
    if guide_end is not None:
        low, high = min(low, guide_end), max(high, guide_end)
    if high - low < 1e-9:
        low, high = low - 1, high + 1

    def px(x: float) -> float:
        return round(left + (width - left - right) * (x - xs[0]) / (xs[-1] - xs[0]), 1)

    def py(y: float) -> float:
        return round(height - bottom - (height - top - bottom) * (y - low) / (high - low), 1)

    places = [(px(x), py(y)) for x, y in zip(xs, ys, strict=True)]
    labels = [f"size {amount(x)}: {amount(y)}" for x, y in series]
    guide = None if guide_end is None else (px(xs[0]), py(ys[0]), px(xs[-1]), py(guide_end))
    return Plot(
        width, height, [(x, y, label) for (x, y), label in zip(places, labels, strict=True)],
        " ".join(f"{x},{y}" for x, y in places), guide,
        ticks_x=_apart([(x, amount(size)) for (x, _), (size, _) in zip(places, series, strict=True)], 34.0),
        ticks_y=_apart([(y, amount(value)) for (_, y), (_, value) in zip(places, series, strict=True)], 14.0),
        text="; ".join(labels),
    )


def _apart(ticks: Sequence[tuple[float, str]], space: float) -> list[tuple[float, str]]:
    """Ticks at least ``space`` apart, the last one kept: labels must not overlap."""
    kept: list[tuple[float, str]] = []
    for tick in reversed(ticks):
        if all(abs(tick[0] - other[0]) >= space for other in kept):
            kept.append(tick)
    return kept[::-1]


@dataclass(frozen=True)
class Bin:
    """One column of a histogram: learners with a total in [low, high), the last one closed."""

    low: int
    high: int
    count: int
    #: Height in percent of the highest column.
    height: float


def histogram(percents: Iterable[float], bins: int = 10) -> list[Bin]:
    """Learners by total, in equal steps of 0..100."""
    counts = [0] * bins
    for value in percents:
        counts[min(bins - 1, max(0, int(value * bins / 100)))] += 1
    highest = max(counts) or 1
    step = 100 // bins
    return [Bin(i * step, (i + 1) * step, n, round(100 * n / highest, 2)) for i, n in enumerate(counts)]


@dataclass(frozen=True)
class Span:
    """One column of a time line: what happened from a time on, up to the next column."""

    label: str
    count: int
    #: Height in percent of the highest column.
    height: float


def timeline(moments: Iterable[str], most: int = 60) -> list[Span]:
    """ISO 8601 times as columns of equal length: hours where all lie within three days, else days or several of them, at
    most about ``most`` columns, in UTC. Times without an offset are taken as UTC; what is no time is passed over.
    """
    stamps = sorted(filter(None, map(_stamp, moments)))
    if not stamps:
        return []
    hour = timedelta(hours=1)
    fine = stamps[-1] - stamps[0] < timedelta(days=3)
    start = stamps[0].replace(minute=0, second=0, microsecond=0)
    start = start if fine else start.replace(hour=0)
    unit = hour if fine else 24 * hour
    step = unit * max(1, math.ceil((stamps[-1] - start) / unit / most))
    counts = [0] * (int((stamps[-1] - start) / step) + 1)
    for stamp in stamps:
        counts[int((stamp - start) / step)] += 1
    highest, form = max(counts), "%d %b %H:00" if fine else "%d %b"
    return [
        Span((start + i * step).strftime(form).lstrip("0"), n, round(100 * n / highest, 2)) for i, n in enumerate(counts)
    ]


def _stamp(text: str) -> datetime | None:
    try:
        stamp = datetime.fromisoformat(text)
        return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class Dot:
    """Learners at one place on a strip: position in percent of the width."""

    at: float
    #: Whose, and each value: ``ada: 1.2 MFLOP``; what does not fit is counted.
    text: str
    ok: bool
    count: int = 1

    @property
    def radius(self) -> float:
        """In pixels; the area grows with the number of learners, within bounds."""
        return round(min(12.0, 4.5 * math.sqrt(1 + 0.15 * (self.count - 1))), 1)


#: Dots of a strip are drawn this many percent of the width apart, those closer as one; so many names stand on one.
_APART, _NAMED = 0.5, 12


def strip(uses: Sequence[tuple[str, float, str, bool]]) -> tuple[list[Dot], float, bool]:
    """Shares of a limit, (learner, share, text, within), as dots on a line: (dots, place of the limit, log scale)."""
    shares = [share for _, share, _, _ in uses if share > 0]
    low, high = min([*shares, 1.0]), max([*shares, 1.0])
    log = high / low > LOG_FROM
    start, end = (math.log(low / 1.3), math.log(high * 1.3)) if log else (0.0, high * 1.12)

    def at(share: float) -> float:
        place = (math.log(share) if share > 0 else start) if log else share
        return round(100 * (place - start) / (end - start), 2)

    places: dict[tuple[int, bool], list[tuple[float, str]]] = {}
    for learner, share, text, ok in uses:
        place = at(share)
        places.setdefault((round(place / _APART), ok), []).append((place, f"{learner}: {text}"))
    dots = []
    for (_, ok), members in places.items():
        more = [f"and {len(members) - _NAMED} more"] if len(members) > _NAMED else []
        told = "; ".join([text for _, text in members[:_NAMED]] + more)
        dots.append(Dot(members[0][0], told, ok, len(members)))
    return dots, at(1.0), log
