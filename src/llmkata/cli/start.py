"""``kata start``: the board and what to do next."""

from __future__ import annotations

import typer

from llmkata.cli.common import course_of


def start(context: typer.Context) -> None:
    """Show the board: every exercise, where you stand, and what to do next."""
    from rich.text import Text

    from llmkata.cli.board import board, next_step, summary
    from llmkata.cli.verify import own_verified
    from llmkata.reports.terminal import console

    course = course_of(context)
    out = console()
    known = own_verified(course, lambda text: out.print(text, style="dim"))
    lines = [Text(course.title, style="bold"), Text(), *board(known, course.modules)]
    lines += [Text(), summary(course, known), Text(), *next_step(course, known)]
    lines += [Text(), *map(Text, known.said)] if known.said else []
    for line in lines:
        out.print(line, soft_wrap=True)
