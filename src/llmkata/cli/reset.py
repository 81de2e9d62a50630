"""``kata reset`` and ``kata give-up``: back to the stub, or on to the solution; nothing is lost, both are recorded."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import course_of, exercise_of, fail, prog, shown

if TYPE_CHECKING:
    from llmkata.course import Exercise

_ExerciseArgument = Annotated[str, typer.Argument(help="For example module2/self_attention, or 2.1.", metavar="EXERCISE")]
_YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def reset(context: typer.Context, exercise: _ExerciseArgument, yes: _YesOption = False) -> None:
    """Put the stub back; your file is kept beside it as a dated copy."""
    found = exercise_of(course_of(context), exercise)
    if not yes and not typer.confirm(f"Put the stub of {found.id} back? Your file is kept as a dated copy."):
        raise typer.Exit(1)
    typer.echo(f"Your file is now {shown(reset_exercise(found))}.")


def reset_exercise(exercise: Exercise) -> Path:
    """Move the learner's file to a dated copy and write the stub -> the copy."""
    from llmkata.authoring.stub import pristine_stub

    text = pristine_stub(exercise)
    if text is None:
        fail(f"the stub of {exercise.id} is not kept in this repository", f"git checkout -- {shown(exercise.stub)}")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    copy, number = exercise.stub.with_name(f"{exercise.slug}.{stamp}.bak.py"), 1
    while copy.exists():
        number += 1
        copy = exercise.stub.with_name(f"{exercise.slug}.{stamp}-{number}.bak.py")
    if exercise.stub.exists():
        shutil.move(exercise.stub, copy)
    exercise.stub.write_text(text, "utf-8")
    return copy


def give_up(context: typer.Context, exercise: _ExerciseArgument, yes: _YesOption = False) -> None:
    """Open the solution without having passed (self-study edition). It is recorded."""
    course = course_of(context)
    found = exercise_of(course, exercise)
    if not found.solution.exists():
        fail("this edition comes without solutions", f"{prog()} hint {found.id}")
    if not yes and not typer.confirm(f"Open the solution of {found.id}? It is recorded on your card."):
        raise typer.Exit(1)
    from llmkata.cli.own import remember_given_up

    remember_given_up(course, found.id)
    typer.echo(f"{shown(found.solution)}\nRecorded on your card. What you write from here on still counts.")
