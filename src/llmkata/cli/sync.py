"""``kata sync``: stubs cut from solutions."""

from __future__ import annotations

from typing import Annotated

import typer

from llmkata.cli.common import course_of, fail


def sync(
    context: typer.Context,
    exercises: Annotated[
        list[str] | None, typer.Argument(help="Default: all that have a solution.", metavar="[EXERCISE]...")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; show drift as a diff and exit with 1.")
    ] = False,
) -> None:
    """Cut the stubs from the solutions.

    Exit status: 0 stubs and solutions are in step; 1 --check found drift; 2 a solution cannot be cut.
    """
    from llmkata.authoring.stub import solved_exercises, sync_all

    course = course_of(context)
    chosen = [course.exercise(name).id for name in exercises] if exercises else solved_exercises(course.root)
    if not chosen:
        fail(
            f"there are no solutions under {course.root}; stubs are cut in a clone of the course, not in a released one"
        )
    raise typer.Exit(sync_all(course.root, chosen, check=check))
