"""``kata audit``: the graders are graded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from llmkata.cli.common import FAILED, course_of, exercise_of, fail


def audit(
    context: typer.Context,
    exercises: Annotated[
        list[str] | None, typer.Argument(help="Default: all that are written.", metavar="[EXERCISE]...")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Solution, stub and alternatives once, each misconception against its check.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one array; faults go to standard error.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Write the figures of a full audit as Markdown; what FILE says of others stays.", metavar="FILE", dir_okay=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="At once; default: one per core.", metavar="N", min=1)] = None,
) -> None:
    """Grade the graders.

    Correct code must earn every point, the stub none; each known mistake must be rejected and named, each mutant of
    the solution noticed. Results are kept under .kata/audit: a second run does only what has changed.

    Exit status: 0 clean; 1 something is not as it must be; 2 wrong usage.
    """
    from llmkata.authoring.audit.report import to_json, to_page, to_text
    from llmkata.authoring.audit.run import audit_exercises
    from llmkata.cli.progress import Progress

    course = course_of(context)
    chosen = [exercise_of(course, name) for name in exercises] if exercises else list(course.available)
    for exercise in chosen:
        if not exercise.graders_dir.is_dir():
            fail(f"{exercise.id} has no graders here; exercises are audited in a clone of the course")
    if quick and page is not None:
        fail("a page holds the figures of a full audit: leave out --quick or --page")
    progress = Progress("runs")
    with progress:

        def begin(total: int) -> Progress:
            progress.total = total
            return progress

        audits = audit_exercises(course, chosen, quick=quick, workers=workers or os.cpu_count() or 1, progress=begin)
    if page is not None:
        before = page.read_text("utf-8") if page.exists() else ""
        page.write_text(to_page(audits, [e.id for e in course.available], before), "utf-8")
    if as_json:
        typer.echo(to_json(audits))
    shown = [to_text(a, quick) for a in audits if not as_json or not a.clean]
    if shown:
        typer.echo("\n\n".join(shown), err=as_json)
    if not all(a.clean for a in audits):
        raise typer.Exit(FAILED)
