"""``kata bench``: the benchmarks of a clone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, course_of, fail, prog, shown

if TYPE_CHECKING:
    from llmkata.course import Course


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Default: list them.", metavar="[NAME]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep the figures in benchmarks/results/.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Toy sizes: does it run, not how fast.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Write docs/benchmarks.md from what was kept.")] = False,
) -> None:
    """Measure how fast grading is, against its bars and against others.

    Wants a machine with nothing else to do. Exit status: 0 no bar was missed; 1 one was; 2 wrong usage, or it could not
    be measured.
    """
    course = course_of(context)
    known = _benchmarks(course)
    from benchmarks.harness import MeasureError

    if page:
        if name or as_json or save or quick:
            fail("--page writes a page of figures that were kept; it measures nothing", f"{prog()} bench --page")
        from benchmarks.page import write

        try:
            typer.echo(shown(write(course.root)))
        except MeasureError as error:
            fail(str(error))
        return
    if name is None:
        width = max(map(len, known))
        for each, (what, minutes) in known.items():
            typer.echo(f"{each.ljust(width)}  {what} ({minutes} min)")
        return
    if name not in known:
        fail(f"no benchmark is called {name!r}; there are {', '.join(known)}", f"{prog()} bench")
    if save and quick:
        fail("a quick run measures nothing that is worth keeping: leave out --quick or --save")
    if sys.platform != "linux":
        fail("benchmarks read what processes cost from /proc, which only Linux has")
    from benchmarks.report import show, to_json
    from benchmarks.run import run

    try:
        document = run(name, course.root.resolve(), quick=quick, save=save)
    except MeasureError as error:
        fail(str(error))
    if as_json:
        typer.echo(to_json(document))
    else:
        show(document)
    if any(row["verdict"] == "miss" for row in document["rows"]) and not quick:
        raise typer.Exit(FAILED)


def _benchmarks(course: Course) -> dict[str, tuple[str, int]]:
    """Name -> what it measures, minutes; their package can be imported from then on."""
    folder: Path = course.root / "benchmarks"
    if not (folder / "__init__.py").is_file():
        fail(
            f"there are no benchmarks in {shown(course.root)}: they come with a clone of llmkata, not with a release of a course"
        )
    if str(course.root.resolve()) not in sys.path:
        sys.path.insert(0, str(course.root.resolve()))
    return importlib.import_module("benchmarks").NAMES
