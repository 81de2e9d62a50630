"""``kata list``: the exercises of the course or of one module, for people or as JSON."""

from __future__ import annotations

from typing import Annotated

import typer

from llmkata.cli.common import course_of, fail, prog


def list_exercises(
    context: typer.Context,
    module: Annotated[int | None, typer.Argument(help="Number of one module, 0 to 13.", metavar="[MODULE]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array with an object per exercise.")] = False,
) -> None:
    """List the exercises with their state and points."""
    from llmkata.cli.board import board
    from llmkata.cli.verify import own_verified

    course = course_of(context)
    modules = tuple(m for m in course.modules if module in (None, m.number))
    if not modules:
        numbers = [m.number for m in course.modules]
        fail(f"there is no module {module}; modules are {min(numbers)} to {max(numbers)}", f"{prog()} list")
    known = own_verified(course, lambda text: typer.echo(text, err=True))
    if not as_json:
        from llmkata.reports.terminal import console

        out = console()
        for line in [*board(known, modules), *known.said]:
            out.print(line, soft_wrap=True)
        return
    import msgspec

    records = known.records
    rows = [
        {
            "exercise": e.id, "number": e.number, "title": e.title, "status": e.status,
            "state": known.where(e) if e.available else None,
            "points": records[e.id].points if e.id in records else None,
            "max_points": records[e.id].max_points if e.id in records else None,
        }
        for m in modules
        for e in m.exercises
    ]  # fmt: skip
    typer.echo(msgspec.json.format(msgspec.json.encode(rows)))
