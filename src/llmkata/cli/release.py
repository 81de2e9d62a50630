"""``kata release``: the learner's repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkata.cli.common import FAILED, course_of, fail, prog, shown


def release(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="New, empty, or of an earlier release.", metavar="DIR")],
) -> None:
    """Make the learner's repository: exercises, visible checks, launcher, the framework as a wheel.

    Before anything is written a leak check looks for hidden files, answers, expected values and names in it. A folder of
    an earlier release is updated; files that were edited there stay as they are.

    Exit status: 0 released; 1 something hidden would leak, or stubs are out of step; 2 wrong usage.
    """
    from llmkata.authoring.release.contents import NoSource, OutOfStep, contents
    from llmkata.authoring.release.deliver import Occupied, deliver, hidden_in_history
    from llmkata.authoring.release.leak import find_leaks

    course = course_of(context)
    if not course.available or not course.available[0].solution.is_file():
        fail(f"there are no solutions under {course.root}: a release is made from a clone of the course")
    try:
        files = contents(course)
    except OutOfStep as error:
        typer.echo(f"kata: {error}\nNext: {prog()} sync", err=True)
        raise typer.Exit(FAILED) from None
    except NoSource as error:
        fail(str(error))
    leaks = [str(leak) for leak in find_leaks(files, course)]
    leaks += [f"{shown(folder)}: its history holds {path}" for path in hidden_in_history(folder)]
    if leaks:
        typer.echo("\n".join([f"kata: nothing was released: {len(leaks)} leaks", *(f"  {text}" for text in leaks)]), err=True)
        raise typer.Exit(FAILED)
    try:
        done = deliver(files, folder, course.title)
    except Occupied as error:
        fail(str(error), f"{prog()} release NEW_DIR")
    typer.echo(f"{shown(folder)}: {len(files)} files, {len(done.written)} written, {len(done.removed)} removed; no leak found")
    if done.kept:
        typer.echo("edited there and left as they are:\n" + "\n".join(f"  {name}" for name in done.kept))
    typer.echo("Next: commit it and push it to where learners get it")
