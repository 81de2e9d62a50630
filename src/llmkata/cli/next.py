"""``kata next`` and ``kata open``: what to work on, and where it is."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Annotated

import typer

from llmkata.cli.common import course_of, exercise_of, fail, prog, shown
from llmkata.cli.options import OptionalExercise


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
    brief: Annotated[bool, typer.Option("--brief", "-b", help="Print the brief.")] = False,
) -> None:
    """Say where an exercise is; print its brief or open your file when asked."""
    found = exercise_of(course_of(context), exercise)
    if brief:
        typer.echo(found.brief.read_text("utf-8"))
    else:
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
