"""The board: every module and exercise of the course with where one stands, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from llmkata.cli.common import prog, shown
from llmkata.cli.own import next_exercise
from llmkata.gradebook import Standing
from llmkata.records import Outcome
from llmkata.reports.terminal import SIGNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkata.cli.verify import Verified
    from llmkata.course import Course, Exercise, Module


def board(known: Verified, modules: tuple[Module, ...]) -> Iterator[Text]:
    """The lines of the board for ``modules``."""
    exercises = [e for m in modules for e in m.exercises]
    widths = max(len(e.title) for e in exercises), max(len(_state(e, known)) for e in exercises)
    for module in modules:
        yield Text(f"{module.number:>2}  {module.title}", style="bold")
        for exercise in module.exercises:
            yield _line(exercise, known, *widths)


def summary(course: Course, known: Verified) -> Text:
    """One line: how many exercises are passed, of how many that can be done."""
    where = [known.where(e) for e in course.available]
    passed = sum(w in (Standing.passed, Standing.mastered) for w in where)
    mastered = sum(w == Standing.mastered for w in where)
    planned = len(course.exercises) - len(course.available)
    text = f"{passed} of {len(where)} exercises passed, {mastered} mastered"
    return Text(f"{text}; {planned} more are planned" if planned else text)


def next_step(course: Course, known: Verified) -> Iterator[Text]:
    """What to do now, as commands and paths that can be pasted."""
    exercise = next_exercise(course, known.records, known.broken)
    if exercise is None:
        yield Text("Everything there is, you have mastered.", style="bold green")
        return
    record = known.records.get(exercise.id)
    yield Text.assemble("Next: ", (f"{exercise.number} {exercise.title}", "bold"), f"  ({_effort(exercise)})")
    yield Text(f"  {exercise.mission}")
    if record is not None:
        failed = next((c for c in record.checks if c.outcome is Outcome.failed), None)
        if failed is not None:
            yield Text(f"  first check that failed: {failed.id.rpartition('::')[2]} (task {failed.task})")
        elif record.cause:
            yield Text(f"  {record.cause}")
    steps = {
        "read": (shown(exercise.brief), "the brief"),
        "edit": (shown(exercise.stub), "the file to fill in"),
        "loop": (f"{prog()} watch {exercise.id}", "judges each time you save"),
        "check": (f"{prog()} check {exercise.id}", "everything, recorded"),
        "stuck": (f"{prog()} hint {exercise.id}", "one hint at a time"),
    }
    width = max(len(what) for what, _ in steps.values())
    for verb, (what, why) in steps.items():
        yield Text.assemble(f"  {verb:<6}", (f"{what:<{width}}", "cyan"), (f"  {why}", "dim"))


def sign_of(where: str) -> tuple[str, str]:
    """Sign and style of a state in words."""
    return ("✗", "red") if where == "broken" else SIGNS[Standing(where)]


def _line(exercise: Exercise, known: Verified, width: int, state_width: int) -> Text:
    number = f"{exercise.number:>5}"
    if not exercise.available:
        return Text(f"    · {number}  {exercise.title:<{width}}  planned", style="dim")
    where, record = known.where(exercise), known.records.get(exercise.id)
    sign, style = sign_of(where)
    line = Text.assemble(f"    {sign} {number}  {exercise.title:<{width}}  ", (f"{_state(exercise, known):<{state_width}}", style))
    if record is not None and record.max_points:
        line.append(f"  {record.points:.4g} of {record.max_points:.4g} points")
    elif record is None:
        line.append(f"  {_effort(exercise)}")
    line.rstrip()
    return line


def _state(exercise: Exercise, known: Verified) -> str:
    """``in progress 12/43 checks``."""
    if not exercise.available:
        return ""
    where, record = known.where(exercise), known.records.get(exercise.id)
    judged = [check for check in record.checks if not check.excused] if record is not None else []
    if not judged or where not in (Standing.in_progress, "broken"):
        return where
    return f"{where} {sum(check.outcome is Outcome.passed for check in judged)}/{len(judged)} checks"


def _effort(exercise: Exercise) -> str:
    core, total = (f"{h:.3g}" for h in (exercise.hours.core, exercise.hours.total))
    return f"difficulty {exercise.difficulty} of 5, {core if core == total else f'{core} to {total}'} h"
