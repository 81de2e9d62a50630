"""``kata workflow``: the workflow that grades a class, for the instructor's own private repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkata.cli.common import course_of, fail, prog, shown


def workflow(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="Default: .github/workflows/grade.yml of the course.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the workflow that grades a class: for a private repository of yours that holds the course with its graders.

    It collects the repositories of repositories.csv every night, grades them with the hidden checks, and keeps the
    pages as an artifact. What it needs stands at its head.
    """
    from llmkata.authoring.workflow import PLACE
    from llmkata.authoring.workflow import workflow as text

    target = file or course_of(context).root / PLACE
    if target.exists() and target.read_text("utf-8") != text() and not force:
        fail(f"{shown(target)} is there already and says something else", f"{prog()} workflow {shown(target)} --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text(), encoding="utf-8", newline="\n")
    typer.echo(
        f"{shown(target)}\nNext: write repositories.csv (id,repository), set the secrets named at the head of the "
        "file, push to a private repository"
    )
