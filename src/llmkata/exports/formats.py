"""The formats of ``kata export``: a module each, imported when it is asked for.

Such a module has one function ``files(view, people)`` that yields (path, content) pairs. A format of a class yields one
file; one of learners a file in a folder for each.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .people import People
    from .results import Results


class ExportError(ValueError):
    """Results that a format cannot hold, or something it needs to be told; the message says what to do."""


@dataclass(frozen=True)
class Format:
    """A format by name. ``file``: what a class becomes; empty where each learner gets files of their own."""

    name: str
    module: str
    what: str
    file: str = ""

    def files(self, view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
        """The files, by path within the output folder. Raises :class:`ExportError`, :class:`llmkata.grading.csvfile.TableError`."""
        return importlib.import_module(f"llmkata.exports.{self.module}").files(view, people)


FORMATS = {
    f.name: f
    for f in (
        Format("csv", "table", "a line for each learner and exercise", "results.csv"),
        Format("json", "document", "the scorecards of a class in one file", "results.json"),
        Format("canvas", "canvas", "grades for Canvas's gradebook (--people: a gradebook exported there)", "canvas.csv"),
        Format("moodle", "moodle", "grades for Moodle (--people: its grading worksheet, or a list of users)", "moodle.csv"),
        Format(
            "moodle-feedback", "moodle_feedback", "scorecards for Moodle's 'upload feedback files' (--people: as above)",
            "moodle-feedback.zip",
        ),
        Format("feedback", "feedback", "a folder for each learner: scorecard as HTML, Markdown, JSON"),
        Format("gradescope", "gradescope", "results.json of Gradescope's autograder"),
        Format("github", "github", "the result for GitHub's autograding-grading-reporter, base64 and as JSON"),
        Format("classroom50", "classroom50", "result.json of Classroom 50 (--people: who handed in which commit)"),
        Format("exercism", "exercism", "results.json of an exercism test runner, version 3, for each exercise"),
        Format("prairielearn", "prairielearn", "results.json of PrairieLearn's external grader, for each exercise"),
        Format("junit", "junit", "JUnit XML"),
        Format("nbgrader", "nbgrader", "a gradebook.db for nbgrader", "gradebook.db"),
    )
}  # fmt: skip
