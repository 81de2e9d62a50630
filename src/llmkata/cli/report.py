"""``kata report``: the pages of a run, made again from its records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import again, course_of, fail, prog, shown, state_dir
from llmkata.cli.hold import hold
from llmkata.cli.options import GroupsOption, PseudonymsOption, RosterOption
from llmkata.cli.signed import sign_results
from llmkata.places import CARDS, CHANGES, GRADEBOOK, INDEX, PSEUDONYMOUS, RECORDS, ROSTER, SIMILARITY, STAFF

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.gradebook import Gradebook
    from llmkata.gradebook.changes import Change, ChangeLog
    from llmkata.grading.intake import Submission
    from llmkata.grading.roster import Roster
    from llmkata.records import ExerciseRecord
    from llmkata.reports.site import Report


def report(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The --out folder of a 'kata grade'.", metavar="DIR")],
    similarity: Annotated[
        Path | None,
        typer.Option(help="Folder of the submissions: which of them are suspiciously alike?", metavar="DIR"),
    ] = None,
    groups: GroupsOption = None,
    roster: RosterOption = None,
    pseudonyms: PseudonymsOption = False,
) -> None:
    """Write scorecards, class page and grades.csv again, from the records of a run.

    Grades follow from course.yaml as it is now and from the roster: --roster, or the one given before.
    """
    course = course_of(context)
    if not (folder / RECORDS).is_file():
        fail(f"{shown(folder)} holds no {RECORDS}", f"{prog()} grade submissions/ --out {shown(folder)}")
    with hold(folder, f"{prog()} report {shown(folder)}"):
        _report(course, folder, similarity, groups, roster, pseudonyms)


def _report(
    course: Course, folder: Path, similarity: Path | None, groups: Path | None, roster: Path | None, pseudonyms: bool
) -> None:
    people = keep_roster(course, folder, roster) if roster else roster_of(course, folder)
    if similarity is not None:
        from llmkata.grading.intake import IntakeError, read_class
        from llmkata.grading.roster import enrolled

        try:
            submissions = read_class(similarity, enrolled(course, people), people).submissions
        except IntakeError as error:
            fail(str(error), f"{prog()} report {shown(folder)} --similarity submissions/")
        compare(course, submissions, folder, groups)
    elif groups is not None:
        fail("--groups says whose submissions are not compared", f"{prog()} report {shown(folder)} --similarity DIR")
    if not publish(course, folder, pseudonyms=pseudonyms):
        what = f"{shown(folder / RECORDS)} holds no record that can be read"
        fail(what, f"{prog()} grade submissions/ --out {shown(folder)}")


def roster_of(course: Course, folder: Path) -> Roster | None:
    """The roster in the folder of a run; None where there is none."""
    return _roster(course, folder / ROSTER) if (folder / ROSTER).is_file() else None


def keep_roster(course: Course, folder: Path, given: Path) -> Roster:
    """The roster in a file, which the folder of the run keeps from now on. Nothing is kept of one with faults."""
    roster = _roster(course, given)
    folder.mkdir(parents=True, exist_ok=True)
    data = given.read_bytes()
    (folder / ROSTER).write_bytes(data)
    return roster


def _roster(course: Course, path: Path) -> Roster:
    from llmkata.grading.csvfile import TableError
    from llmkata.grading.roster import read_roster

    try:
        return read_roster(path, {module.number for module in course.modules})
    except TableError as error:
        fail(str(error), again())


def log_of(folder: Path) -> ChangeLog:
    """The log of changes in the folder of a run."""
    from llmkata.gradebook.changes import ChangeLog

    return ChangeLog(folder / CHANGES)


def changes_of(folder: Path) -> list[Change]:
    """What was changed in a class; stops where the log cannot be read, since no grade is right without it."""
    from llmkata.gradebook.changes import ChangeError

    try:
        return log_of(folder).read()
    except ChangeError as error:
        fail(f"{error}\nGrades hang on this file: mend the line, or take the file from a backup")


def enrolled_course(course: Course, folder: Path, *, frozen: bool = True) -> Course:
    """The course as it holds for the class of a run: with the extensions of its roster and what was changed by hand.
    ``frozen=False``: as if no grades were frozen.
    """
    from llmkata.gradebook.in_force import with_changes
    from llmkata.grading.roster import enrolled

    return with_changes(enrolled(course, roster_of(course, folder)), changes_of(folder), frozen=frozen)


def compare(course: Course, submissions: Iterable[Submission], folder: Path, groups: Path | None) -> None:
    """Find the submissions that are alike and keep the pairs in the folder of the run; the class page shows them."""
    from llmkata.grading.csvfile import TableError
    from llmkata.grading.roster import read_roster
    from llmkata.grading.similarity import SimilarityFault, similar_submissions
    from llmkata.records.pairs import write_pairs

    try:
        of = {person.id: person.group for person in read_roster(groups, needs=("id", "group")).people} if groups is not None else {}
        found = similar_submissions(submissions, course, of, lambda name: typer.echo(f"comparing {name}"))
    except TableError as error:
        fail(str(error), again())
    except SimilarityFault as error:
        fail(str(error))
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder / SIMILARITY, found.pairs)
    count = len(found.pairs)
    many = "no two submissions" if not count else f"{count} pair{'s' if count != 1 else ''} of submissions"
    typer.echo(f"{many} suspiciously alike{': see the class page' if count else ''}")
    for left in found.left_out:
        typer.echo(f"not compared: {left.learner}, {left.exercise}: it {left.why}")


def records_of(folder: Path) -> list[ExerciseRecord]:
    """All records of a run; what cannot be read of its file is said."""
    from llmkata.records import read_records

    reading = read_records([folder / RECORDS])
    for fault in reading.faults:
        typer.echo(f"kata: {fault}", err=True)
    return reading.records


def publish(course: Course, folder: Path, *, pseudonyms: bool = False) -> list[ExerciseRecord]:
    """Rebuild the gradebook of a run, write its pages, print the class as a table and where the pages are.

    Exercises that nobody of the class began are left out: a course is longer than a term has passed. Returns the
    records that count; without any nothing is written. Where the instructor's key is set the files are signed. The run
    under pseudonyms is written with ``pseudonyms``, and from then on whenever this one is.
    """
    from llmkata.cli.settled import stood, tell_settled, tell_unreleased
    from llmkata.reports.terminal import console, summary_table

    before, read = stood(folder), records_of(folder)
    made = _write(course, folder, read)
    if made is None:
        return []
    if made.unused:
        names = ", ".join(made.unused) if len(made.unused) <= 8 else f"{len(made.unused)} of {len(course.available)} exercises"
        typer.echo(f"nobody began {names}: left out of pages and totals")
    console().print(summary_table(made.records, made.course))
    typer.echo()
    places = {"class page": made.report.index, "grades": made.report.grades, "records": folder / RECORDS}
    places |= {what: folder / cards for what, cards in (("scorecards", CARDS), ("for staff", STAFF)) if (folder / cards).is_dir()}
    for what, path in places.items():
        typer.echo(f"{what + ':':<12}{shown(path)}")
    tell_unreleased(made.course, folder)
    tell_settled(course, folder, before, read, made.records)
    pages = [*(folder / CARDS).glob("*"), made.report.index, made.report.grades, folder / RECORDS]
    sign_results(folder, [path for path in pages if path.is_file()])
    if pseudonyms or (folder / PSEUDONYMOUS).is_dir():
        _write_pseudonymous(course, folder)
    return made.records


def released_in(course: Course) -> set[str] | None:
    """Ids of the exercises that learners may see the grades of; None: of all, as soon as pages are written."""
    grading = course.policy.grading
    return set(grading.by_hand.released) if grading.release == "by_hand" else None


@dataclass(frozen=True)
class _Made:
    """What became of the records of a run."""

    course: Course
    records: list[ExerciseRecord]
    report: Report
    #: Numbers of exercises that nobody began.
    unused: list[str]


def _write(course: Course, folder: Path, read: list[ExerciseRecord], *, outside: bool = False) -> _Made | None:
    """Gradebook and pages, of records as they were read; None where there are none. ``outside``: for third parties, so
    that grades not released to learners matter as much as others, and there are no cards for staff.
    """
    from llmkata.gradebook import Gradebook
    from llmkata.gradebook.attempts import chosen
    from llmkata.gradebook.begun import begun
    from llmkata.gradebook.counted import as_it_counts
    from llmkata.records.pairs import read_pairs
    from llmkata.reports.site import write_report

    roster = roster_of(course, folder)
    course = enrolled_course(course, folder)
    people = {p.id: (p.name, p.section) for p in roster.people} if roster else None
    everything = [as_it_counts(record, course) for record in read]
    standing = list(chosen(everything, course).values())
    if not standing:
        return None
    used = begun(standing)
    unused = [exercise.number for exercise in course.available if exercise.id not in used]
    course, records = course.narrowed(used), [r for r in standing if r.exercise in used]
    # What is for third parties stays in its folder.
    with Gradebook.open(f"sqlite:///{folder / GRADEBOOK}") if outside else gradebook_of(folder) as book:
        book.index(everything, standing)
        pairs = read_pairs(folder / SIMILARITY, records)
        released = None if outside else released_in(course)
        report = write_report(folder, course, records, book, pairs=pairs, people=people, released=released)
    return _Made(course, records, report, unused)


def gradebook_of(folder: Path) -> Gradebook:
    """The gradebook of a run, open; stops with a message where its database cannot be used."""
    from llmkata.gradebook import GradebookError
    from llmkata.gradebook.place import VARIABLE, elsewhere, open_gradebook

    try:
        return open_gradebook(folder)
    except GradebookError as error:
        step = f"env -u {VARIABLE} {prog()} report {shown(folder)}" if elsewhere() else f"{prog()} report {shown(folder)}"
        fail(str(error), step)


def _write_pseudonymous(course: Course, folder: Path) -> None:
    """The run under pseudonyms, beside it: what ``kata export`` needs, and pages."""
    from llmkata.grading.pseudonyms import Pseudonyms, write_run

    place = key_place(course)
    new = not place.exists()
    target = folder / PSEUDONYMOUS
    write_run(folder, target, Pseudonyms.of_file(place), roster_of(course, folder))
    _write(course, target, records_of(target), outside=True)
    typer.echo(f"{'pseudonyms:':<12}{shown(target / INDEX)}, for third parties")
    if new:
        typer.echo(f"{'their key:':<12}{shown(place)}: keep it secret and safe, pseudonyms hang on it")


def key_place(course: Course) -> Path:
    """Where the secret key of a course's pseudonyms lies."""
    return state_dir(course) / "pseudonyms.key"
