"""``kata report``: the pages of a run, made again from its records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import course_of, fail, prog, shown
from llmkata.cli.options import GroupsOption
from llmkata.cli.signed import sign_results

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.grading.intake import Submission
    from llmkata.records import ExerciseRecord

#: Within the folder of a run: the records, which are the truth, and the index rebuilt from them.
RECORDS = "records.jsonl"
GRADEBOOK = "gradebook.db"
#: The pairs last computed, for staff.
SIMILARITY = "similarity.json"


def report(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The --out folder of a 'kata grade'.", metavar="DIR")],
    similarity: Annotated[
        Path | None,
        typer.Option(help="Folder of the submissions: which of them are suspiciously alike?", metavar="DIR"),
    ] = None,
    groups: GroupsOption = None,
) -> None:
    """Write scorecards, class page and grades.csv again, from the records of a run."""
    course = course_of(context)
    if not (folder / RECORDS).is_file():
        fail(f"{shown(folder)} holds no {RECORDS}", f"{prog()} grade submissions/ --out {shown(folder)}")
    if similarity is not None:
        from llmkata.grading.intake import IntakeError, read_submissions

        try:
            submissions = read_submissions(similarity, course)
        except IntakeError as error:
            fail(str(error), f"{prog()} report {shown(folder)} --similarity submissions/")
        compare(course, submissions, folder, groups)
    elif groups is not None:
        fail("--groups says whose submissions are not compared", f"{prog()} report {shown(folder)} --similarity DIR")
    if not publish(course, folder):
        what = f"{shown(folder / RECORDS)} holds no record that can be read"
        fail(what, f"{prog()} grade submissions/ --out {shown(folder)}")


def compare(course: Course, submissions: Iterable[Submission], folder: Path, groups: Path | None) -> None:
    """Find the submissions that are alike and keep the pairs in the folder of the run; the class page shows them."""
    from llmkata.grading.similarity import SimilarityFault, read_groups, similar_submissions
    from llmkata.records.pairs import write_pairs

    try:
        of = read_groups(groups) if groups is not None else {}
        pairs = similar_submissions(submissions, course, of, lambda name: typer.echo(f"comparing {name}"))
    except (SimilarityFault, OSError) as error:
        fail(str(error))
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder / SIMILARITY, pairs)
    many = "no two submissions" if not pairs else f"{len(pairs)} pair{'s' if len(pairs) != 1 else ''} of submissions"
    typer.echo(f"{many} suspiciously alike{': see the class page' if pairs else ''}")


def publish(course: Course, folder: Path) -> list[ExerciseRecord]:
    """Rebuild the gradebook of a run, write its pages, print the class as a table and where the pages are.

    Exercises that nobody of the class handed in are left out: a course is longer than a term has passed. Returns the
    records that stand; without any nothing is written. Where the instructor's key is set the files are signed.
    """
    from llmkata.gradebook import Gradebook
    from llmkata.records import State, latest, read_records
    from llmkata.records.pairs import read_pairs
    from llmkata.reports.site import write_report
    from llmkata.reports.terminal import console, summary_table

    reading = read_records([folder / RECORDS])
    for fault in reading.faults:
        typer.echo(f"kata: {fault}", err=True)
    records = list(latest(reading.records).values())
    if not records:
        return []
    used = {r.exercise for r in records if r.state is not State.missing} or {r.exercise for r in records}
    unused = [exercise.number for exercise in course.available if exercise.id not in used]
    if unused:
        names = ", ".join(unused) if len(unused) <= 8 else f"{len(unused)} of {len(course.available)} exercises"
        typer.echo(f"nobody handed in {names}: left out of pages and totals")
    course, records = course.narrowed(used), [r for r in records if r.exercise in used]
    with Gradebook.open(f"sqlite:///{folder / GRADEBOOK}") as book:
        book.rebuild([folder / RECORDS])
        written = write_report(folder, course, records, book, pairs=read_pairs(folder / SIMILARITY, records))
    console().print(summary_table(records, course))
    typer.echo()
    places = {"class page": written.index, "grades": written.grades, "scorecards": written.index.parent / "learners"}
    for what, path in (places | {"records": folder / RECORDS}).items():
        typer.echo(f"{what + ':':<12}{shown(path)}")
    pages = [*(folder / "learners").iterdir(), written.index, written.grades, folder / RECORDS]
    sign_results(folder, [path for path in pages if path.is_file()])
    return records
