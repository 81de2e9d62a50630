"""``grades.csv``: one line per learner, for a spreadsheet or a script."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmkata.gradebook.standing import Entry, Standing, total

from .text import csv_cell

if TYPE_CHECKING:
    from llmkata.course import Course


def to_csv(course: Course, entries: Mapping[str, Mapping[str, Entry]]) -> str:
    """Learner, total in percent, then state, points and points to be had of every exercise that counts.

    An exercise the grader failed on has its state and empty cells; a learner with nothing judged has an empty total.
    Cells that a spreadsheet would take for a formula are defused. Lines end as RFC 4180 says.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    columns = [(exercise.id, field) for exercise in course.available for field in ("state", "points", "max_points")]
    writer.writerow(["learner", "total_percent", *(f"{name} {field}" for name, field in columns)])
    for learner, reached in entries.items():
        percent = total(course, reached).percent
        row: list[object] = [learner, "" if percent is None else round(percent, 2)]
        for exercise in course.available:
            known = reached.get(exercise.id)
            if known is None:
                row += [Standing.not_started.value, 0, ""]
            elif known.standing is Standing.infrastructure:
                row += [known.standing.value, "", ""]
            else:
                row += [known.standing.value, round(known.points, 4), round(known.max_points, 4) or ""]
        writer.writerow([csv_cell(cell) for cell in row])
    return file.getvalue()
