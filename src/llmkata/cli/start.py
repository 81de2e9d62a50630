"""``kata start``: the board and what to do next."""

from __future__ import annotations

import typer

from llmkata.cli.common import course_of


def start(context: typer.Context) -> None:
    """Show the board: every exercise, where you stand, and what to do next."""
    from rich.text import Text

    from llmkata.cli.board import board, next_step, summary
    from llmkata.cli.own import own_records
    from llmkata.cli.verify import reverified
    from llmkata.reports.terminal import console

    course = course_of(context)
    records = own_records(course)
    out = console()
    records, said = reverified(course, records, lambda text: out.print(text, style="dim"))
    lines = [Text(course.title, style="bold"), Text(), *board(course, records, course.modules)]
    lines += [Text(), summary(course, records), Text(), *next_step(course, records)]
    lines += [Text(), *map(Text, said)] if said else []
    for line in lines:
        out.print(line, soft_wrap=True)
