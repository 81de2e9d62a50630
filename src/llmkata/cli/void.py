"""``kata void``: a check found wrong, taken out of the grades of a class."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.class_run import REPORT, ClassRun, ExerciseArgument, InOption, open_class
from llmkata.cli.common import fail, prog, shown
from llmkata.cli.moved import tell_moves

if TYPE_CHECKING:
    from llmkata.course import Exercise
    from llmkata.records import CheckRecord


def void(
    context: typer.Context,
    exercise: ExerciseArgument,
    check: Annotated[str, typer.Argument(help="Name of the check, as test_flops.", metavar="CHECK")],
    drop: Annotated[bool, typer.Option("--drop", help="It counts for nobody: the other checks make 100 %.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Everybody whose work was judged has its points.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it stands on the card and in the log.", metavar="TEXT")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Put it into force; without it what moves is shown.")] = False,
    folder: InOption = REPORT,
) -> None:
    """Void a check that was found wrong.

    Without --yes nothing is changed: it shows whose grades move, before and after. It survives regrading; 'kata undo'
    takes it back.
    """
    from llmkata.gradebook.changes import Action, Change, now, who
    from llmkata.gradebook.moves import moves

    words = [prog(), "void", exercise, check]
    if drop == full:
        fail("say what becomes of its points: --drop (they count for nobody) or --full (all have them)", shlex.join([*words, "--drop", "--in", shown(folder)]))
    if yes and not reason.strip(" ."):
        fail("--reason must say why: learners read it", shlex.join([*words, "--drop" if drop else "--full", "--reason", "...", "--yes", "--in", shown(folder)]))
    run = open_class(context, folder)
    chosen = run.exercise(exercise)
    found = _find(run, chosen, check)
    change = Change(
        0, now(), who(), Action.void, chosen.id, check=found.id, way="drop" if drop else "full", text=reason.strip()
    )
    if yes:
        run.change(change)
        return
    # As it will be when nothing is frozen: a change that waits is put into force later, and this is what it does then.
    planned = run.planned(change, frozen=False)
    effect = "counts for nobody" if drop else "gives its points to everybody whose work was judged"
    typer.echo(f"{chosen.number} {chosen.title}, task {found.task}: {found.title}\n{found.id}, {found.max_points:g} points, {effect}:")
    tell_moves(run.course, moves(run.live, planned), run.live, planned)
    words += ["--drop" if drop else "--full", "--reason", reason.strip() or "...", "--yes", "--in", shown(folder)]
    typer.echo(f"Nothing is changed yet.\nNext: {shlex.join(words)}")


def _find(run: ClassRun, exercise: Exercise, name: str) -> CheckRecord:
    """The check of that name or id, as the newest records of the exercise have it."""
    known = {c.id: c for r in run.records if r.exercise == exercise.id for c in r.checks}
    found = [c for c in known.values() if name in (c.id, c.id.rpartition("::")[2])]
    if len(found) == 1:
        return found[0]
    if found:
        fail(f"{name} means several checks of {exercise.number}: {', '.join(c.id for c in found)}")
    names = [c.rpartition("::")[2] for c in known]
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    fail(
        f"no record of {exercise.number} {exercise.title} has a check {name!r}"
        + (f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(names)}")
    )
