"""The roster of a class: who is in it, under which names they hand in, in which group, with how many extension days.

A CSV file in UTF-8 with a header (comma, semicolon or tab). ``id`` names the learner everywhere; further columns:

======================  ==========================================================================
name, email             the learner is found by them too
github, also            other names the learner hands in under; ``also`` may hold several, separated by ``;``
canvas id               the ID of Canvas's exported gradebook: who has one is known by it in Canvas's downloads
section                 for filtering
group                   members of a group hand in one work, under the group's name or a member's
extension days          days by which every deadline is later for this learner
extension days 3        the same for module 3 alone, in its place
======================  ==========================================================================

Other columns are for others (``repository``: ``kata collect``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llmkata.course import Extension

from .csvfile import Row, Table, TableError, read_table

if TYPE_CHECKING:
    from llmkata.course import Course

_KNOWN = ("id", "name", "email", "canvas id", "github", "also", "section", "group", "extension days",
          "repository")  # fmt: skip
_EXTENSION = re.compile(r"extension days(?: (?:module ?)?(?P<module>\d{1,3}))?")


class AmbiguousName(ValueError):
    """A name that means several learners; the message says which."""


@dataclass(frozen=True)
class Person:
    """One learner of the roster."""

    id: str
    #: Line of the file, from 1.
    line: int
    name: str = ""
    email: str = ""
    section: str = ""
    group: str = ""
    extension: Extension = field(default_factory=Extension)
    canvas_id: str = ""
    #: Accounts, and names in other systems.
    also: tuple[str, ...] = ()


class Roster:
    """The learners of a class, in the order of the file."""

    def __init__(self, people: Iterable[Person]) -> None:
        self.people = tuple(people)
        self._sure: dict[str, list[Person]] = {}
        self._likely: dict[str, list[Person]] = {}
        self._canvas = {person.canvas_id: person for person in self.people if person.canvas_id}
        for person in self.people:
            for name in {person.id, person.email, *person.also} - {""}:
                self._sure.setdefault(_folded(name), []).append(person)
            for name in {*_turned(person.name), _folded(person.email.partition("@")[0])} - {""}:
                self._likely.setdefault(name, []).append(person)

    def find(self, *names: str, canvas_id: str = "") -> Person | None:
        """Whom the names mean, the first that means anybody. A person's Canvas ID, then id, address and accounts come
        before names, of which case, spaces and the order of first and last do not matter ("Berg, Ann", "bergann"). A
        name does not mean somebody who has another Canvas ID.

        Raises :class:`AmbiguousName` where a name means several.
        """
        if canvas_id in self._canvas:
            return self._canvas[canvas_id]
        for index, fold in ((self._sure, _folded), (self._likely, _joined)):
            for name in filter(None, names):
                found = index.get(fold(name), [])
                if canvas_id:
                    found = [person for person in found if not person.canvas_id]
                if len(found) > 1:
                    lines = ", ".join(str(person.line) for person in found[:5])
                    raise AmbiguousName(f"{name!r} may be any of the learners in lines {lines} of the roster")
                if found:
                    return found[0]
        return None

    def group(self, name: str) -> tuple[Person, ...]:
        """The members of the group of that name; none where no group has it."""
        wanted = _joined(name)
        return tuple(person for person in self.people if person.group and _joined(person.group) == wanted)

    def mates(self, learner: str) -> tuple[Person, ...]:
        """The members of a learner's group, the learner among them; the learner alone without one."""
        person = next((person for person in self.people if person.id == learner), None)
        if person is None:
            return ()
        return self.group(person.group) if person.group else (person,)


def enrolled(course: Course, roster: Roster | None) -> Course:
    """The course with the extensions of the roster in its policy."""
    if roster is None:
        return course
    extensions = {person.id: person.extension for person in roster.people if person.extension != Extension()}
    grading = msgspec.structs.replace(course.policy.grading, extensions=extensions)
    return msgspec.structs.replace(course, policy=msgspec.structs.replace(course.policy, grading=grading))


def read_roster(path: Path | str, modules: Iterable[int] | None = None, needs: Iterable[str] = ("id",)) -> Roster:
    """The roster in a CSV file. ``modules``: numbers that a column of extension days may name. ``needs``: columns it must
    have.

    Raises:
        TableError: not such a file, or faults in it: a column that is missing, stands twice or is misspelt, an id that
            is missing or stands twice, days that are no number from 0 on.
    """
    path = Path(path)
    table = read_table(path, "id,name,email,section,extension days", needs)
    faults = list(_header_faults(table, None if modules is None else set(modules)))
    if faults:
        raise TableError("\n".join(faults))
    people: list[Person] = []
    first: dict[tuple[str, str], int] = {}
    for row in table.rows:
        line = row.line
        try:
            person = _person(row)
        except TableError as error:
            faults.append(table.fault(line, error))
            continue
        for column, value in (("id", person.id), ("canvas id", person.canvas_id)):
            before = first.setdefault((column, _folded(value)), line) if value else line
            if before != line:
                faults.append(table.fault(line, f"{column}: {value!r} stands here twice (first in line {before})"))
        people.append(person)
    if faults:
        raise TableError("\n".join(faults))
    return Roster(people)


def _header_faults(table: Table, modules: set[int] | None) -> Iterator[str]:
    for column in table.columns:
        match = _EXTENSION.fullmatch(column)
        if match and match["module"] and modules is not None and int(match["module"]) not in modules:
            yield table.fault(1, f"column {column!r}: the course has no module {match['module']}")
        near = get_close_matches(column, _KNOWN, n=1, cutoff=0.8)
        if not match and near and column not in _KNOWN:
            yield table.fault(1, f"unknown column {column!r}; did you mean {near[0]!r}?")


def _person(row: Row) -> Person:
    ident = row.get("id")
    if not ident:
        raise TableError("id: is missing")
    if any(not c.isprintable() for c in ident) or len(ident) > 200:
        raise TableError("id: must be one line of at most 200 characters that can be printed")
    days, modules = 0.0, {}
    for column, cell in row.cells.items():
        match = _EXTENSION.fullmatch(column)
        if match and cell:
            number = _days(column, cell)
            if match["module"]:
                modules[int(match["module"])] = number
            else:
                days = number
    also = [row.get("github"), *(name.strip() for name in row.get("also").split(";"))]
    return Person(
        ident, row.line, row.get("name"), row.get("email"), row.get("section"), row.get("group"),
        Extension(days, modules), row.get("canvas id"), tuple(filter(None, also)),
    )  # fmt: skip


def _days(column: str, cell: str) -> float:
    try:
        days = float(cell)
    except ValueError:
        raise TableError(f"{column}: {cell!r} is no number of days") from None
    if not isfinite(days) or not 0 <= days <= 1000:
        raise TableError(f"{column}: must be between 0 and 1000, is {cell}")
    return days


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _joined(name: str) -> str:
    """Letters, digits and ``_`` alone, as Canvas writes names."""
    return re.sub(r"\W", "", _folded(name))


def _turned(name: str) -> set[str]:
    """A name with its words in every turn: ``ann marie berg``, ``marie berg ann``, ``berg ann marie``, joined."""
    words = [word for word in map(_joined, re.split(r"[\s,]+", name)) if word]
    return {"".join(words[n:] + words[:n]) for n in range(len(words))}
