"""``kata next`` and ``kata open``: what to work on, and where it is."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from llmkata.cli.common import course_of, exercise_of, fail, prog, shown
from llmkata.cli.options import OptionalExercise

#: Columns of a brief on a terminal.
_WIDEST = 100


def next_step(context: typer.Context) -> None:
    """Say which exercise comes next, and the command to start it."""
    from llmkata.cli import board
    from llmkata.cli.verify import own_verified
    from llmkata.reports.terminal import console

    course = course_of(context)
    out = console()
    known = own_verified(course, lambda text: typer.echo(text, err=True))
    for line in board.next_step(course, known):
        out.print(line, soft_wrap=True)


def open_exercise(
    context: typer.Context,
    exercise: OptionalExercise = None,
    edit: Annotated[bool, typer.Option("--edit", "-e", help="Open the file in $VISUAL or $EDITOR.")] = False,
) -> None:
    """Print the brief of an exercise and where its files are; with --edit open your file instead."""
    found = exercise_of(course_of(context), exercise)
    if not edit:
        _print_brief(found.brief)
    typer.echo(f"brief  {shown(found.brief)}\nfile   {shown(found.stub)}\nchecks {shown(found.visible_checks)}")
    if edit:
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if not editor:
            fail("neither VISUAL nor EDITOR is set", f"EDITOR=nano {prog()} open {found.id} --edit")
        try:
            status = subprocess.run([*shlex.split(editor), str(found.stub)], check=False).returncode
        except OSError as error:
            fail(f"{editor} cannot be started: {error.strerror}", f"EDITOR=nano {prog()} open {found.id} --edit")
        raise typer.Exit(status)


def _print_brief(path: Path) -> None:
    """Laid out on a terminal, as it is elsewhere."""
    from llmkata.reports.terminal import console

    text, out = path.read_text("utf-8"), console()
    if not out.is_terminal:
        typer.echo(text)
        return
    from rich.markdown import Markdown

    out.print(Markdown(text), width=min(out.width, _WIDEST), end="\n\n")
