"""``kata lint``: how checks and briefs must be written, without running anything."""

from __future__ import annotations

from typing import Annotated

import typer

from llmkata.cli.common import FAILED, course_of, exercise_of


def lint(
    context: typer.Context,
    exercises: Annotated[
        list[str] | None, typer.Argument(help="Default: all that are written.", metavar="[EXERCISE]...")
    ] = None,
) -> None:
    """Look over checks and briefs: hints, docstrings, verdicts, probes, names, stray files, headings.

    Exit status: 0 nothing to say; 1 something to put right; 2 wrong usage.
    """
    from llmkata.authoring.audit.lint import lint as faults_of

    course = course_of(context)
    chosen = [exercise_of(course, name) for name in exercises] if exercises else list(course.available)
    faults = [fault for exercise in chosen for fault in faults_of(exercise)]
    for fault in sorted(faults):
        typer.echo(f"{fault.where}: {fault.what}")
    if faults:
        raise typer.Exit(FAILED)
