"""``policy.grading`` of ``course.yaml``: deadlines, what lateness costs, attempts, extra credit, dropped exercises.

Who has an extension does not stand in course.yaml, which every learner has: it comes from the roster
(``grading/roster.py``) and is put into ``Grading.extensions``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import yaml

from .by_hand import ByHand
from .faults import did_you_mean
from .nodes import (
    BAD,
    REQUIRED,
    Reader,
    boolean,
    choice,
    entries,
    integer,
    kind_of,
    listing,
    located,
    mapping,
    number,
    text,
    wrong,
)

DEFAULT_ZONE = "UTC"


class Late(msgspec.Struct, frozen=True):
    """What lateness costs, in percent of the points an exercise is worth."""

    #: For each day begun after the deadline.
    per_day: float
    #: The most that is deducted.
    cap: float = 100.0
    #: Minutes after the deadline that count as in time.
    grace: float = 0.0


class ExtraCredit(msgspec.Struct, frozen=True):
    """What can only raise a total."""

    #: Slugs of exercises whose points come on top: they are left out of what a total is divided by.
    exercises: tuple[str, ...] = ()
    #: Whether the points of stretch tasks come on top of an exercise: its core tasks alone make 100 %.
    stretch: bool = False
    #: Percent that no total exceeds; None: no limit.
    cap: float | None = None


class Extension(msgspec.Struct, frozen=True):
    """Days by which the deadlines of one learner are later."""

    days: float = 0.0
    #: Module -> days, in place of ``days``.
    modules: Mapping[int, float] = {}

    def of(self, module: int) -> float:
        return self.modules.get(module, self.days)


class Grading(msgspec.Struct, frozen=True):
    """How the grade follows from points and times."""

    #: IANA name of the time zone of deadlines without an offset, and of days.
    timezone: str = DEFAULT_ZONE
    #: Module -> deadline, aware, in ``timezone``. A module without one has none.
    deadlines: Mapping[int, datetime] = {}
    #: None: lateness is shown and costs nothing.
    late: Late | None = None
    #: Which of several submissions of an exercise counts.
    attempts: Literal["last", "best"] = "last"
    #: So many exercises, those that cost a total most, are left out of it.
    drop_lowest: int = 0
    extra_credit: ExtraCredit = ExtraCredit()
    #: Learner -> extension, from the roster of a class.
    extensions: Mapping[str, Extension] = {}
    #: When learners see grades: as soon as pages are written, or after `kata release-grades`.
    release: Literal["at_once", "by_hand"] = "at_once"
    #: What staff changed, from the log of a class.
    by_hand: ByHand = ByHand()


def _zone(reader: Reader, node: yaml.Node, field: str) -> Any:
    from zoneinfo import ZoneInfo, available_timezones

    name = text(reader, node, field)
    if name is BAD:
        return BAD
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        near = did_you_mean(name, available_timezones()) or '; as "Europe/Oslo"'
        return reader.fault(node, field, f'no time zone is called "{name}"{near}')
    return name


def _moment(reader: Reader, node: yaml.Node, field: str) -> Any:
    if kind_of(node) not in ("str", "timestamp"):
        return wrong(reader, node, field, 'a time, as "2026-10-05 23:59"')
    try:
        moment = datetime.fromisoformat(node.value)
    except ValueError:
        return reader.fault(node, field, f'"{node.value}" is no time; write it as "2026-10-05 23:59"')
    if len(node.value.strip()) <= len("2026-10-05"):
        return reader.fault(node, field, f'"{node.value}" has no time of day; write it as "{node.value} 23:59"')
    return moment


def _deadlines(reader: Reader, node: yaml.Node, field: str) -> Any:
    pairs = entries(reader, node, field)
    if pairs is BAD:
        return BAD
    found = {}
    for key, (key_node, value_node) in pairs.items():
        moment = _moment(reader, value_node, f"{field}.{key}")
        if not key.isascii() or not key.isdecimal():
            reader.fault(key_node, field, f'"{key}" is no number of a module')
        elif moment is not BAD:
            found[int(key)] = (moment, key_node)
    return found


_PERCENT = number(0, 100, open_end=False)
_LATE = mapping({
    "per_day": (_PERCENT, REQUIRED), "cap": (_PERCENT, 100.0), "grace": (number(0, open_end=False), 0.0),
})
_EXTRA = mapping({
    "exercises": (listing(located(text)), ()), "stretch": (boolean, False), "cap": (number(100, open_end=False), None),
})
GRADING = mapping({
    "timezone": (_zone, None), "deadlines": (located(_deadlines), None), "late": (_LATE, None),
    "attempts": (choice("last", "best"), "last"), "drop_lowest": (integer(0), 0), "extra_credit": (_EXTRA, {}),
    "release": (choice("at_once", "by_hand"), "at_once"),
})


def check_grading(reader: Reader, raw: Any, modules: tuple[dict[str, Any], ...]) -> None:
    """What it says of modules and exercises must be there, and a deadline without an offset needs a time zone."""
    numbers = {m["number"][0] for m in modules if m["number"] is not BAD}
    slugs = {
        e["slug"][0] for m in modules if m["exercises"] is not BAD for e in m["exercises"] if e["slug"] is not BAD
    }
    deadlines = raw.get("deadlines")
    if deadlines and deadlines is not BAD:
        for module, (moment, node) in deadlines[0].items():
            where = f"policy.grading.deadlines.{module}"
            if module not in numbers:
                reader.fault(node, where, f"the course has no module {module}")
            if moment.tzinfo is None and raw["timezone"] is None:
                reader.fault(node, where, 'needs policy.grading.timezone, as "Europe/Oslo", or an offset, as +01:00')
    extra = raw.get("extra_credit")
    for place, (slug, node) in enumerate(extra["exercises"] if extra and BAD not in (extra, extra["exercises"]) else ()):
        if slug not in slugs:
            where = f"policy.grading.extra_credit.exercises[{place}]"
            reader.fault(node, where, f'no exercise has the slug "{slug}"{did_you_mean(slug, slugs)}')


def make_grading(raw: dict[str, Any]) -> Grading:
    """The structure of a mapping that was read without a fault."""
    if not raw:
        return Grading()
    name = raw["timezone"] or DEFAULT_ZONE
    extra = raw["extra_credit"]
    found = raw["deadlines"][0] if raw["deadlines"] else {}
    return Grading(
        timezone=name, deadlines={module: in_zone(moment, name) for module, (moment, _) in sorted(found.items())},
        late=Late(**raw["late"]) if raw["late"] else None, attempts=raw["attempts"], drop_lowest=raw["drop_lowest"],
        extra_credit=ExtraCredit(**(extra | {"exercises": tuple(slug for slug, _ in extra["exercises"])})) if extra
        else ExtraCredit(), release=raw["release"],
    )  # fmt: skip


def in_zone(moment: datetime, zone: str) -> datetime:
    """An aware time in the zone. Of a wall-clock time that comes twice, or never, the reading that is later."""
    from zoneinfo import ZoneInfo

    if moment.tzinfo is not None:
        return moment.astimezone(ZoneInfo(zone))
    readings = [moment.replace(tzinfo=ZoneInfo(zone), fold=fold) for fold in (0, 1)]
    return max(readings, key=lambda reading: reading.astimezone(UTC))
