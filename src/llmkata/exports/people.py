"""A list of people from the system that takes the grades: whom it calls what.

Canvas's exported gradebook, Moodle's grading worksheet or list of participants, nbgrader's list of students, or a roster
of one's own: a CSV file with a header, of which the columns that tell people apart are known by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmkata.grading.csvfile import Row, Table, TableError, read_table
from llmkata.grading.roster import AmbiguousName, Roster

#: Columns that tell people apart, in lower case; a learner is looked for in all of them.
IDENTIFYING = (
    "learner", "id", "student", "name", "full name", "email", "email address", "username", "login", "login id",
    "sis login id", "sis user id", "id number", "student id", "canvas id", "github", "identifier",
)  # fmt: skip


@dataclass(frozen=True)
class People(Table):
    """The list as it was read. ``roster``: that of the class, which knows learners by other names, too."""

    roster: Roster | None = None

    @cached_property
    def _by_roster(self) -> dict[str, list[Row]]:
        """Learner's id -> rows that are hers by the names of the roster. What means several is nobody's."""
        found: dict[str, list[Row]] = {}
        for row in self.rows if self.roster else ():
            names = [row.cells[name].removeprefix("'") for name in IDENTIFYING if row.cells.get(name)]
            with suppress(AmbiguousName):
                # What Canvas exports has its number of a person as ID.
                person = self.roster.find(*names, canvas_id=row.get("id") if self.has("student") else "")
                if person is not None:
                    found.setdefault(person.id, []).append(row)
        return found

    def of(self, learner: str) -> Row | None:
        """The row of a learner; None where there is none. Raises :class:`TableError` where several answer to the name."""
        wanted = learner.strip().casefold()
        found = [row for row in self.rows if wanted in _names(row)]
        if not found:  # an account, of which only the address is listed
            found = [row for row in self.rows if wanted in {name.partition("@")[0] for name in _names(row) if "@" in name}]
        found = found or self._by_roster.get(learner, [])
        if len(found) > 1:
            lines = ", ".join(str(row.line) for row in found[:5])
            raise TableError(f"{self.path}: lines {lines} all answer to {learner!r}; name the learner's folder otherwise")
        return found[0] if found else None

    def matched(self, learners: Iterable[str]) -> dict[str, Row]:
        """Learner -> row, of those that have one. Raises :class:`TableError` where two learners have the same row."""
        found: dict[str, Row] = {}
        taken: dict[int, str] = {}
        for learner in learners:
            row = self.of(learner)
            if row is None:
                continue
            if row.line in taken:
                raise TableError(f"{self.path}:{row.line}: both {taken[row.line]!r} and {learner!r} answer to this line")
            taken[row.line] = learner
            found[learner] = row
        return found


def read_people(path: Path, roster: Roster | None = None) -> People:
    """The list in a CSV file; ``roster`` as for :class:`People`. Raises :class:`TableError` where it is no such file, or no column tells people apart."""
    table = read_table(path, "id,name,email")
    if not set(table.columns).intersection(IDENTIFYING):
        known, found = ", ".join(IDENTIFYING), ", ".join(table.columns)[:200]
        raise TableError(table.fault(1, f"no column tells people apart; known are {known}, found {found}"))
    return People(table.path, table.header, table.rows, roster)


def _names(row: Row) -> set[str]:
    # A leading quote is how this program, and others, keep a spreadsheet from taking a name for a formula.
    found = {row.cells[name].casefold() for name in IDENTIFYING if row.cells.get(name)}
    return found | {name.removeprefix("'") for name in found}
