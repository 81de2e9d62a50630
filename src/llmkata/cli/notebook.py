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
    repository: Annotated[
        str | None,
        typer.Option(help="What Colab is to clone. Default: where this clone came from, if by https.", metavar="URL"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a notebook that is there.")] = False,
) -> None:
    """Write an exercise as a notebook: brief, stub, visible checks.

    It runs in Jupyter and in VS Code and, where it knows what to clone, in Colab. In it, '%kata check' judges what was
    run and '%kata hint' opens hints. Cells carry nbgrader's metadata. A notebook is handed in like a file.
    """
    from llmkata.authoring.stub import pristine_stub
    from llmkata.notebook.write import notebook as make

    course = course_of(context)
    found = exercise_of(course, exercise)
    path = out or found.stub.with_suffix(".ipynb")
    if path.exists() and not force:
        fail(f"{shown(path)} is there already, with your work in it", f"{prog()} notebook {found.id} --out OTHER.ipynb")
    stub = pristine_stub(found) or found.stub.read_text("utf-8")
    if not path.parent.is_dir():
        fail(f"{path.parent} is no folder", f"{prog()} notebook {found.id}")
    address = _origin(course.root) if repository is None else repository
    path.write_text(make(found, stub, address), "utf-8")
    colab = f"Colab: clones {address}" if address else "Colab: set REPOSITORY in its first code cell, or --repository URL"
    typer.echo(f"{shown(path)}\nopen it in Jupyter, VS Code or Colab; its first code cell sets it up\n{colab}")


def _origin(root: Path) -> str:
    """The https address that a clone came from, without a user or a password in it; "" where there is none."""
    import re
    import subprocess

    from llmkata.grading.git import environment

    command = ["git", "-C", str(root), "config", "--local", "--get", "remote.origin.url"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment()).stdout.strip()
    except OSError:  # no git here
        return ""
    match = re.fullmatch(r"https://(?:[^/@\s]*@)?([^/@\s\"\\]+/[^\s\"\\]+)", said)
    return f"https://{match[1]}" if match else ""
