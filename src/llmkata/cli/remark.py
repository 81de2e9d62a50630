"""``kata comment`` and ``kata rubric``: what a person who read the code says and gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.class_run import REPORT, ClassRun, ExerciseArgument, InOption, LearnerArgument, open_class
from llmkata.cli.common import again, fail, prog, shown

if TYPE_CHECKING:
    from llmkata.course import Exercise
    from llmkata.gradebook.changes import Change


def comment(
    context: typer.Context,
    learner: LearnerArgument,
    exercise: ExerciseArgument,
    text: Annotated[str | None, typer.Argument(help="What the learner reads on the card.", metavar="[TEXT]")] = None,
    file: Annotated[Path | None, typer.Option(help="Take the text from a file; - is what is typed or piped in.")] = None,
    staff: Annotated[bool, typer.Option("--staff", help="For staff only: on no learner's card and in no export.")] = False,
    folder: InOption = REPORT,
) -> None:
    """Write a comment beside the results of an exercise.

    'kata undo' takes one back.
    """
    from llmkata.gradebook.changes import Action, Change, now, who

    again = f'{prog()} comment {learner} {exercise} "..."'
    if (text is None) == (file is None):
        fail("give the comment as one argument, or with --file", again)
    said = (text if text is not None else _read(file)).strip()
    if not said:
        fail("the comment is empty", again)
    run = open_class(context, folder)
    chosen, name = run.exercise(exercise), run.learner(learner)
    run.record(name, chosen)
    run.change(Change(0, now(), who(), Action.comment, chosen.id, learner=name, text=said, staff=staff))


def rubric(
    context: typer.Context,
    exercise: ExerciseArgument,
    learner: Annotated[str | None, typer.Argument(help="Without one: who is marked and who is not.", metavar="[LEARNER]")] = None,
    marks: Annotated[
        list[str] | None, typer.Argument(help="Criterion and points, as readability=4.", metavar="[NAME=POINTS]...")
    ] = None,
    said: Annotated[str, typer.Option("--comment", help="Also a comment, as 'kata comment' writes it.", metavar="TEXT")] = "",
    table: Annotated[
        Path | None, typer.Option("--from", help="Marks of many: a CSV with id, the criteria as columns, and comment.", metavar="CSV")
    ] = None,
    folder: InOption = REPORT,
) -> None:
    """Mark by the rubric that course.yaml declares for an exercise.

    Marks stand beside the checks and count as points of core tasks. A criterion counts from when it is marked; marked
    again, the last mark counts. 'kata undo' takes a mark back.
    """
    from llmkata.gradebook.changes import Action, Change, now, who

    run = open_class(context, folder)
    chosen = run.exercise(exercise)
    if not chosen.rubric:
        fail(
            f"{chosen.number} {chosen.title} has no rubric: declare one in course.yaml, in the exercise's entry, as\n"
            "    rubric: [{name: readability, points: 5, about: \"Names, structure, comments that say why.\"}]"
        )
    if table is not None:
        if learner or marks or said:
            fail("--from brings learners, marks and comments with it", f"{prog()} rubric {exercise} --from {shown(table)}")
        given, comments = _read_marks(table, run, chosen)
    elif learner is None:
        _overview(run, chosen)
        return
    elif not marks:
        fail(f"name what is marked: {_names(chosen)}", f"{prog()} rubric {exercise} {learner} {chosen.rubric[0].name}=...")
    else:
        name = run.learner(learner)
        given = [(name, *_mark(text, chosen)) for text in marks]
        comments = {name: said.strip()}
    at, by = now(), who()
    changes: list[Change] = []
    for name, criterion, points in given:
        record = run.record(name, chosen)
        if record.state != "graded":
            fail(f"{name}: {chosen.number} is {record.state.value}, there is nothing to mark", f'{prog()} adjust {name} {exercise} --points +N --reason "..." --in {shown(run.folder)}')
        changes.append(Change(
            0, at, by, Action.rubric, chosen.id, learner=name, points=points, of=chosen.criterion(criterion).points,
            criterion=criterion,
        ))  # fmt: skip
    changes += [
        Change(0, at, by, Action.comment, chosen.id, learner=name, text=text) for name, text in comments.items() if text
    ]
    run.change(*changes)


def _names(exercise: Exercise) -> str:
    return ", ".join(f"{c.name} (0 to {c.points:g})" for c in exercise.rubric)


def _mark(text: str, exercise: Exercise) -> tuple[str, float]:
    """Criterion and points of ``readability=4``; stops where either is none of the rubric's."""
    name, sign, number = text.partition("=")
    if not sign:
        fail(f"{text!r}: write a mark as NAME=POINTS; there is {_names(exercise)}")
    try:
        return name.strip(), _points(name.strip(), number.strip(), exercise)
    except ValueError as error:
        fail(str(error))


def _points(name: str, number: str, exercise: Exercise) -> float:
    """Raises ValueError where there is no such criterion, or not so many points in it."""
    try:
        most = exercise.criterion(name).points
    except KeyError:
        raise ValueError(f"no criterion {name!r}; there is {_names(exercise)}") from None
    try:
        points = float(number.replace(",", "."))
    except ValueError:
        points = -1.0
    if not 0 <= points <= most:
        raise ValueError(f"{name} is from 0 to {most:g}, not {number or 'nothing'}")
    return points


def _read_marks(
    path: Path, run: ClassRun, exercise: Exercise
) -> tuple[list[tuple[str, str, float]], dict[str, str]]:
    """(learner, criterion, points) of every cell that is filled in, and learner -> comment; stops with all faults of the
    table.
    """
    from llmkata.grading.csvfile import TableError, column, read_table

    try:
        table = read_table(path, f"id,{','.join(c.name for c in exercise.rubric)},comment", ["id"])
    except TableError as error:
        fail(str(error), again())
    criteria = {column(c.name): c.name for c in exercise.rubric}
    if not criteria.keys() & set(table.columns):
        fail(table.lacks(*criteria.values()), again())
    known = {learner for learner, _ in run.now.records}
    given: list[tuple[str, str, float]] = []
    comments: dict[str, str] = {}
    faults: list[str] = []
    for row in table.rows:
        learner = row.get("id")
        if learner not in known:
            faults.append(table.fault(row.line, f"{learner!r} is nobody there"))
            continue
        comments[learner] = row.get("comment")
        for place, name in criteria.items():
            try:
                if row.get(place):
                    given.append((learner, name, _points(name, row.get(place), exercise)))
            except ValueError as error:
                faults.append(table.fault(row.line, error))
    if faults:
        fail("\n".join(faults))
    if not given:
        fail(f"{shown(path)} holds no mark")
    return given, comments


def _overview(run: ClassRun, exercise: Exercise) -> None:
    """Who has which marks; those with nothing to mark are left out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llmkata.gradebook.in_force import by_hand
    from llmkata.reports.terminal import console
    from llmkata.reports.text import line, points

    marks = by_hand(run.changes, frozen=False).marks
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("learner", overflow="ellipsis", no_wrap=True)
    for criterion in exercise.rubric:
        table.add_column(f"{criterion.name} (0–{points(criterion.points)})", justify="right")
    graded = sorted(learner for (learner, name), r in run.live.records.items() if name == exercise.id and r.state == "graded")
    missing = 0
    for learner in graded:
        mine = marks.get((learner, exercise.id), {})
        missing += any(c.name not in mine for c in exercise.rubric)
        table.add_row(Text(line(learner, 40)), *(points(mine[c.name].points) if c.name in mine else "·" for c in exercise.rubric))
    console().print(table)
    typer.echo(f"{missing} of {len(graded)} learners still to be marked")
    typer.echo(f"Next: {prog()} rubric {exercise.number} LEARNER {exercise.rubric[0].name}=N --in {shown(run.folder)}")


def _read(path: Path | None) -> str:
    import sys

    assert path is not None
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {shown(path)}: {error}")
