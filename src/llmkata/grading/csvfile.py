"""CSV files that staff hand in (rosters, times, marks, lists of repositories and of people): one reader, one set of rules.

UTF-8, with or without a byte order mark; comma, semicolon or tab, whichever the first line has most of. The first line
that is not empty names the columns, of which case and ``_`` for a space do not matter, and no two are the same. Empty
lines are nobody. A row may be shorter than the header, and longer by empty cells.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 32 << 20


class TableError(ValueError):
    """A table that cannot be used; the message names file, line and column, one fault a line."""


@dataclass(frozen=True)
class Row:
    """One row: its cells, without white space around them, by the name of their column as :func:`column` makes it."""

    #: Line of the file it begins on, from 1.
    line: int
    cells: Mapping[str, str]

    def get(self, *columns: str) -> str:
        """The first of these columns that has a text; "" where none has."""
        return next((self.cells[name] for name in columns if self.cells.get(name)), "")


@dataclass(frozen=True)
class Table:
    """A CSV file as it was read."""

    path: Path
    #: As it is spelt in the file.
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The header as :func:`column` makes it."""
        return tuple(map(column, self.header))

    def has(self, *names: str) -> bool:
        """Whether it has all these columns."""
        return set(names) <= set(self.columns)

    def fault(self, line: int, said: object) -> str:
        """One line of a :class:`TableError`."""
        return f"{self.path}:{line}: {said}"

    def lacks(self, *names: str) -> str:
        """What to say where one of these columns would have done."""
        return self.fault(1, f"no column {' or '.join(names)}; the columns are {', '.join(filter(None, self.columns))[:200]}")


def column(name: str) -> str:
    """A column's name as it is looked for: in lower case, with spaces for ``_``."""
    return " ".join(name.casefold().replace("_", " ").split())


def read_table(path: Path, example: str, needs: Iterable[str] = ()) -> Table:
    """The table in a file. ``example``: what its first line may be; ``needs``: columns it must have.

    Raises:
        TableError: the file cannot be read, is empty, is not CSV in UTF-8, lacks a column or has one twice, or has a row
            with more cells than columns.
    """
    numbered = list(_numbered(path))
    if not numbered:
        raise TableError(f"{path}: is empty; its first line names the columns, as {example}")
    (at, first), *rest = numbered
    header = tuple(cell.strip() for cell in first)
    columns = [column(name) for name in header]
    table = Table(path, header, tuple(
        Row(line, {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if name}) for line, cells in rest
    ))  # fmt: skip
    faults = [table.lacks(name) for name in needs if name not in columns]
    faults += [table.fault(at, f"column {name!r} stands there twice") for name in _twice(columns)]
    faults += [
        table.fault(line, f"{len(cells)} cells for {len(columns)} columns")
        for line, cells in rest if any(cell.strip() for cell in cells[len(columns) :])
    ]  # fmt: skip
    if faults:
        raise TableError("\n".join(faults))
    return table


def _twice(columns: list[str]) -> list[str]:
    return sorted({name for name in columns if name and columns.count(name) > 1})


def _numbered(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, with the line each begins on."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TableError(f"{path}: has more than {MAX_BYTES >> 20} MiB: is it the right file?")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise TableError(f"{path}: is not UTF-8; save it as CSV in UTF-8") from None
    head = text.lstrip().partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{path}:{line}: is not CSV: {error}") from None
