"""The board: every module and exercise of the course with where one stands, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmkata.cli.common import prog, shown
from llmkata.cli.own import next_exercise
from llmkata.gradebook import Standing, standing
from llmkata.records import Outcome
from llmkata.reports.terminal import SIGNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkata.course import Course, Exercise, Module
    from llmkata.records import ExerciseRecord


def board(course: Course, records: dict[str, ExerciseRecord], modules: tuple[Module, ...]) -> Iterator[Text]:
    """The lines of the board for ``modules``."""
    width = max(len(e.title) for e in course.exercises)
    for module in modules:
        yield Text(f"{module.number:>2}  {module.title}", style="bold")
        for exercise in module.exercises:
            yield _line(exercise, records.get(exercise.id), width)


def summary(course: Course, records: dict[str, ExerciseRecord]) -> Text:
    """One line: how many exercises are passed, of how many that can be done."""
    where = [standing(records.get(e.id)) for e in course.available]
    passed = sum(w in (Standing.passed, Standing.mastered) for w in where)
    mastered = sum(w is Standing.mastered for w in where)
    planned = len(course.exercises) - len(course.available)
    text = f"{passed} of {len(where)} exercises passed, {mastered} mastered"
    return Text(f"{text}; {planned} more are planned" if planned else text)


def next_step(course: Course, records: dict[str, ExerciseRecord]) -> Iterator[Text]:
    """What to do now, as commands and paths that can be pasted."""
    exercise = next_exercise(course, records)
    if exercise is None:
        yield Text("Everything there is, you have mastered.", style="bold green")
        return
    record = records.get(exercise.id)
    yield Text.assemble("Next: ", (f"{exercise.number} {exercise.title}", "bold"), f"  ({_effort(exercise)})")
    yield Text(f"  {exercise.mission}")
    if record is not None:
        failed = next((c for c in record.checks if c.outcome is Outcome.failed), None)
        if failed is not None:
            yield Text(f"  first check that failed: {failed.id.rpartition('::')[2]} (task {failed.task})")
        elif record.cause:
            yield Text(f"  {record.cause}")
    steps = {
        "read": shown(exercise.brief),
        "edit": shown(exercise.stub),
        "check": f"{prog()} check {exercise.id}",
        "stuck": f"{prog()} hint {exercise.id}",
    }
    for verb, what in steps.items():
        yield Text.assemble(f"  {verb:<6}", (what, "cyan"))


def _line(exercise: Exercise, record: ExerciseRecord | None, width: int) -> Text:
    number = f"{exercise.number:>5}"
    if not exercise.available:
        return Text(f"    · {number}  {exercise.title:<{width}}  planned", style="dim")
    where = standing(record)
    sign, style = SIGNS[where]
    line = Text.assemble(f"    {sign} {number}  {exercise.title:<{width}}  ", (f"{where.value:<12}", style))
    if record is not None and record.max_points:
        line.append(f"  {record.points:.4g} of {record.max_points:.4g} points")
    else:
        line.append(f"  {_effort(exercise)}")
    return line


def _effort(exercise: Exercise) -> str:
    core, total = (f"{h:.3g}" for h in (exercise.hours.core, exercise.hours.total))
    return f"difficulty {exercise.difficulty} of 5, {core if core == total else f'{core} to {total}'} h"
