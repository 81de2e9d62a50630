"""``kata check``: one exercise of one's own, judged as an instructor judges it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkata.cli.common import FAILED, PASSED, UNUSABLE, YOU, course_of, exercise_of, fail, prog, shown
from llmkata.cli.options import Isolation, IsolationOption, OptionalExercise

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.grading.intake import Submission
    from llmkata.records import CheckRecord, ExerciseRecord


def check(
    context: typer.Context,
    exercise: OptionalExercise = None,
    submission: Annotated[
        Path | None, typer.Option(help="A .py or .ipynb in place of your file.", metavar="FILE")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record (llmkata/record/v1), nothing else.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Run this check and what it needs.", metavar="NAME")] = None,
    isolation: IsolationOption = Isolation.sandbox,
) -> None:
    """Check one exercise: visible checks, and the hidden ones where they are present.

    Exit status: 0 every check passed; 1 a check failed, the file cannot be read as Python, or nothing was written yet;
    2 it could not be judged, or wrong usage.
    """
    course = course_of(context)
    found = exercise_of(course, exercise)
    file = submission or found.stub
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        fail(f"{shown(file)} {what}", f"{prog()} check {found.id} --submission FILE")
    from llmkata.grading.intake import read_file

    printed: dict[str, str] = {}
    read = read_file(file, found, course, learner=YOU)
    record = judge(course, found, read, only=only, isolation=isolation, printed=printed)
    if submission is None and only is None:
        from llmkata.cli.own import record_file

        record_file(course).append(record)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(_complete(record)).decode())
    else:
        from llmkata.reports.terminal import check_report, console

        console().print(check_report(record, course, source=file, printed=printed))
    raise typer.Exit(status_of(record))


def status_of(record: ExerciseRecord) -> int:
    """Exit status of a record: a failure outweighs what could not be judged. A check that this machine cannot run and
    that costs no points (no GPU, say) stands in nobody's way.
    """
    from llmkata.records import Outcome, State

    if record.state is State.infrastructure:
        return UNUSABLE
    if record.state is not State.graded:
        return FAILED
    outcomes = {c.outcome for c in record.checks if not c.excused}
    if Outcome.failed in outcomes:
        return FAILED
    return PASSED if outcomes == {Outcome.passed} else UNUSABLE


def judge(
    course: Course, exercise: Exercise, read: Submission, *, isolation: Isolation, only: str | None = None,
    printed: dict[str, str] | None = None,
) -> ExerciseRecord:  # fmt: skip
    """The record of one submission: visible checks, and the hidden ones where they are present. ``printed`` is given
    what the submission printed during visible checks, by their id: what it prints during hidden ones tells their inputs.
    """
    printed = {} if printed is None else printed
    if read.source is None:
        return read.record()
    from llmkata.forks import CAN_FORK

    if CAN_FORK:
        record = _sandboxed(course, exercise, read, only, isolation, printed)
    else:
        from llmkata.cli.spawned import judge_spawned

        record = judge_spawned(exercise, read, only=only, printed=printed)
    record.notes += read.notes
    return record


def _sandboxed(
    course: Course, exercise: Exercise, read: Submission, only: str | None, isolation: Isolation,
    printed: dict[str, str],
) -> ExerciseRecord:  # fmt: skip
    from llmkata.checks import context
    from llmkata.cli.options import seed_of
    from llmkata.cli.progress import Progress
    from llmkata.grading.runner import grade_one

    def listen(check: CheckRecord) -> None:
        progress()
        if check.visibility == "visible":
            printed[check.id] = "".join(text for link in context.current().links for text in link.printed)

    with Progress("checks run") as progress:
        return grade_one(
            course, exercise, read.source, learner=read.learner, file=read.file, only=only, isolation=isolation.value,
            seed=seed_of(course, None), on_check=listen,
        )  # fmt: skip


def _complete(value: Any) -> Any:
    """Structures as plain data with every field, defaults too: whoever reads the JSON need not know them."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: _complete(getattr(value, name)) for name in value.__struct_fields__}
    return [_complete(v) for v in value] if isinstance(value, list) else value
