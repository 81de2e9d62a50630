"""``kata sync``: what is made from other files is brought in step: stubs, and feedback.json."""

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
    """Cut the stubs from the solutions; make each feedback.json from the mistakes on the visible checks.

    Exit status: 0 all is in step; 1 --check found drift; 2 a solution cannot be cut, or checks cannot be run.
    """
    from llmkata.authoring import feedback
    from llmkata.authoring.stub import solved_exercises, sync_all

    course = course_of(context)
    chosen = [course.exercise(name).id for name in exercises] if exercises else solved_exercises(course.root)
    if not chosen:
        fail(
            f"there are no solutions under {course.root}; stubs are cut in a clone of the course, not in a released one"
        )
    status = sync_all(course.root, chosen, check=check)
    # A solution need not be in course.yaml yet.
    known = [e for e in course.available if e.id in chosen]
    raise typer.Exit(max(status, feedback.sync_all(course, known, check=check)))
