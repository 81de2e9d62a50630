"""``kata log`` and ``kata undo``: who changed what when, and taking it back."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.class_run import REPORT, InOption, learner_of, open_class
from llmkata.cli.common import course_of, fail, prog, shown
from llmkata.cli.moved import what, where
from llmkata.cli.report import RECORDS, changes_of, records_of, roster_of

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.gradebook.changes import Change


def log(
    context: typer.Context,
    folder: InOption = REPORT,
    learner: Annotated[str | None, typer.Option(help="Only what is about this learner: id, or name or address of the roster.", metavar="NAME")] = None,
    exercise: Annotated[str | None, typer.Option(help="Only what is about this exercise.", metavar="NAME")] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(help="Only adjust, rubric, comment, void, freeze, release, undo, regrade or forget; may be repeated.", metavar="NAME"),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Only what this person did.", metavar="NAME")] = None,
    since: Annotated[str | None, typer.Option(help="Only from this day or time on.", metavar="DATE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines of the log as they are, JSON.")] = False,
) -> None:
    """Who changed what when: changes by hand, and grades that moved when work was graded again.

    What is about a whole exercise (void, freeze, release) is about each of its learners.
    """
    from llmkata.gradebook.changes import Action

    course = course_of(context)
    if not (folder / RECORDS).is_file():
        fail(f"{shown(folder)} holds no {RECORDS}", f"{prog()} grade submissions/ --out {shown(folder)}")
    unknown = set(action or ()) - set(Action)
    if unknown:
        fail(f"no action is called {', '.join(sorted(unknown))}: one of {', '.join(Action)}", f"{prog()} log")
    after = _moment(since) if since else None
    wanted = course.exercise(exercise).id if exercise else None
    changes = changes_of(folder)
    if learner is not None:
        known = {c.learner for c in changes if c.learner} | {r.learner for r in records_of(folder)}
        learner = learner_of(learner, known, roster_of(course, folder), folder)
    chosen = [
        c for c in changes
        if (learner is None or c.learner in ("", learner)) and (wanted is None or c.exercise == wanted)
        and (not action or c.action in action) and (by is None or c.by.casefold() == by.casefold())
        and (after is None or datetime.fromisoformat(c.at) >= after)
    ]  # fmt: skip
    if as_json:
        import msgspec

        typer.echo("".join(msgspec.json.encode(c).decode() + "\n" for c in chosen), nl=False)
        return
    _print(course, changes, chosen)


def _print(course: Course, changes: list[Change], chosen: list[Change]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llmkata.gradebook.changes import taken_back
    from llmkata.gradebook.in_force import by_hand
    from llmkata.reports.terminal import console
    from llmkata.reports.text import line, moment

    if not chosen:
        typer.echo("nothing was changed" if not changes else f"none of the {len(changes)} changes")
        return
    undone = taken_back(changes)
    waiting = {number for numbers in by_hand(changes).waiting.values() for number in numbers}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("#", "when", "who", "what"):
        table.add_column(name, justify="right" if name == "#" else "left", overflow="fold", no_wrap=name in ("#", "when"))
    for c in chosen:
        back = f" [taken back by #{undone[c.number]}]" if c.number in undone else ""
        held = " [waits: frozen]" if c.number in waiting else ""
        said = f"{c.action.value} {where(course, c)}{what(c)}{back}{held}"
        # To the minute, by this machine's clock: "2026-10-05 23:59".
        when = moment(datetime.fromisoformat(c.at).astimezone().replace(tzinfo=None).isoformat())
        table.add_row(str(c.number), when, Text(line(c.by, 20)), Text(said, style="dim" if back else ""))
    console().print(table)


def undo(
    context: typer.Context,
    numbers: Annotated[list[int], typer.Argument(help="Numbers of changes, as 'kata log' shows them.", metavar="NUMBER...")],
    reason: Annotated[str, typer.Option(help="Why; for the log.", metavar="TEXT")] = "",
    folder: InOption = REPORT,
) -> None:
    """Take changes by hand back. The log keeps both."""
    from llmkata.gradebook.changes import Action, Change, now, taken_back, who

    run = open_class(context, folder)
    listing = f"{prog()} log --in {shown(folder)}"
    known = {c.number: c for c in run.changes}
    undone = taken_back(run.changes)
    made = []
    for number in dict.fromkeys(numbers):
        if number not in known:
            fail(f"there is no change #{number}", listing)
        if number in undone:
            fail(f"#{number} was taken back already, by #{undone[number]}", listing)
        about = known[number]
        if about.action in (Action.undo, Action.regrade, Action.forget):
            fail(f"#{number} is no change by hand that could be taken back ({about.action.value})", listing)
        made.append(Change(
            0, now(), who(), Action.undo, about.exercise, learner=about.learner, text=reason.strip(), undoes=number
        ))  # fmt: skip
    run.change(*made)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        fail(f"--since {text}: no time; write it as 2026-10-05 or '2026-10-05 14:00'", f"{prog()} log")
