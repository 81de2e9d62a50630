"""``kata demo``: the bundled class, graded from end to end."""

from __future__ import annotations

from pathlib import Path

import typer

from llmkata.cli.common import course_of, fail
from llmkata.cli.options import Isolation, IsolationOption


def demo(context: typer.Context, isolation: IsolationOption = Isolation.full) -> None:
    """Grade the bundled example class into demo/ and say where the pages are."""
    course = course_of(context)
    folder = course.root / "examples" / "submissions"
    if not folder.is_dir():
        fail(f"{folder} is not there; the example class comes with a clone of the project")

    from llmkata.cli.grade import grade_folder

    grade_folder(course, folder, Path("demo"), workers=None, seed=None, isolation=isolation)
