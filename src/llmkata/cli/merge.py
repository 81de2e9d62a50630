"""``kata merge``: the parts of a run, graded on several machines, as one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkata.cli.common import course_of, fail, prog, shown
from llmkata.cli.hold import hold


def merge(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Folder of the whole run; made where needed.", metavar="OUT")],
    parts: Annotated[list[Path], typer.Argument(help="The --out folders of 'kata grade --shard'.", metavar="PART...")],
    roster: Annotated[Path | None, typer.Option(help="CSV of the class, as for 'kata grade'.", metavar="CSV")] = None,
) -> None:
    """Put the parts of a run together and write its pages.

    The records are those that one run would have written; merging a part twice does no harm.
    """
    from llmkata.cli.report import RECORDS, ROSTER, keep_roster, publish
    from llmkata.grading.shards import merge as put_together

    course = course_of(context)
    for part in parts:
        if not (part / RECORDS).is_file():
            fail(f"{shown(part)} holds no {RECORDS}", f"{prog()} grade submissions/ --shard 1/2 --out {shown(part)}")
        if part.resolve() == out.resolve():
            fail(f"{shown(part)} is the folder of the whole run", f"{prog()} merge {shown(out)}-merged {shown(part)} ...")
    with hold(out, f"{prog()} merge {shown(out)} {' '.join(map(shown, parts))}"):
        given = roster or next((p / ROSTER for p in parts if (p / ROSTER).is_file()), None)
        if given is not None and (roster is not None or not (out / ROSTER).is_file()):
            keep_roster(course, out, given)
        added, faults = put_together(out, parts)
        for fault in faults:
            typer.echo(f"kata: {fault}", err=True)
        typer.echo(f"{added} records added from {len(parts)} part{'s' if len(parts) != 1 else ''}")
        publish(course, out)
