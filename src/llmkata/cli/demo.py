"""``kata demo``: the bundled class, graded from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import course_of, fail, prog
from llmkata.cli.hold import hold
from llmkata.cli.options import Isolation

if TYPE_CHECKING:
    from llmkata.course import Course


def demo(
    context: typer.Context,
    isolation: Annotated[
        Isolation | None, typer.Option(help="sandbox or process; default: the sandbox, where this machine has one.")
    ] = None,
) -> None:
    """Grade the bundled example class into demo/ and say where the pages are.

    Where this machine has no sandbox, the bundled submissions run in processes of their own, and it says so.
    """
    course = course_of(context)
    folder = course.root / "examples" / "submissions"
    if not folder.is_dir():
        fail(f"{folder} is not there; the example class comes with a clone of the project")

    from llmkata.cli.grade import grade_folder

    out = Path("demo")
    with hold(out, f"{prog()} demo"):
        grade_folder(course, folder, out, workers=None, seed=None, isolation=isolation or _best(course),
                     fresh=True)


def _best(course: Course) -> Isolation:
    """The sandbox; where it does not stand, a process: what is bundled does no harm."""
    from llmkata.forks import CAN_FORK
    from llmkata.grading.isolation import TooLittleIsolation, require

    lacking = "this system has none"
    if CAN_FORK:
        try:
            require(course, Isolation.sandbox.value)
            return Isolation.sandbox
        except TooLittleIsolation as error:
            lacking = str(error)
    typer.echo(f"Without a sandbox ({lacking}): each bundled submission runs in a process of its own, which is enough for "
               "them and not for submissions of strangers.")
    return Isolation.process
