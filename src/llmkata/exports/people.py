"""A list of people from the system that takes the grades: whom it calls what.

Canvas's exported gradebook, Moodle's grading worksheet or list of participants, nbgrader's list of students, or a roster
of one's own: a CSV file with a header, of which the columns that tell people apart are known by name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Columns that tell people apart, in lower case; a learner is looked for in all of them.
IDENTIFYING = (
    "learner", "id", "student", "name", "full name", "email", "email address", "username", "login", "login id",
    "sis login id", "sis user id", "id number", "student id", "canvas id", "github", "identifier",
)  # fmt: skip
MAX_BYTES = 32 << 20


class PeopleError(ValueError):
    """A list that cannot be used; the message names file and line."""


@dataclass(frozen=True)
class Person:
    """One row: cells by the name of their column, in lower case."""

    line: int
    cells: Mapping[str, str]

    def get(self, *columns: str) -> str:
        """The first of these columns (in lower case) that has a text."""
        return next((self.cells[c] for c in columns if self.cells.get(c)), "")


@dataclass(frozen=True)
class People:
    """The list as it was read: ``header`` as it is spelt there, rows in their order."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[Person, ...]

    def has(self, *columns: str) -> bool:
        """Whether it has all these columns (in lower case)."""
        return set(columns) <= {name.casefold() for name in self.header}

    def of(self, learner: str) -> Person | None:
        """The row of a learner; None where there is none. Raises :class:`PeopleError` where several answer to the name."""
        wanted = learner.strip().casefold()
        found = [row for row in self.rows if wanted in _names(row)]
        if not found:  # an account, of which only the address is listed
            found = [row for row in self.rows if wanted in {name.partition("@")[0] for name in _names(row) if "@" in name}]
        if len(found) > 1:
            lines = ", ".join(str(row.line) for row in found[:5])
            raise PeopleError(f"{self.path}: lines {lines} all answer to {learner!r}; name the learner's folder otherwise")
        return found[0] if found else None

    def matched(self, learners: Iterable[str]) -> dict[str, Person]:
        """Learner -> row, of those that have one. Raises :class:`PeopleError` where two learners have the same row."""
        found: dict[str, Person] = {}
        taken: dict[int, str] = {}
        for learner in learners:
            row = self.of(learner)
            if row is None:
                continue
            if row.line in taken:
                raise PeopleError(f"{self.path}:{row.line}: both {taken[row.line]!r} and {learner!r} answer to this line")
            taken[row.line] = learner
            found[learner] = row
        return found


def read_people(path: Path) -> People:
    """The list in a CSV file (comma, semicolon or tab; UTF-8). Raises :class:`PeopleError` where it is no such file."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise PeopleError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PeopleError(f"{path} is not UTF-8; save it as CSV in UTF-8") from error
    if len(data) > MAX_BYTES:
        raise PeopleError(f"{path} has more than {MAX_BYTES >> 20} MiB: is it the list of people?")
    try:
        numbered = list(_numbered(text))
    except csv.Error as error:
        raise PeopleError(f"{path}: not a CSV file ({error})") from error
    if not numbered:
        raise PeopleError(f"{path} is empty; its first line must name the columns")
    header = tuple(cell.strip() for cell in numbered[0][1])
    columns = [name.casefold() for name in header]
    if not set(columns).intersection(IDENTIFYING):
        raise PeopleError(
            f"{path}:1: no column tells people apart; known are {', '.join(IDENTIFYING)}, found {', '.join(header)[:200]}"
        )
    return People(path, header, tuple(
        Person(line, {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if name})
        for line, cells in numbered[1:]
    ))  # fmt: skip


def _numbered(text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the line each begins on."""
    first = text.partition("\n")[0]
    delimiter = max((",", ";", "\t"), key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield line, cells
        line = reader.line_num + 1


def _names(row: Person) -> set[str]:
    # A leading quote is how this program, and others, keep a spreadsheet from taking a name for a formula.
    found = {row.cells[name].casefold() for name in IDENTIFYING if row.cells.get(name)}
    return found | {name.removeprefix("'") for name in found}
