"""What the formats share: names of files and numbers as they are written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from llmkata.reports.text import csv_cell, slug


def number(value: float) -> float | int:
    """A score as a person would write it: whole where it is whole, at most six decimals."""
    return int(value) if value == int(value) else round(value, 6)


def to_json(document: Any) -> bytes:
    """A document as UTF-8 JSON that people can read."""
    return (json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def to_csv(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows as UTF-8 CSV (RFC 4180) in which no cell is taken for a formula."""
    file = io.StringIO()
    # A lone dash is how Moodle writes "never"; there is nothing after it to compute.
    csv.writer(file).writerows([cell if cell == "-" else csv_cell(cell) for cell in row] for row in rows)
    return file.getvalue().encode()


def folder_of(learner: str) -> str:
    """The folder of a learner's files: a safe name, different for different learners."""
    return slug(learner)
