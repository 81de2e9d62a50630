"""CSV files that staff hand in (rosters, times): rows with their lines, and one error that says where."""

from __future__ import annotations

import csv
import io
from pathlib import Path

MAX_BYTES = 32 << 20


class TableError(ValueError):
    """A table that cannot be used; the message names file, line and column, one fault a line."""


def read_rows(path: Path, example: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(columns in lower case, with spaces for ``_``; (line, cells) of each row that is not empty) of a CSV file in UTF-8,
    with comma, semicolon or tab. ``example``: what its first line may be.

    Raises:
        TableError: the file cannot be read, is empty, is not CSV in UTF-8, or has a row with more cells than columns.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TableError(f"{path}: has more than {MAX_BYTES >> 20} MiB: is it the right file?")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise TableError(f"{path}: is not UTF-8; save it as CSV in UTF-8") from None
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{path}:{line}: is not CSV: {error}") from None
    if not rows:
        raise TableError(f"{path}: is empty; its first line names the columns, as {example}")
    columns = [cell.strip().casefold().replace("_", " ") for cell in rows[0][1]]
    wide = [(at, len(cells)) for at, cells in rows if len(cells) > len(columns)]
    if wide:
        raise TableError("\n".join(f"{path}:{at}: {count} cells for {len(columns)} columns" for at, count in wide))
    return columns, rows[1:]
