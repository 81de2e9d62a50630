"""``kata freeze`` and ``kata release-grades``: grades that stay as they are, and when learners see them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.class_run import REPORT, ClassRun, InOption, open_class
from llmkata.cli.common import fail, prog, shown
from llmkata.cli.hold import hold
from llmkata.cli.moved import tell_moves

if TYPE_CHECKING:
    from llmkata.course import Exercise

ExercisesArgument = Annotated[
    list[str] | None, typer.Argument(help="Default: all that somebody began.", metavar="[EXERCISE]...")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Put into force what has been waiting since they were frozen.")]
NoteOption = Annotated[str, typer.Option(help="What to say of it in the log.", metavar="TEXT")]


def freeze(
    context: typer.Context, exercises: ExercisesArgument = None, yes: YesOption = False, reason: NoteOption = "",
    folder: InOption = REPORT,
) -> None:
    """Keep grades as they are now.

    From here on nothing moves them: what is graded again, handed in later or changed by hand waits, and 'kata report'
    and 'kata log' say so. Frozen again (with --yes) it is put into force; 'kata undo' ends it.
    """
    with hold(folder, f"{prog()} freeze --in {shown(folder)}"):
        run = open_class(context, folder)
        chosen = _chosen(run, exercises)
        released = [e.number for e in chosen if e.id in _released(run)]
        if released:
            fail(
                f"{', '.join(released)} {'is' if len(released) == 1 else 'are'} released, and so frozen",
                f"{prog()} release-grades {' '.join(released)} --in {shown(folder)}",
            )
        if _put(run, chosen, "freeze", yes, reason):
            typer.echo(f"frozen: {', '.join(e.number for e in chosen)}")
            typer.echo(f"Next: {prog()} report {shown(folder)}     # writes the pages again")


def release_grades(
    context: typer.Context, exercises: ExercisesArgument = None, yes: YesOption = False, reason: NoteOption = "",
    folder: InOption = REPORT,
) -> None:
    """Release grades to learners, where course.yaml says policy.grading.release: by_hand.

    Until then learners' cards and exports leave these exercises out, and staff have cards of their own. What is
    released is frozen, too. Released again (with --yes), what has been waiting is put into force.
    """
    with hold(folder, f"{prog()} release-grades --in {shown(folder)}"):
        run = open_class(context, folder)
        if run.course.policy.grading.release != "by_hand":
            fail(
                "this course shows grades as soon as pages are written: policy.grading.release in course.yaml is not by_hand",
                f"{prog()} freeze --in {shown(folder)}     # keeps them as they are",
            )
        chosen = _chosen(run, exercises)
        if _put(run, chosen, "release", yes, reason):
            typer.echo(f"released: {', '.join(e.number for e in chosen)}")
            typer.echo(f"Next: {prog()} report {shown(folder)}     # writes learners' cards")


def _chosen(run: ClassRun, names: list[str] | None) -> list[Exercise]:
    return [run.exercise(name) for name in names] if names else list(run.course.available)


def _released(run: ClassRun) -> set[str]:
    from llmkata.gradebook.in_force import by_hand

    return set(by_hand(run.changes).released)


def _put(run: ClassRun, chosen: list[Exercise], action: str, yes: bool, reason: str) -> bool:
    """Write it into the log, unless grades that are frozen would move and nobody has said yes to that."""
    from llmkata.gradebook.changes import Action, Change, now, who
    from llmkata.gradebook.moves import moves, pins

    at, by = now(), who()
    made = [Change(0, at, by, Action(action), e.id, text=reason.strip(), pins=pins(run.live, e.id)) for e in chosen]
    planned = run.planned(*made)
    found = moves(run.now, planned)
    if found:
        typer.echo("put into force with this, of what has been waiting:")
        tell_moves(run.course, found, run.now, planned)
    if found and not yes:
        name = "freeze" if action == "freeze" else "release-grades"
        words = [prog(), name, *(e.number for e in chosen), "--yes", "--in", shown(run.folder)]
        typer.echo(f"Nothing is changed yet.\nNext: {shlex.join(words)}")
        return False
    run.add(*made)
    return True
