"""``kata hint``: hints open one level at a time, those of the check that failed first."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import course_of, exercise_of, fail, prog, state_dir
from llmkata.cli.options import OptionalExercise

if TYPE_CHECKING:
    from llmkata.cli.hints import CheckHints
    from llmkata.course import Course, Exercise


def hint(
    context: typer.Context,
    exercise: OptionalExercise = None,
    level: Annotated[
        int | None, typer.Option(help="Open the hints up to this level at once.", metavar="N", min=1)
    ] = None,
    check: Annotated[str | None, typer.Option(help="The check to be helped with.", metavar="NAME")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, where the course puts a price on hints.")] = False,
) -> None:
    """Open the next hint, for the check that failed first.

    Without a failed check on record (of 'kata check'), hints come in the order of the brief. What you have opened is
    kept in .kata/hints.json; '--level 1' shows the first hint again. Where the course puts a price on hints, it is told
    before one is opened.
    """
    from llmkata.cli.hints import exercise_hints, offer, opened_levels, remember_level

    course = course_of(context)
    found = exercise_of(course, exercise)
    try:
        hints = exercise_hints(found)
    except ValueError as error:
        fail(f"the hints of {found.id} cannot be read: {error}")
    if not hints:
        fail(f"{found.id} has no hints; its brief may help", f"read {found.brief}")
    opened = opened_levels(state_dir(course)).get(found.id, {})
    chosen = _named(hints, check, found) if check else _fitting(hints, opened, course, found)
    if level is not None and level > len(chosen.hints):
        fail(f"{chosen.name} has {len(chosen.hints)} hints, so --level is 1 to {len(chosen.hints)}")
    upto = level or min(opened.get(chosen.name, 0) + 1, len(chosen.hints))
    price = offer(course.policy.hints, opened, chosen.name, upto)
    if price and not yes:
        _ask(found, chosen, price)
    remember_level(state_dir(course), found.id, chosen.name, upto)
    _show(found, chosen, upto, asked_by_name=check is not None)


def _ask(exercise: Exercise, check: CheckHints, price: str) -> None:
    """Go on only with a yes."""
    typer.echo(f"{exercise.number} {exercise.title}, task {check.task}: {check.name}\n{_wrapped(price)}")
    try:
        if not typer.confirm("Open?"):
            raise typer.Exit(1)
    except typer.Abort:
        typer.echo()
        fail("nobody said yes, so it stays closed", f"{prog()} hint {exercise.id} --check {check.name} --yes")
    typer.echo()


def _named(hints: list[CheckHints], name: str, exercise: Exercise) -> CheckHints:
    wanted = "test_" + name.rpartition("::")[2].removeprefix("test_")
    for check in hints:
        if check.name == wanted:
            return check
    from llmkata.course.faults import did_you_mean

    known = did_you_mean(wanted, [c.name for c in hints])
    fail(f"{exercise.id} has no check {name!r} with hints{known}", f"{prog()} hint {exercise.id}")


def _fitting(hints: list[CheckHints], opened: dict[str, int], course: Course, exercise: Exercise) -> CheckHints:
    from llmkata.cli.hints import next_hint
    from llmkata.cli.own import own_records

    record = own_records(course).get(exercise.id)
    failed = [c for c in record.checks if c.outcome == "failed"] if record else []
    return next_hint(hints, opened, [c.id.rpartition("::")[2] for c in sorted(failed, key=lambda c: c.task)])


def _show(exercise: Exercise, check: CheckHints, upto: int, *, asked_by_name: bool) -> None:
    # Plain text: rich would cost as much time as everything else this command does.
    typer.echo(f"{exercise.number} {exercise.title}, task {check.task}: {check.name}")
    typer.echo(_wrapped(check.title))
    for number, text in enumerate(check.hints[:upto], start=1):
        typer.echo(f"\nHint {number} of {len(check.hints)}\n{_wrapped(text)}")
    typer.echo()
    if upto < len(check.hints):
        command = f"{prog()} hint {exercise.id}" + (f" --check {check.name}" if asked_by_name else "")
        typer.echo(f"{len(check.hints) - upto} more for this check: {command}")
    else:
        alone = f"{prog()} check {exercise.id} --only {check.name}"
        typer.echo(f"That was the last hint for this check. Run it alone: {alone}")


def _wrapped(text: str) -> str:
    """``text`` indented and broken at the width of the terminal; its own line breaks are kept."""
    width = min(shutil.get_terminal_size().columns, 100)
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    return "\n".join(textwrap.fill(line, width, **indent) for line in text.splitlines())
