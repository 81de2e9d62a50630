"""``kata whois``: whose a pseudonym is, for who has the key."""

from __future__ import annotations

from typing import Annotated

import typer

from llmkata.cli.class_run import REPORT, InOption
from llmkata.cli.common import FAILED, course_of, fail, prog, shown
from llmkata.cli.report import key_place, records_of, roster_of
from llmkata.places import RECORDS


def whois(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Pseudonyms, or ids of learners.", metavar="NAME...")],
    folder: InOption = REPORT,
) -> None:
    """Say whose a pseudonym is, or which pseudonym a learner has.

    Exit status: 0 all were found; 1 one is nobody's; 2 wrong usage.
    """
    from llmkata.grading.forget import names_of
    from llmkata.grading.pseudonyms import Pseudonyms, resolved
    from llmkata.reports.text import line

    course = course_of(context)
    if not (folder / RECORDS).is_file():
        fail(f"{shown(folder)} holds no {RECORDS}", f"{prog()} whois NAME --in report/")
    place = key_place(course)
    if not place.is_file():
        fail(f"{shown(place)} is not there: nobody has a pseudonym yet", f"{prog()} report {shown(folder)} --pseudonyms")
    pseudonyms, roster = Pseudonyms.of_file(place), roster_of(course, folder)
    learners = {record.learner for record in records_of(folder)} | {p.id for p in (roster.people if roster else ())}
    lost = False
    for name in names:
        found = [name] if name in learners else resolved(name, pseudonyms, sorted(learners))
        for learner in found:
            typer.echo(f"{pseudonyms.of(learner)}  {line(str(names_of(learner, roster)), 300)}")
        if not found:
            typer.echo(f"{line(name, 60)} is nobody's in {shown(folder)}", err=True)
            lost = True
    if lost:
        raise typer.Exit(FAILED)
