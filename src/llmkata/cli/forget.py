"""``kata forget``: everything of one learner, taken out of a run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.class_run import REPORT, InOption, LearnerArgument
from llmkata.cli.common import FAILED, again, course_of, fail, prog, shown
from llmkata.cli.hold import hold
from llmkata.cli.report import gradebook_of, publish, records_of, roster_of
from llmkata.places import CARDS, CHANGES, INDEX, PSEUDONYMOUS, RECORDS, STAFF

if TYPE_CHECKING:
    from llmkata.gradebook.names import Names
    from llmkata.grading.forget import Traces
    from llmkata.grading.roster import Roster


def forget(
    context: typer.Context,
    learner: LearnerArgument,
    folder: InOption = REPORT,
    submissions: Annotated[
        Path | None, typer.Option(help="Folder of the class: the learner's work goes from there, too.", metavar="DIR")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a learner from a run: records, gradebook, pages, roster, changes by hand, kept submissions.

    It says what goes and asks. Records of others lose the learner's name. The log says that somebody was removed and
    not who. Afterwards every file is searched for the learner's names.

    Exit status: 0 nothing names the learner any more; 1 something may, it is listed; 2 wrong usage.
    """
    from llmkata.gradebook.place import exists
    from llmkata.grading import forget as forgetting
    from llmkata.reports.text import slug

    course = course_of(context)
    if not (folder / RECORDS).is_file():
        fail(f"{shown(folder)} holds no {RECORDS}", f"{prog()} forget {learner} --in report/")
    # Neither the command nor what others are told of it names the learner.
    with hold(folder, f"{prog()} forget --in {shown(folder)}"):
        roster = roster_of(course, folder)
        names = forgetting.names_of(_id(learner, folder, roster), roster)
        card = slug(names.learner)
        found = forgetting.traces(folder, names, card)
        works = _works(submissions, names, roster) if submissions else []
        if not found and not works:
            also = "" if submissions else "; what lies in the folder of the class is looked at with --submissions"
            fail(f"{shown(folder)}: {learner!r} is nobody there{also}")
        _announce(folder, names, found, works)
        if not (yes or _confirmed()):
            fail("nothing was removed", f"{again()} --yes")
        pages = (folder / INDEX).is_file()
        pseudonymous = (folder / PSEUDONYMOUS).is_dir()
        forgetting.forget(folder, names, card)
        for path in works:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _log(folder, found)
        if pages and records_of(folder):
            publish(course, folder, pseudonyms=pseudonymous)
        elif exists(folder):
            with gradebook_of(folder) as book:
                book.index([], [])
        left = [path for place in (folder, submissions) if place for path in forgetting.still_named(place, names)]
    typer.echo(f"\nremoved from {shown(folder)}" + (f" and {shown(submissions)}" if works and submissions else ""))
    if left:
        typer.echo("these may still name the learner; look at them:", err=True)
        for path in left[:20]:
            typer.echo(f"  {shown(path)}", err=True)
        raise typer.Exit(FAILED)


def _id(learner: str, folder: Path, roster: Roster | None) -> str:
    """The id that a name of the roster means; else the name itself, as records may have it."""
    from llmkata.grading.roster import AmbiguousName

    if any(record.learner == learner for record in records_of(folder)):
        return learner
    try:
        person = roster.find(learner) if roster else None
    except AmbiguousName as error:
        fail(str(error), f"{prog()} forget ID --in {shown(folder)}")
    return person.id if person else learner


def _works(folder: Path, names: Names, roster: Roster | None) -> list[Path]:
    """What the learner alone handed in, as it lies in the folder of a class."""
    from llmkata.grading.intake import owners
    from llmkata.grading.works import works

    if not folder.is_dir():
        fail(f"{shown(folder)} is not a folder; an archive cannot lose one learner: remove it, and grade a new download")
    try:
        found, _ = owners(works(folder), roster)
    except OSError as error:
        fail(f"{shown(folder)} cannot be opened: {error.strerror or error}")
    mine = [work for work, learners in found if learners == (names.learner,)]
    # A Moodle folder is a piece, and so are the archives in it.
    pieces = {piece.path for work in mine for piece in work.pieces}
    return sorted(path for path in pieces if not pieces & set(path.parents))


def _announce(folder: Path, names: Names, found: Traces, works: list[Path]) -> None:
    from llmkata.reports.text import line

    def many(number: int, what: str) -> str:
        return f"{number} {what}{'s' if number != 1 else ''}"

    also = f"; {many(found.mentions, 'record')} of others lose{'s' if found.mentions == 1 else ''} the name"
    rows = {
        RECORDS: f"{many(found.records, 'record')} of {many(len(found.exercises), 'exercise')}"
        + (also if found.mentions else ""),
        CHANGES: many(found.changes, "change") if found.changes else "",
        "roster.csv": f"line {found.line}" if found.line else "",
        "similarity.json": many(found.pairs, "pair") if found.pairs else "",
        "sources/": f"{many(len(found.sources), 'submission')} that nobody else handed in" if found.sources else "",
        **{f"{place}/": ", ".join(p.name for p in found.cards if p.parent.name == place) for place in (CARDS, STAFF)},
        "the rest": "gradebook, class page and grades are written again without",
    }
    rows |= {f"{path.name}/": "goes as a whole: make it again" for path in found.whole}
    typer.echo(f"{shown(folder)} holds of {line(str(names), 200)}:")
    for what, said in rows.items():
        if said:
            typer.echo(f"  {what:<17}{line(said)}")
    for path in works:
        typer.echo(f"  {line(shown(path))}{'/' if path.is_dir() else ''}")
    typer.echo("Not reached from here: your own class list, archives and backups, and what other systems hold.")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return False
    return typer.confirm("Remove all this? It cannot be undone.", default=False)


def _log(folder: Path, found: Traces) -> None:
    from llmkata.cli.report import log_of
    from llmkata.gradebook.changes import Action, Change, now, who

    text = f"{found.records} records of {len(found.exercises)} exercises"
    log_of(folder).append(Change(0, now(), who(), Action.forget, "", text=text))
