"""``kata new``: the scaffold of an exercise."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from llmkata.cli.common import course_of, fail, prog


def new(
    context: typer.Context,
    exercise: Annotated[str, typer.Argument(help="moduleN/slug, for example module2/flash_attention.")],
    title: Annotated[str | None, typer.Option(help="What a new one is called; default: from the slug.")] = None,
) -> None:
    """Write the files of a new exercise and its entry in course.yaml.

    What is written is a small exercise that is clean as it stands; overwrite it piece by piece, with kata audit --quick
    at hand. A planned exercise of that name becomes available.

    Exit status: 0 written; 2 wrong usage.
    """
    from llmkata.authoring.scaffold.entry import CannotEdit, with_entry
    from llmkata.authoring.scaffold.files import files
    from llmkata.course import CourseError, load_course

    named = re.fullmatch(r"module(\d+)/([a-z][a-z0-9_]*)", exercise)
    if named is None:
        fail(f"{exercise!r} is no moduleN/slug (lower case, digits, underscores)", f"{prog()} new module2/flash_attention")
    course = course_of(context)
    path = course.root / "course.yaml"
    before = path.read_text("utf-8")
    slug = named[2]
    try:
        after, number, title = with_entry(before, int(named[1]), slug, title or slug.replace("_", " ").capitalize())
    except CannotEdit as error:
        fail(str(error) + (f"; put in:\n{error.text}" if error.text else ""))
    made = files(exercise, number, title)
    there = [name for name in made if (course.root / name).exists()]
    if there:
        fail(f"{there[0]} is already there; nothing was written")
    for name, text in made.items():
        (course.root / name).parent.mkdir(parents=True, exist_ok=True)
        (course.root / name).write_text(text, "utf-8")
    path.write_text(after, "utf-8")
    try:
        load_course(course.root)
    except CourseError:
        path.write_text(before, "utf-8")
        for name in made:
            (course.root / name).unlink()
        raise
    typer.echo("\n".join([f"{number} {title} ({exercise}): in course.yaml, and", *(f"  {name}" for name in made)]))
    typer.echo(f"Next: {prog()} sync {exercise} && {prog()} audit --quick {exercise}")
