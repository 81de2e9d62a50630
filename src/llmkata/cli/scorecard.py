"""``kata scorecard``: your own card, from the records of ``kata check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkata.cli.common import YOU, course_of, fail, prog, shown, state_dir


def scorecard(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder for the card; default .kata/scorecard.", metavar="DIR")] = None,
) -> None:
    """Write your scorecard: progress, points, budgets against their limits, diagnoses, history of attempts."""
    from llmkata.cli.own import own_past, own_records
    from llmkata.reports.site import write_card

    course = course_of(context)
    records = own_records(course)
    if not records:
        fail("nothing was checked yet", f"{prog()} check EXERCISE")
    path = write_card(out or state_dir(course) / "scorecard", YOU, records.values(), course, past=own_past(course))
    typer.echo(f"{shown(path)}\nOpen it in a browser; it needs no network. As text: {shown(path.with_suffix('.md'))}")
