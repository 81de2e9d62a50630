"""``kata regrade``: the submissions of a run, judged by today's checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, course_of, fail, prog, shown
from llmkata.cli.hold import hold
from llmkata.cli.options import Isolation, IsolationOption, SchedulerOption, scheduler_of, seed_of

if TYPE_CHECKING:
    from llmkata.grading.regrade import Found


def regrade(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The --out folder of a 'kata grade'.", metavar="DIR")],
    exercises: Annotated[list[str] | None, typer.Argument(help="Default: all.", metavar="[EXERCISE]...")] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only those that other checks, seeds or libraries would judge now.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be graded again, and stop.")] = False,
    workers: Annotated[int | None, typer.Option(help="Graded at once; default: one per core.", metavar="N", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the one each was graded with.", metavar="S", min=0)] = None,
    isolation: IsolationOption = Isolation.sandbox,
    scheduler: SchedulerOption = "",
) -> None:
    """Grade the submissions of a run again, after an edit to its checks, and say whose grades moved.

    The sources are those the run keeps; times of submission stay, and so does what was changed by hand.

    Exit status: 0 done; 1 some could not be judged; 2 wrong usage.
    """
    from llmkata.cli.grade import grade_new
    from llmkata.cli.moved import tell_moves
    from llmkata.cli.report import RECORDS, enrolled_course, publish, records_of
    from llmkata.gradebook.begun import begun
    from llmkata.gradebook.moves import grades_of, moves
    from llmkata.grading.regrade import find
    from llmkata.records import State

    course = course_of(context)
    given = {"workers": workers, "isolation": isolation, "scheduler": scheduler_of(scheduler, workers), "fresh": not changed}
    if not (folder / RECORDS).is_file():
        fail(f"{shown(folder)} holds no {RECORDS}", f"{prog()} grade submissions/ --out {shown(folder)}")
    only = {course.exercise(name).id for name in exercises or ()}
    with hold(folder, f"{prog()} regrade {shown(folder)}"):
        before = records_of(folder)
        # A frozen grade is of a record that stays what it was; what was graded since is what may be out of date.
        enrolled = enrolled_course(course, folder, frozen=False)
        found = find(enrolled, folder, before, seed=seed_of(course, seed), isolation=isolation.value, changed=changed, only=only)
        _announce(found, folder)
        if dry_run or not found.stale:
            return
        lost = 0
        for wanted in dict.fromkeys(s.seed for s in found.stale):
            chosen = [s.submission for s in found.stale if s.seed == wanted]
            records = grade_new(course, chosen, folder, seed=wanted, **given)
            lost += sum(r.state is State.infrastructure for r in records)
        publish(course, folder)
        after = records_of(folder)
        counted = enrolled.narrowed(begun(after))
        was, now = (grades_of(counted, records) for records in (before, after))
        typer.echo()
        tell_moves(counted, moves(was, now), was, now)
    if lost:
        raise typer.Exit(FAILED)


def _announce(found: Found, folder: Path) -> None:
    """How many of which exercise are graded again, and why."""
    from llmkata.records import State

    counts: dict[tuple[str, str], list[float]] = {}
    untouched = 0
    for s in found.stale:
        if s.record.state is State.not_started:
            untouched += 1
        else:
            counts.setdefault((s.record.exercise, s.why), []).append(s.record.cpu_seconds)
    for (exercise, why), spent in counts.items():
        many = f"{len(spent)} submission{'s' if len(spent) != 1 else ''}"
        typer.echo(f"{exercise}: {many}, {why}; took {sum(spent):.0f} s of CPU")
    if untouched:
        typer.echo(f"{untouched} file{'s' if untouched != 1 else ''} that nobody had touched; those that are the same are judged once")
    if found.unchanged:
        typer.echo(f"{found.unchanged} submissions are judged by today's checks already")
    if found.lost:
        names = ", ".join(sorted({f"{r.learner}: {r.exercise}" for r in found.lost})[:5])
        typer.echo(f"{len(found.lost)} submissions are not kept in {shown(folder)}, grade their folder again: {names}", err=True)
    if not found.stale:
        typer.echo("nothing to grade again")
