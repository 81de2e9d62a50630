"""``kata grade``: a class of submissions into records, scorecards and grades."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, course_of, fail, prog, shown
from llmkata.cli.options import GroupsOption, Isolation, IsolationOption, seed_of

if TYPE_CHECKING:
    from llmkata.course import Course


def grade(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder with one folder per learner.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="Where records and pages go.", metavar="DIR")] = Path("report"),
    workers: Annotated[
        int | None, typer.Option(help="Graded at once; default: one per core.", metavar="N", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of hidden inputs; keep it secret.", metavar="S", min=0)] = None,
    isolation: IsolationOption = Isolation.sandbox,
    similarity: Annotated[bool, typer.Option("--similarity", help="Also look for submissions that are alike.")] = False,
    groups: GroupsOption = None,
) -> None:
    """Grade a folder of submissions.

    Each learner's folder holds module2/self_attention.py (or .ipynb), or the exercise tree. Without --seed the
    seed is taken from the environment variable that course.yaml names, else it is the public one.

    Exit status: 0 every submission was graded; 1 some could not be judged (see the report); 2 wrong usage.
    """
    course = course_of(context)
    if groups is not None and not similarity:
        fail("--groups says whose submissions are not compared", f"{prog()} grade {shown(folder)} --similarity")
    given = {"workers": workers, "seed": seed_of(course, seed), "isolation": isolation}
    if grade_folder(course, folder, out, **given, similarity=similarity, groups=groups):
        raise typer.Exit(FAILED)


def grade_folder(
    course: Course, folder: Path, out: Path, *, workers: int | None, seed: int | None, isolation: Isolation,
    similarity: bool = False, groups: Path | None = None,
) -> int:
    """Grade, write the report, print the table and where the pages are. Returns how many could not be judged."""
    import os

    from llmkata.cli.progress import Progress
    from llmkata.cli.report import compare, publish
    from llmkata.grading.intake import IntakeError, read_submissions, strays

    try:
        submissions = read_submissions(folder, course)
    except IntakeError as error:
        fail(str(error), f"{prog()} grade submissions/ --out report/")
    present = sum(s.source is not None for s in submissions)
    learners = len({s.learner for s in submissions})
    typer.echo(f"{shown(folder)}: {learners} learners, {present} submissions to grade")
    beside = strays(folder)
    if beside:
        more = f" and {len(beside) - 5} more" if len(beside) > 5 else ""
        typer.echo(f"not a learner's folder, left out: {', '.join(beside[:5])}{more}")

    from llmkata.grading.isolation import TooLittleIsolation
    from llmkata.records import State
    from llmkata.watch.warm import CAN_FORK

    try:
        with Progress("submissions graded", present) as progress:
            given = {"out": out, "seed": seed, "isolation": isolation.value, "progress": progress}
            if CAN_FORK:
                from llmkata.grading.executor import grade_many

                grade_many(course, submissions, workers=workers or os.cpu_count() or 1, **given)
            else:
                from llmkata.cli.spawned import grade_spawned

                grade_spawned(course, submissions, **given)
    except TooLittleIsolation as error:
        fail(str(error))
    if similarity:
        compare(course, submissions, out, groups)
    return sum(r.state is State.infrastructure for r in publish(course, out))
