"""``kata collect``: the repositories of a class, cloned or brought up to date."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, again, fail, prog, shown

if TYPE_CHECKING:
    from llmkata.grading.collect import Outcome


def collect(
    listed: Annotated[Path, typer.Argument(help="CSV with the columns id and repository.", metavar="LIST")],
    folder: Annotated[Path, typer.Argument(help="Where the clones go, a folder each.", metavar="DIR")],
) -> None:
    """Clone the repositories of a class, or bring their clones up to date; then grade the folder.

    A repository is owner/name, an address, or a folder. SUBMISSIONS_TOKEN in the environment opens private ones.

    Exit status: 0 all are there; 1 some could not be had, each with the reason; 2 wrong usage.
    """
    from llmkata.grading import collect as collecting
    from llmkata.grading.csvfile import TableError

    server = os.environ.get(collecting.SERVER) or "https://github.com"
    try:
        repositories = collecting.read_list(listed, server)
    except TableError as error:
        fail(str(error), again())
    if not repositories:
        fail(f"{shown(listed)} names no repository")

    def told(outcome: Outcome) -> None:
        typer.echo(f"{'✗' if outcome.fault else '✓'} {outcome.learner}: {outcome.fault or outcome.commit[:12]}")

    done = collecting.collect(
        repositories, folder, token=os.environ.get(collecting.TOKEN, ""), server=server, told=told
    )
    lost = sum(bool(outcome.fault) for outcome in done)
    roster = f" --roster {shown(listed)}" if _is_roster(listed) else ""
    typer.echo(
        f"{len(done) - lost} of {len(done)} repositories are up to date in {shown(folder)}\n"
        f"Next: {prog()} grade {shown(folder)} --out report/{roster}"
    )
    if lost:
        raise typer.Exit(FAILED)


def _is_roster(listed: Path) -> bool:
    """Whether the list does as a roster, so that who handed in nothing is told too."""
    from llmkata.grading.csvfile import TableError
    from llmkata.grading.roster import read_roster

    try:
        read_roster(listed)
    except TableError:
        return False
    return True
