"""``kata grade``: a class of submissions into records, scorecards and grades."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, again, course_of, fail, prog, shown
from llmkata.cli.hold import hold
from llmkata.cli.options import (
    GroupsOption,
    Isolation,
    IsolationOption,
    PseudonymsOption,
    RosterOption,
    SchedulerOption,
    scheduler_of,
    seed_of,
)
from llmkata.forks import CAN_FORK

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.grading.intake import Intake
    from llmkata.grading.submission import Submission
    from llmkata.records import ExerciseRecord


def grade(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the class, or a bulk download as it came.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="Where records and pages go.", metavar="DIR")] = Path("report"),
    workers: Annotated[
        int | None, typer.Option(help="Graded at once; default: one per core.", metavar="N", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of hidden inputs; keep it secret.", metavar="S", min=0)] = None,
    isolation: IsolationOption = Isolation.sandbox,
    similarity: Annotated[bool, typer.Option("--similarity", help="Also look for submissions that are alike.")] = False,
    groups: GroupsOption = None,
    roster: RosterOption = None,
    at: Annotated[
        str, typer.Option(help="Tag, branch or hash to grade in repositories; default: before the deadline.", metavar="REF")
    ] = "",
    times: Annotated[
        Path | None,
        typer.Option(help="CSV of times: id, submitted at; or the grading worksheet of Moodle.", metavar="CSV"),
    ] = None,
    pseudonyms: PseudonymsOption = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Grade what is graded already, too.")] = False,
    shard: Annotated[
        str, typer.Option(help="Grade only part I of N into records, for 'kata merge': on N machines at once.", metavar="I/N")
    ] = "",
    scheduler: SchedulerOption = "",
) -> None:
    """Grade the submissions of a class.

    A folder or archive per learner, which holds module2/self_attention.py (or .ipynb) or the exercise tree; a bulk
    download from Canvas or Moodle; nbgrader's submitted/; git working copies and bare clones. With --roster learners go
    by its ids, and those with nothing are told too. Without --seed the seed is taken from the environment variable that
    course.yaml names, else it is the public one.

    What --out holds of the same submission, graders and seed is not graded again: a run that was cut off goes on.

    Exit status: 0 every submission was graded; 1 some could not be judged (see the report); 2 wrong usage.
    """
    course = course_of(context)
    if groups is not None and not similarity:
        fail("--groups says whose submissions are not compared", f"{prog()} grade {shown(folder)} --similarity")
    given = {"workers": workers, "seed": seed_of(course, seed), "isolation": isolation}
    given |= {"similarity": similarity, "groups": groups, "roster": roster, "at": at, "times": times, "fresh": fresh}
    given |= {"shard": _shard_of(shard), "pseudonyms": pseudonyms, "scheduler": scheduler_of(scheduler, workers)}
    command = f"{prog()} grade {shown(folder)} --out"
    with hold(out, f"{command} {shown(out)}", f"{command} {shown(out.parent / f'{out.name}-2')}"):
        lost = grade_folder(course, folder, out, **given)
    if lost:
        raise typer.Exit(FAILED)


def grade_folder(
    course: Course, folder: Path, out: Path, *, workers: int | None, seed: int | None, isolation: Isolation,
    similarity: bool = False, groups: Path | None = None, roster: Path | None = None, at: str = "",
    times: Path | None = None, fresh: bool = False, shard: tuple[int, int] | None = None,
    pseudonyms: bool = False, scheduler: str = "",
) -> int:
    """Grade, write the report, print the table and where the pages are. Returns how many could not be judged. The caller
    has ``out`` (:func:`.hold.hold`).

    ``roster``: by default the one that ``out`` keeps of an earlier run. ``shard``: (which, of how many), from 1; writes
    records alone. ``scheduler``: address of a Dask scheduler whose workers grade, "" to grade here.
    """
    from llmkata.cli.report import RECORDS, compare, keep_roster, publish, roster_of
    from llmkata.grading.csvfile import TableError
    from llmkata.grading.intake import IntakeError, read_class
    from llmkata.grading.roster import enrolled
    from llmkata.grading.shards import part
    from llmkata.grading.times import read_times
    from llmkata.records import State

    if not scheduler and CAN_FORK and (fresh or not (out / RECORDS).is_file()):
        from llmkata.grading.executor import begin

        begin()
    people = keep_roster(course, out, roster) if roster else roster_of(course, out)
    course = enrolled(course, people)
    try:
        stamps = read_times(times, course) if times else None
        intake = read_class(folder, course, people, at=at, times=stamps)
    except TableError as error:
        fail(str(error), again())
    except IntakeError as error:
        fail(str(error), f"{prog()} grade submissions/ --out report/")
    _announce(folder, intake)
    submissions = intake.submissions if shard is None else part(intake.submissions, *shard)
    given = {"workers": workers, "seed": seed, "isolation": isolation, "fresh": fresh, "scheduler": scheduler}
    records = grade_new(course, submissions, out, pages=shard is None, **given)
    if shard is not None:
        which, of = shard
        typer.echo(f"part {which} of {of}: {len(submissions)} submissions, their records in {shown(out)}")
        typer.echo(f"Next, when all parts are there: {prog()} merge report/ {shown(out)} ...")
        return sum(r.state is State.infrastructure for r in records)
    if similarity:
        compare(course, submissions, out, groups)
    return sum(r.state is State.infrastructure for r in publish(course, out, pseudonyms=pseudonyms))


def grade_new(
    course: Course, submissions: list[Submission], out: Path, *, workers: int | None, seed: int | None,
    isolation: Isolation, fresh: bool = False, scheduler: str = "", pages: bool = True,
) -> list[ExerciseRecord]:
    """Grade what ``out`` has no verdict of, or everything; returns the records that were added to its file. ``pages``:
    whether the caller writes pages of them.
    """
    from llmkata.cli.progress import Progress
    from llmkata.cli.report import RECORDS, records_of
    from llmkata.grading.isolation import TooLittleIsolation
    from llmkata.grading.kept import plan

    earlier = [] if fresh or not (out / RECORDS).is_file() else records_of(out)
    planned = plan(course, submissions, earlier, seed=seed, isolation=isolation.value)
    graded = sum(s.source is not None for s in submissions) - len(planned.rest) - len(planned.copies)
    if graded:
        typer.echo(f"{graded} of them graded already, by the same checks (--fresh grades them again)")
    if planned.copies:
        typer.echo(f"{len(planned.copies)} of them the same as another one, and judged with it")

    def judged(chosen: list[Submission], taken: list[ExerciseRecord]) -> list[ExerciseRecord]:
        """The records of ``chosen``; written with them, once it is sure that they are graded: ``taken``, and sources."""
        with Progress("submissions graded", len(chosen)) as progress:
            given = {"out": out, "seed": seed, "isolation": isolation.value, "progress": progress}
            given["sure"] = lambda: _keep(out, submissions, taken)
            if scheduler and chosen:
                from llmkata.cli.cluster import grade_clustered

                return grade_clustered(course, chosen, scheduler, **given)
            if CAN_FORK:
                from llmkata.grading.executor import grade_many

                if pages:
                    given["meanwhile"] = _get_pages_ready
                return grade_many(course, chosen, workers=workers or os.cpu_count() or 1, **given)
            from llmkata.cli.spawned import grade_spawned

            return grade_spawned(course, chosen, **given)

    try:
        found = judged(planned.rest, planned.taken)
        if not planned.copies:
            return [*planned.taken, *found]
        # What could not be judged is tried for each: it may hang on the moment.
        same = plan(course, planned.copies, [*earlier, *found], seed=seed, isolation=isolation.value)
        return [*planned.taken, *found, *same.taken, *judged([*same.rest, *same.copies], same.taken)]
    except TooLittleIsolation as error:
        fail(str(error))


def _get_pages_ready() -> None:
    """Import and compile what writes the pages."""
    import llmkata.gradebook.place
    import llmkata.reports.site  # noqa: F401
    from llmkata.reports.pages import compiled

    compiled()


def _keep(out: Path, submissions: list[Submission], taken: list[ExerciseRecord]) -> None:
    """Put sources and what need not be graded into the folder of the run; not before it is sure that it is graded."""
    from llmkata.cli.report import RECORDS
    from llmkata.grading.sources import keep
    from llmkata.records import RecordFile

    keep(out, submissions)
    if taken:
        RecordFile(out / RECORDS).append(*taken)


def _shard_of(text: str) -> tuple[int, int] | None:
    """(I, N) of "I/N"."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    which, of = map(int, match.groups()) if match else (0, 0)
    if not 1 <= which <= of:
        fail(f'--shard {text}: must be I/N with I from 1 to N, like 3/8', f"{prog()} grade submissions/ --shard 1/8 --out part1/")
    return which, of


def _announce(folder: Path, intake: Intake) -> None:
    """What was found, and what was not."""
    handed_in = {name for s in intake.submissions if s.file for name in (s.learner, *s.mates)}
    learners = {name for s in intake.submissions for name in (s.learner, *s.mates)}
    present = sum(s.source is not None for s in intake.submissions)
    typer.echo(f"{shown(folder)}: {len(learners)} learners, {present} submissions to grade")
    for what, names in {
        "not a learner's, left out": intake.strays,
        "not on the roster, graded under their own names": intake.strangers,
        "handed in nothing": sorted(learners - handed_in),
        "cannot be read (the report says why)": _unreadable(intake),
    }.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            typer.echo(f"{what}: {', '.join(names[:5])}{more}")


def _unreadable(intake: Intake) -> list[str]:
    """Learner and exercise of each file that cannot be read; of a work of which nothing can, the learner and why."""
    from llmkata.gradebook.begun import spoilt
    from llmkata.records import ExerciseRecord, State

    records = [s.record() if s.source is None else ExerciseRecord(s.learner, s.exercise_id, State.graded) for s in intake.submissions]
    whole = spoilt(records)
    told = {f"{r.learner}: {r.exercise}" for r in records if r.state is State.unreadable and r.learner not in whole}
    return sorted(told | {f"{learner} ({cause.rstrip('.')})" for learner, cause in whole.items()})
