"""What changes by hand say on the terminal: the change, the grades and totals it moves, and what waits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from llmkata.cli.common import prog, shown

if TYPE_CHECKING:
    from llmkata.cli.class_run import ClassRun
    from llmkata.course import Course
    from llmkata.gradebook.changes import Change
    from llmkata.gradebook.moves import Grades, Move

#: Rows of a table of moves.
MOST_ROWS = 40


def tell_changes(run: ClassRun, made: Iterable[Change], before: Grades, live: Grades) -> None:
    """Say what was written into the log, what it moves, and what waits because it is frozen.

    ``before``: the grades until now; ``live``: as they were if nothing were frozen.
    """
    from llmkata.gradebook.changes import Action
    from llmkata.gradebook.in_force import by_hand
    from llmkata.gradebook.moves import moves

    made = list(made)
    for change in made:
        typer.echo(described(run.course, change))
    in_force = by_hand(run.changes)
    held = sorted({c.exercise for c in made if c.number in in_force.waiting.get(c.exercise, ())})
    for name in held:
        number = run.course.exercise(name).number
        how = "release-grades" if name in in_force.released else "freeze"
        typer.echo(f"{number} is frozen: this waits until '{prog()} {how} {number} --in {shown(run.folder)}'; then:")
    if any(c.action is not Action.comment for c in made):
        was, is_ = (live, run.live) if held else (before, run.now)
        tell_moves(run.course, moves(was, is_), was, is_)
    typer.echo(f"Next: {prog()} report {shown(run.folder)}     # writes the pages again")


def tell_moves(course: Course, found: list[Move], before: Grades, after: Grades) -> None:
    """A table of the grades that move, with the totals, and what that is for the class."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llmkata.reports.terminal import console
    from llmkata.reports.text import line, percent

    if not found:
        typer.echo("no grade moves")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name, justify in (("learner", "left"), ("exercise", "left"), ("before", "right"), ("after", "right")):
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
    table.add_column("total", justify="right", no_wrap=True)
    for move in found[:MOST_ROWS]:
        was, now = (grades.totals[move.learner].percent for grades in (before, after))
        table.add_row(
            Text(line(move.learner, 32)), course.exercise(move.exercise).number, *_apart(move.before, move.after),
            percent(now) if was == now else " → ".join(_apart(was, now)),
        )
    console().print(table)
    learners = {move.learner for move in found}
    more = f"; {len(found) - MOST_ROWS} more not listed" if len(found) > MOST_ROWS else ""
    typer.echo(
        f"{len(learners)} of {len(after.totals)} learner{'s' if len(after.totals) != 1 else ''} move{'s' if len(learners) == 1 else ''}, "
        f"mean total {' → '.join(_apart(_mean(before), _mean(after)))}{more}"
    )


def described(course: Course, change: Change) -> str:
    """``#7 adjust ann, 2.1: +3 points (typo in the brief)``"""
    return f"#{change.number} {change.action.value} {where(course, change)}{what(change)}".rstrip(" :")


def where(course: Course, change: Change) -> str:
    """Whose, and which exercise."""
    from llmkata.reports.text import line

    number = next((e.number for e in course.exercises if e.id == change.exercise), change.exercise)
    parts = ", ".join(part for part in (line(change.learner, 40), line(number)) if part)
    return f"{parts}: " if parts else ""


def what(change: Change) -> str:
    """What a change says, in one line."""
    from llmkata.gradebook.changes import Action
    from llmkata.reports.by_hand import signed
    from llmkata.reports.text import line, percent, points

    said = line(change.text)
    reason = f" ({said})" if said else ""
    match change.action:
        case Action.adjust:
            return f"{signed(change.points)} point{'s' if abs(change.points) != 1 else ''}{reason}"
        case Action.rubric:
            return f"{change.criterion} {points(change.points)} of {points(change.of)}{reason}"
        case Action.comment:
            return f"{'for staff: ' if change.staff else ''}{said}"
        case Action.void:
            effect = "gives its points to all" if change.way == "full" else "counts for nobody"
            return f"{line(change.check).rpartition('::')[2]} {effect}{reason}"
        case Action.undo:
            return f"#{change.undoes} taken back{reason}"
        case Action.regrade:
            return f"{percent(change.before)} → {percent(change.after)}{reason}"
        case Action.forget:
            return f"a learner was removed{reason}"
    many = len(change.pins)
    return f"{many} grade{'s' if many != 1 else ''}{reason}"


def _apart(before: float | None, after: float | None) -> tuple[str, str]:
    """Two percentages that differ, with as many digits as show it."""
    from llmkata.reports.text import percent

    made = percent(before), percent(after)
    if made[0] == made[1] and before is not None and after is not None:
        return f"{before:.2f} %", f"{after:.2f} %"
    return made


def _mean(grades: Grades) -> float | None:
    known = [t.percent for t in grades.totals.values() if t.percent is not None]
    return sum(known) / len(known) if known else None
