"""What a console shows: the table of a class, and the report of one exercise.

Both return something :class:`rich.console.Console` prints; :func:`console` makes one that honours ``NO_COLOR`` and
leaves out colours and links where nobody looks at a terminal. States have a sign and a word, never a colour alone.
No text of a record is read as markup.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmkata.course.launcher import launcher
from llmkata.gradebook.standing import Entry, Standing, entry, grade, total
from llmkata.records import NOT_STARTED, Evidence, ExerciseRecord, Measure

from .figures import bar
from .policy import Level
from .text import amount, line, percent, plain, points, whole
from .view import CheckCard, ExerciseCard, TaskCard, scorecard

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise

SIGNS = {
    Standing.mastered: ("★", "bold blue"), Standing.passed: ("✓", "green"), Standing.in_progress: ("◐", "yellow"),
    Standing.not_started: ("○", "dim"), Standing.missing: ("–", "red"), Standing.unreadable: ("!", "red"),
    Standing.infrastructure: ("?", "magenta"),
}
OUTCOMES = {"passed": ("✓", "green"), "failed": ("✗", "red"), "not judged": ("–", "dim")}
#: Columns per exercise in the table of a class, beyond which it counts states instead.
MOST_COLUMNS = 6
#: Lines of expected and got that are shown each.
MOST_LINES = 12
#: Last lines of what was printed that are shown.
MOST_PRINTED = 8
#: Operators that are named below a missed budget.
MOST_SPOTS = 4


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console on ``file`` (standard output by default). Away from a terminal it is 100 columns wide.

    A stream that cannot write the signs (an old Windows code page) gets replacements rather than an error.
    """
    file = file or sys.stdout
    if hasattr(file, "reconfigure"):
        file.reconfigure(errors="replace")
    at_terminal = bool(getattr(file, "isatty", lambda: False)())
    width = width or (None if at_terminal or "COLUMNS" in os.environ else 100)
    return Console(file=file, width=width, highlight=False, force_jupyter=False)


def standing_text(known: Entry) -> Text:
    """``◐ in progress 3/7``: sign and word of a standing."""
    sign, style = SIGNS[known.standing]
    progress = f" {known.tasks_done}/{known.tasks}" if known.standing is Standing.in_progress else ""
    return Text(f"{sign} {known.standing.value}{progress}", style=style)


def summary_table(records: Iterable[ExerciseRecord], course: Course, *, limit: int = 60) -> RenderableType:
    """The class as a table: learners in alphabetical order with total and what they reached in each exercise.
    ``records``: those that count, one for each learner and exercise.

    At most ``limit`` learners are listed; the line below counts all. Faults of the grader are counted apart. ± marks
    what was changed by hand.
    """
    book: dict[str, dict[str, Entry]] = {}
    for record in records:
        book.setdefault(record.learner, {})[record.exercise] = entry(record)
    if not book:
        return Text("No submissions were graded.", style="dim")
    used = {name for known in book.values() for name in known}
    columns = [exercise for exercise in course.exercises if exercise.id in used]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("learner", overflow="ellipsis", no_wrap=True, min_width=12, max_width=32)
    table.add_column("total", justify="right", no_wrap=True, min_width=len("100.0 %"))
    wide = len(columns) > MOST_COLUMNS
    for exercise in columns if not wide else []:
        table.add_column(exercise.slug, overflow="ellipsis", no_wrap=True)
    if wide:
        table.add_column("exercises")
    totals = {learner: total(course, known) for learner, known in book.items()}
    ordered = sorted(book, key=lambda learner: (learner.casefold(), learner))
    for learner in ordered[:limit]:
        known = book[learner]
        cells = [_states(known)] if wide else [_cell(course, exercise, known.get(exercise.id)) for exercise in columns]
        table.add_row(Text(line(learner) or "(no name)"), Text(percent(totals[learner].percent)), *cells)
    reached = [t.percent for t in totals.values() if t.percent is not None]
    foot = [f"{len(book)} learner{'s' if len(book) != 1 else ''}"]
    if len(ordered) > limit:
        foot.append(f"{len(ordered) - limit} more not listed")
    if reached:
        foot.append(f"mean total {percent(sum(reached) / len(reached))}")
    faults = sum(e.standing is Standing.infrastructure for known in book.values() for e in known.values())
    parts: list[RenderableType] = [table, Text(", ".join(foot), style="dim")]
    if faults:
        parts.append(Text(f"{faults} could not be judged (a fault of the grader, not counted)", style="magenta"))
    return Group(*parts)


def check_report(
    record: ExerciseRecord, course: Course, *, feedback: Level | None = None, source: Path | str | None = None,
    printed: Mapping[str, str] | None = None,
) -> RenderableType:
    """One exercise of one learner, failures explained: the report of ``kata check``.

    ``source`` is the file that was graded; with it frames in that file become links. ``feedback`` is the level for
    hidden checks, by default the course's. ``printed``: what the submission printed, by the id of a check that failed.
    """
    card = next(
        card for card in scorecard(record.learner, [record], course, feedback=feedback).exercises
        if card.id == line(record.exercise)
    )
    head = Text.assemble((f"{card.number} {card.title}".strip(), "bold"), "  ", standing_text(entry(record)))
    if card.max_points:
        head.append(f"  {points(card.points)} of {points(card.max_points)} points")
    if card.standing is Standing.not_started:
        return Text.assemble(head, "\n", f"Nothing tried yet: open {_stub(course, record)} and begin with task 1.")
    parts: list[RenderableType] = [head]
    if card.cause:
        parts.append(Text(card.cause))
    if card.evidence:
        parts.append(_indented(place_text(card.evidence, source), 2))
    seen: set[str] = set()
    for task in card.tasks:
        parts.append(_task_line(task))
        parts += [_indented(_waiting(checks, source), 2, below=1) for checks in _untouched(task)]
        for check in task.checks if task.started else ():
            if check.cause.startswith(NOT_STARTED):
                continue
            if check.outcome != "passed":
                said = (printed or {}).get(check.id, "")
                parts.append(_indented(_check(card, check, source, seen, said), 2, below=1))
            elif check.measures:
                parts.append(_indented(Group(*(measure_text(m) for m in check.measures)), 4))
    parts += [Text(f"Note: {note}", style="dim") for note in card.notes]
    if card.ignored:
        parts.append(Text(f"Without a part in grading: {', '.join(card.ignored)}", style="dim"))
    return Group(*parts)


def _states(known: dict[str, Entry]) -> Text:
    counts = {where: sum(e.standing is where for e in known.values()) for where in SIGNS}
    return Text(", ").join(
        Text(f"{SIGNS[where][0]} {n} {where.value}", style=SIGNS[where][1]) for where, n in counts.items() if n
    )


def _cell(course: Course, exercise: Exercise, known: Entry | None) -> Text:
    if known is None:
        return Text("")
    sign, style = SIGNS[known.standing]
    text = Text(f"{sign} {known.standing.value}", style=style)
    made = grade(course, exercise, known)
    if known.standing in (Standing.in_progress, Standing.passed) or made.adjustment:
        text.append(f", {whole(100 * (made.counted or 0.0))} %{' ±' if made.adjustment else ''}")
    return text


def _stub(course: Course, record: ExerciseRecord) -> str:
    exercise = _exercise(course, record)
    return str(relative(exercise.stub)) if exercise else line(record.exercise)


def _exercise(course: Course, record: ExerciseRecord) -> Exercise | None:
    return next((exercise for exercise in course.exercises if exercise.id == record.exercise), None)


def _task_line(task: TaskCard) -> Text:
    sign, style = OUTCOMES[task.outcome.value] if task.started else SIGNS[Standing.not_started]
    passed = sum(check.outcome == "passed" for check in task.checks)
    text = Text.assemble((f"{sign} ", style), (f"Task {task.number}", "bold"))
    text.append(f" {task.title}" if task.title else "")
    tally = f"  {passed}/{len(task.checks)} checks" if task.checks else "  no checks"
    worth = f", {points(task.max_points)} points to earn" if task.max_points else ""
    tally = tally if task.started else f"  not started{worth}"
    return text.append(f"{tally}, {task.tier}", style="dim")


def _untouched(task: TaskCard) -> list[list[CheckCard]]:
    """The checks of a task under way that met a part of it nobody touched, by that part."""
    by_part: dict[str, list[CheckCard]] = {}
    for check in task.checks if task.started else ():
        if check.cause.startswith(NOT_STARTED):
            by_part.setdefault(check.cause, []).append(check)
    return list(by_part.values())


def _waiting(checks: list[CheckCard], source: Path | str | None) -> RenderableType:
    sign, style = SIGNS[Standing.not_started]
    open_points = sum(check.max_points for check in checks)
    worth = f"  {points(open_points)} points to earn" if open_points else ""
    part = checks[0].cause.removeprefix(f"{NOT_STARTED}: ")
    many = f"{len(checks)} checks wait" if len(checks) > 1 else "1 check waits"
    parts: list[RenderableType] = [Text.assemble((f"{sign} {many} for {part}", style), (worth, "dim"))]
    frames = next((check.evidence.frames for check in checks if check.evidence and check.evidence.frames), [])
    if frames:
        parts.append(_indented(frames_text(frames, source), 2))
    return Group(*parts)


def _check(
    card: ExerciseCard, check: CheckCard, source: Path | str | None, seen: set[str], printed: str
) -> RenderableType:
    """A check that did not pass: diagnosis first, then the evidence, the hint, and how to run it alone.

    A mistake that was told already (``seen``) is only recalled.
    """
    sign, style = OUTCOMES[check.outcome.value]
    worth = f"  0 of {points(check.max_points)} points" if check.max_points and not check.points else ""
    parts: list[RenderableType] = [Text.assemble((f"{sign} {check.title}", style), (worth, "dim"))]
    if check.diagnosis:
        again = "the same mistake as above" if check.diagnosis.name in seen else check.diagnosis.feedback
        parts.append(Text(f"→ {again}", style="bold yellow"))
        seen.add(check.diagnosis.name)
    parts.append(Text(check.cause))
    evidence = check.evidence
    if evidence:
        if evidence.summary and line(evidence.summary) != check.cause:
            parts.append(Text(evidence.summary))
        rows = {"input": evidence.call, "expected": evidence.expected, "got": evidence.got, "worst at": evidence.index}
        parts += [labelled(name, text) for name, text in rows.items() if text]
        if evidence.frames:
            parts.append(frames_text(evidence.frames, source))
    if printed:
        parts.append(printed_text(printed))
    parts += [measure_text(m) for m in check.measures]
    if check.hints:
        more = f" (1 of {len(check.hints)}; {launcher()} hint {card.id} opens the next)" if len(check.hints) > 1 else ""
        parts.append(Text.assemble(("Hint: ", "cyan"), check.hints[0], (more, "dim")))
    if check.outcome == "failed":
        parts.append(Text(f"Again: {launcher()} check {card.id} --only {check.name}", style="dim"))
    return Group(parts[0], _indented(Group(*parts[1:]), 2))


def _indented(content: RenderableType, by: int, below: int = 0) -> Padding:
    return Padding(content, (0, 0, below, by), expand=False)


def labelled(name: str, text: str) -> RenderableType:
    """A row of evidence: its name in a column, its text beside it; long texts are cut."""
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"… {len(text.splitlines()) - MOST_LINES} more lines"]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8, style="dim", justify="right")
    grid.add_column(overflow="fold")
    grid.add_row(Text(name), Text("\n".join(lines)))
    return grid


def printed_text(text: str) -> RenderableType:
    """The row of evidence that holds what the submission printed: its last lines."""
    lines = plain(text).rstrip("\n").split("\n")
    before = len(lines) - MOST_PRINTED
    return labelled("printed", "\n".join([f"… {before} lines before"] * (before > 0) + lines[-MOST_PRINTED:]))


def place_text(evidence: Evidence, source: Path | str | None) -> Text:
    """Where a file cannot be read: the line with a caret where the compiler gave one, else the frames."""
    if not evidence.got or not evidence.frames:
        return frames_text(evidence.frames, source)
    place = evidence.frames[-1].partition(": ")[0]
    return frames_text([place], source).append(f"\n    {evidence.got.replace(chr(10), chr(10) + '    ')}")


_FRAME = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+)(?P<rest>.*)$", re.DOTALL)


def frames_text(frames: list[str], source: Path | str | None) -> Text:
    """Frames, innermost last. One in the graded file gets its path as seen from here, and a link terminals open. The
    same frame again and again, as of a recursion without end, is shown once.
    """
    lines = []
    path = Path(source) if source else None
    for frame, again in ((frame, len(list(group))) for frame, group in groupby(frames)):
        frame += f"  ({again} times)" if again > 1 else ""
        match = _FRAME.match(frame)
        if path is None or match is None or match["file"] != path.name:
            lines.append(Text(f"at {frame}"))
            continue
        place = f"{relative(path)}:{match['line']}"
        lines.append(Text.assemble("at ", (place, f"link {path.resolve().as_uri()}"), match["rest"]))
    return Text("\n").join(lines)


def relative(path: Path) -> Path:
    """The path as one would type it here; unchanged where it lies elsewhere."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def measure_text(measure: Measure, width: int = 30) -> Text:
    """A budget as text: ``██████▒▒▒▒│``, the part beyond the limit in another shade, the limit as a stroke. Where it was
    missed, below it the operators and lines that took most."""
    drawn = bar(measure)
    cells = [" "] * (width + 1)
    for i in range(width):
        place = 100 * (i + 0.5) / width
        if place <= drawn.measured:
            cells[i] = "█" if place <= drawn.beyond else "▒"
        else:
            cells[i] = "·"
    for mark in drawn.marks:
        if mark.role in ("limit", "floor"):
            cells[min(width, round(mark.at * width / 100))] = "│"
    limits = [f"{word} {amount(value, measure.unit)}" for word, value in
              (("at most", measure.at_most), ("at least", measure.at_least)) if value is not None]
    style = "green" if measure.ok else "red"
    remarks = [*limits, drawn.verdict, measure.trust.value, *(["log scale"] if drawn.log else [])]
    if measure.reference is not None:
        remarks.append(f"model answer {amount(measure.reference, measure.unit)}")
    text = Text("✓ " if measure.ok else "✗ ", style=style)
    text.append(f"{measure.name}: {amount(measure.value, measure.unit)}", style="none")
    text.append(f" ({', '.join(remarks)})", style="dim")
    text.append("\n  ").append("".join(cells).rstrip(), style=style)
    for spot in measure.spots[:MOST_SPOTS] if not measure.ok else ():
        at = f"  line {spot.line}" if spot.line is not None else ""
        text.append(f"\n  {amount(spot.value, measure.unit):>12}  {line(spot.label)}{at}")
    return text
