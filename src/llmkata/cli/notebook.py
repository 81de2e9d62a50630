"""``kata notebook``: an exercise as a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkata.cli.common import course_of, exercise_of, fail, prog, shown


def notebook(
    context: typer.Context,
    exercise: Annotated[str, typer.Argument(help="For example module2/self_attention, or 2.1.", metavar="EXERCISE")],
    out: Annotated[Path | None, typer.Option(help="Default: beside the stub, as SLUG.ipynb.", metavar="FILE")] = None,
    repository: Annotated[str, typer.Option(help="What Colab is to clone the course from.", metavar="URL")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a notebook that is there.")] = False,
) -> None:
    """Write an exercise as a notebook: brief, stub, visible checks.

    It runs in Jupyter and, given a repository to clone, in Colab. In it, '%kata check' judges what was run and
    '%kata hint' opens hints. Cells carry nbgrader's metadata. A notebook is handed in like a file.
    """
    from llmkata.authoring.stub import pristine_stub
    from llmkata.notebook.write import notebook as make

    found = exercise_of(course_of(context), exercise)
    path = out or found.stub.with_suffix(".ipynb")
    if path.exists() and not force:
        fail(f"{shown(path)} is there already, with your work in it", f"{prog()} notebook {found.id} --out OTHER.ipynb")
    stub = pristine_stub(found) or found.stub.read_text("utf-8")
    if not path.parent.is_dir():
        fail(f"{path.parent} is no folder", f"{prog()} notebook {found.id}")
    path.write_text(make(found, stub, repository), "utf-8")
    typer.echo(f"{shown(path)}\nopen it in Jupyter, VS Code or Colab; its first code cell sets it up")
