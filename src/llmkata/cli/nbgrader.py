"""``kata export nbgrader-course``: the exercises as source notebooks for nbgrader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmkata.cli.common import fail, prog, shown
from llmkata.exports.formats import ExportError

if TYPE_CHECKING:
    from llmkata.cli.options import Isolation
    from llmkata.course import Course, Exercise

_CONFIG = '''\
# Written by kata export nbgrader-course. Needs llmkata in the environment of nbgrader and of its kernel.
from llmkata.notebook.nbgrader import configure

c = get_config()  # noqa: F821
c.CourseDirectory.root = {root!r}
# The course with its graders; learners' machines have neither this file nor that folder.
configure(c, course={course!r}, isolation={isolation!r})
'''


def write_course(course: Course, folder: Path | None, exercises: list[Exercise], isolation: Isolation) -> None:
    """Write ``source/SLUG/SLUG.ipynb`` for each exercise and ``nbgrader_config.py``; a config that is there stays."""
    from llmkata.notebook.nbgrader import source_notebook

    if folder is None:
        fail("where to? name a folder for the course", f"{prog()} export nbgrader-course nbgrader/")
    for exercise in exercises:
        target = folder / "source" / exercise.slug / f"{exercise.slug}.ipynb"
        try:
            text = source_notebook(exercise, _solution(exercise), _worth(exercise))
        except (ExportError, SyntaxError, ValueError) as error:
            fail(f"{exercise.id}: {error}", f"{prog()} lint")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8", newline="\n")
    config = folder / "nbgrader_config.py"
    if config.exists():
        typer.echo(f"{shown(config)} is there already and was kept")
    else:
        values = {"root": str(folder.resolve()), "course": str(course.root.resolve()), "isolation": isolation.value}
        config.write_text(_CONFIG.format(**values), "utf-8", newline="\n")
    name = exercises[0].slug if exercises else "NAME"
    typer.echo(f"{shown(folder)}: {len(exercises)} exercises")
    typer.echo(f"Next: cd {shown(folder)} && nbgrader generate_assignment {name}")


def _solution(exercise: Exercise) -> str:
    if not exercise.solution.is_file():
        raise ExportError(f"no model answer at {shown(exercise.solution)}: source notebooks are made from it")
    return exercise.solution.read_text("utf-8")


def _worth(exercise: Exercise) -> dict[int, float]:
    from llmkata.grading.worth import worth_of_tasks

    if not exercise.graders_dir.is_dir():
        raise ExportError(f"no graders at {shown(exercise.graders_dir)}: they say what a task is worth")
    try:
        return worth_of_tasks(exercise)
    except RuntimeError as error:
        raise ExportError(f"its checks cannot be collected: {error}") from None
