"""``kata export``: results of a graded class as other systems take them in, and the course as theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, again, course_of, exercise_of, fail, prog, shown
from llmkata.cli.hidden import maxima
from llmkata.cli.options import Isolation, IsolationOption
from llmkata.cli.report import RECORDS, enrolled_course, records_of, released_in, roster_of

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.exports.formats import Format
    from llmkata.exports.people import People
    from llmkata.exports.results import Results
    from llmkata.grading.roster import Roster

#: What goes the other way: the exercises as a course of nbgrader.
NBGRADER_COURSE = "nbgrader-course"


def export(
    context: typer.Context,
    format: Annotated[str | None, typer.Argument(help="Without one the formats are listed.", metavar="[FORMAT]")] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(help="The --out folder of a 'kata grade'; for nbgrader-course: the new folder.", metavar="[DIR]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of a class, or folder; default: in DIR/export/.", metavar="PATH")
    ] = None,
    people: Annotated[
        Path | None, typer.Option(help="List of people from the system that takes the grades (CSV).", metavar="FILE")
    ] = None,
    exercise: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.", metavar="NAME")] = None,
    learner: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.", metavar="NAME")] = None,
    unreleased: Annotated[
        bool, typer.Option("--unreleased", help="Also what is not released to learners yet; for staff.")
    ] = False,
    isolation: IsolationOption = Isolation.sandbox,
) -> None:
    """Write results for another system, or (nbgrader-course) the exercises as notebooks for nbgrader.

    FORMAT: without one the formats are listed. DIR: the --out folder of a 'kata grade' (default report); for
    nbgrader-course the folder to make.

    Learners' texts hold no more than a scorecard does. Where the grader failed no grade is written. --isolation is how
    nbgrader's cells will check (nbgrader-course only).

    Exit status: 0 everything was written; 1 something is missing from it (it is named); 2 wrong usage.
    """
    from llmkata.exports.formats import FORMATS

    if format is None:
        _list()
        return
    course = course_of(context)
    chosen = [exercise_of(course, name) for name in exercise or ()]
    if format == NBGRADER_COURSE:
        from llmkata.cli.nbgrader import write_course

        write_course(course, folder, chosen or list(course.available), isolation)
        return
    if format not in FORMATS:
        fail(f"unknown format {format!r}: one of {', '.join([*FORMATS, NBGRADER_COURSE])}", f"{prog()} export")
    found = folder or Path("report")
    if not (found / RECORDS).is_file():
        fail(f"{shown(found)} holds no {RECORDS}", f"{prog()} grade submissions/ --out {shown(found)}")
    view = _view(course, found, chosen, learner, unreleased)
    if not _export(FORMATS[format], view, people, out, found, roster_of(course, found)):
        raise typer.Exit(FAILED)


def _list() -> None:
    from llmkata.exports.formats import FORMATS

    rows = {f.name: f.what for f in FORMATS.values()} | {NBGRADER_COURSE: "the exercises as source notebooks for nbgrader"}
    width = max(map(len, rows))
    for name, what in rows.items():
        typer.echo(f"{name:<{width}}  {what}")
    typer.echo(f"\nNext: {prog()} export canvas report/ --people gradebook.csv")


def _view(
    course: Course, folder: Path, chosen: list[Exercise], learners: list[str] | None, unreleased: bool
) -> Results:
    """What is exported: exercises that somebody began, as on the pages, unless some were named; without those that
    learners may not see yet, unless staff ask for them.
    """
    from llmkata.exports.results import results
    from llmkata.gradebook.begun import begun

    records = records_of(folder)
    if not records:
        fail(f"{shown(folder / RECORDS)} holds no record that can be read", f"{prog()} report {shown(folder)}")
    course = enrolled_course(course.narrowed({e.id for e in chosen} or begun(records)), folder)
    released = None if unreleased else released_in(course)
    if released is not None:
        held = [e.number for e in course.available if e.id not in released]
        if len(held) == len(course.available):
            step = f"{prog()} release-grades --in {shown(folder)}     # or export --unreleased, for staff"
            fail(f"nothing is released to learners yet: {', '.join(held[:8])}", step)
        if held:
            typer.echo(f"not released, left out: {_few(held)}", err=True)
        course = course.narrowed(released & {e.id for e in course.available})
    unknown = set(learners or ()) - {r.learner for r in records}
    if unknown:
        fail(f"{shown(folder)} has no learner {', '.join(sorted(unknown))}", f"{prog()} export csv {shown(folder)}")
    return results(course, records, learners=learners or None, maxima=maxima(course.available, records))


def _export(
    format: Format, view: Results, people: Path | None, out: Path | None, folder: Path, roster: Roster | None
) -> bool:
    """Write the files and say where they are. False where something is missing from them."""
    from llmkata.exports.people import read_people

    place = out or folder / "export" / (format.file or format.name)
    try:
        listed = read_people(people, roster) if people else None
        written = 0
        for name, content in format.files(view, listed):
            _write(place if format.file else place / name, content)
            written += 1
    except ModuleNotFoundError as error:
        fail(f"{format.name} needs the package {error.name}", "pip install 'llmkata[instructor]'")
    except ValueError as error:
        fail(str(error), again() if people else f"{again()} --people FILE")
    except OSError as error:
        fail(f"cannot write {shown(place)}: {error.strerror or error}", f"{prog()} export {format.name} --out PATH")
    learners = listed.matched(view.cards) if listed else view.cards
    count = _many(len(learners), "learner") if format.file else _many(written, "file")
    typer.echo(f"{shown(place)}: {count}, {_many(len(view.exercises), 'exercise')}")
    return _complete(view, listed)


def _complete(view: Results, people: People | None) -> bool:
    """Tell whose results are not in it, and which ones could not be judged."""
    from llmkata.exports.results import unjudged

    lost = unjudged(view)
    if lost:
        typer.echo(f"not judged, so without a grade: {_few(lost)}", err=True)
    if people is None:
        return not lost
    known = people.matched(view.cards)
    strangers = [name for name in view.cards if name not in known]
    if strangers:
        typer.echo(f"not in {shown(people.path)}, left out: {_few(strangers)}", err=True)
    return not lost and not strangers


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _few(names: list[str]) -> str:
    from llmkata.reports.text import line

    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(line(name, 60) for name in names[:8]) + more


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
