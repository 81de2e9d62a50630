"""``grades.csv``: one line per learner, for a spreadsheet or a script."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmkata.gradebook.standing import Entry, Standing, grade, total

from .text import csv_cell

if TYPE_CHECKING:
    from llmkata.course import Course


#: Columns of an exercise.
_FIELDS = ("state", "points", "max_points", "deduction_percent", "percent", "late", "by_hand", "by_hand_reason")


def to_csv(
    course: Course, entries: Mapping[str, Mapping[str, Entry]], people: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Learner, name and section (``people``; empty where no roster tells them), total in percent, then of every exercise
    that counts: state, points as graded, points to be had, what lateness takes off in percent of these, the percent that
    counts in the total, why it is late, points given by hand and why.

    An exercise the grader failed on has its state and empty cells; a learner with nothing judged has an empty total.
    Cells that a spreadsheet would take for a formula are defused. Lines end as RFC 4180 says.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    columns = [(exercise.id, field) for exercise in course.available for field in _FIELDS]
    writer.writerow(["learner", "name", "section", "total_percent", *(f"{name} {field}" for name, field in columns)])
    for learner, reached in entries.items():
        percent = total(course, reached).percent
        known_as = (people or {}).get(learner, ("", ""))
        row: list[object] = [learner, *known_as, "" if percent is None else round(percent, 2)]
        for exercise in course.available:
            known = reached.get(exercise.id)
            made = grade(course, exercise, known)
            if known is None:
                row += [Standing.not_started.value, 0, "", "", 0, "", "", ""]
            elif made.counted is None:
                row += [known.standing.value, *[""] * (len(_FIELDS) - 1)]
            else:
                given = course.policy.grading.by_hand.adjustments.get((learner, exercise.id), ())
                row += [
                    known.standing.value, round(known.points, 4), round(known.max_points, 4) or "",
                    round(100 * made.deduction, 4) or "", round(100 * made.counted, 2), made.why,
                    sum(a.points for a in given) or "", "; ".join(a.reason for a in given),
                ]  # fmt: skip
        writer.writerow([csv_cell(cell) for cell in row])
    return file.getvalue()
