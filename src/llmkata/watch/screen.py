"""What ``kata watch`` shows: the first failing check on top, the progress bar at the bottom, one line of keys.

The screen is as high as the window: what does not fit between top and bottom is cut, and told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.text import Text

from llmkata.course.launcher import launcher
from llmkata.gradebook.standing import task_done
from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State
from llmkata.reports.terminal import frames_text, labelled, measure_text, place_text, printed_text, relative
from llmkata.reports.text import plain

from .judge import first_failure

KEYS = (("h", "hint"), ("n", "next"), ("l", "list"), ("c", "check all"), ("r", "reset"), ("s", "solution"), ("q", "quit"))
#: Columns of the text; wider windows leave the rest free.
WIDEST = 120


@dataclass
class View:
    """What is to be shown."""

    exercise: Any
    #: None before the first verdict.
    record: ExerciseRecord | None
    #: Whether a run is under way.
    busy: bool
    #: Opened hints of the failing check.
    hints: int = 0
    #: Something said below the verdict: a list, an answer to a key.
    note: str = ""
    #: What the verdict covers, as "visible checks".
    scope: str = "visible checks"
    #: Whether keys can be pressed.
    keys: bool = True
    #: Checks that have passed in the run under way.
    so_far: int = 0
    #: How many are still to come, where only such are left as took long the last time.
    slow: int = 0
    #: What was printed during the failing check.
    printed: str = ""
    #: When the verdict was reached, as "14:03:27".
    at: str = ""


def paint(view: View, console: Console, height: int) -> str:
    """The whole screen, ``height`` lines, ready to be written over what is there. In a low window evidence gives way
    to what must be seen: the check that fails, its hints, the answer to a key, the bar."""
    width = min(console.width, WIDEST)
    head, evidence, tail = (_lines(console, part, width) for part in _parts(view))
    bottom = _lines(console, foot(view, width), width)
    room = max(height - len(bottom), 1)
    left = room - len(head) - len(tail)
    if len(evidence) > left:
        hidden = len(evidence) - max(left - 1, 0)
        evidence = evidence[: max(left - 1, 0)] + [[Segment(f"  … {hidden} more lines in a higher window")]]
    top = (head + evidence + tail)[:room]
    lines = [*top, *([[]] * (room - len(top))), *bottom][:height]
    return "\n".join(_ansi(console, line) + "\x1b[K" for line in lines)


def body(view: View) -> list[RenderableType]:
    """What stands above the progress bar."""
    return [part for group in _parts(view) for part in group]


def _parts(view: View) -> tuple[list[RenderableType], list[RenderableType], list[RenderableType]]:
    """What must be seen, evidence, and what must be seen below it."""
    head = Text(f"{view.exercise.number} {view.exercise.title}", style="bold")
    note = [Text(""), Text(plain(view.note))] if view.note else []
    if view.record is None:
        return [head, Text("checking...")], [], note
    head.append(f"  {_now(view)}", style="not bold dim")
    failing = first_failure(view.record) if view.record.state is State.graded else None
    if failing is None:
        return [head], _verdict(view), note
    first, *evidence = _failing(failing, view)
    return [head, first], evidence, [*_hints(failing, view), *note]


def _now(view: View) -> str:
    if view.busy:
        slow = f", {view.slow} that take{'s' * (view.slow == 1)} longer still to come" if view.slow else ""
        return f"checking... {view.so_far} passed so far{slow}" if view.so_far or slow else "checking..."
    judged = [c for c in view.record.checks if not c.excused] if view.record.state is State.graded else []
    passed = sum(c.outcome is Outcome.passed for c in judged)
    return f"{view.at}  {passed} of {len(judged)} checks pass" if judged else view.at


def foot(view: View, width: int) -> list[RenderableType]:
    """Progress, file, keys."""
    path = view.exercise.stub
    place = Text(str(relative(path)), style=f"dim link {path.as_uri()}")
    bar = progress(view.exercise, view.record, width)
    wide = width >= 72
    keys = Text("   " if wide else "  ").join(
        Text.assemble((key, "bold"), f" {word if wide else word.split()[0]}", style="dim") for key, word in KEYS)
    return [Text(""), bar, place] + ([keys] if view.keys else [])


def progress(exercise: Any, record: ExerciseRecord | None, width: int) -> Text:
    """``[#####-----] 1/4 tasks   ✓1 ✗2 ○3 ○4``."""
    states = task_states(exercise, record)
    done, total = sum(sign == "✓" for _, sign, _ in states), len(states)
    tail = "  ".join(f"{sign}{number}" for number, sign, _ in states)
    cells = max(8, min(40, width - len(tail) - 18))
    filled = cells * done // total if total else 0
    text = Text(f"[{'#' * filled}{'-' * (cells - filled)}] {done}/{total} tasks   ")
    for number, sign, style in states:
        text.append(f"{sign}{number}", style=style).append("  ")
    text.rstrip()
    return text


def task_states(exercise: Any, record: ExerciseRecord | None) -> list[tuple[int, str, str]]:
    """(number, sign, style) of each task: ✓ done, ✗ a check fails, ◐ right as far as it goes, ○ not begun, – cannot
    be judged here."""
    checks: dict[int, list[CheckRecord]] = {task.number: [] for task in exercise.tasks}
    for check in record.checks if record is not None else ():
        checks.setdefault(check.task, []).append(check)
    return [(number, *_task_state(group)) for number, group in sorted(checks.items())]


def _task_state(checks: list[CheckRecord]) -> tuple[str, str]:
    judged = [c for c in checks if c.outcome is not Outcome.not_judged]
    if task_done(checks):
        return "✓", "green"
    if all(_not_begun(c) for c in judged):
        return ("○", "dim") if judged or not checks else ("–", "dim")
    if any(c.outcome is Outcome.failed and not _not_begun(c) for c in judged):
        return "✗", "red"
    return "◐", "yellow"


def _not_begun(c: CheckRecord) -> bool:
    return c.cause.startswith("not started")


def _verdict(view: View) -> list[RenderableType]:
    """Of a record without a failed check."""
    record, exercise = view.record, view.exercise
    if record.state is State.not_started:
        return [Text("Nothing written yet. Read the brief, open the file, begin with task 1; this screen follows each save."),
                Text(f"  brief {relative(exercise.brief)}", style=f"link {exercise.brief.as_uri()}")]
    if record.state is not State.graded:
        parts: list[RenderableType] = [Text(f"✗ {plain(record.cause)}", style="red")]
        if record.evidence is not None and record.evidence.frames:
            parts.append(Padding(place_text(record.evidence, exercise.stub), (0, 0, 0, 2)))
        return parts
    done: list[RenderableType] = [Text(f"✓ All {view.scope} pass.", style="green bold")]
    skipped = [c for c in record.checks if c.outcome is Outcome.not_judged]
    done += [Text(f"  – not judged: {plain(c.title)} {plain(c.cause)}", style="dim") for c in skipped]
    if view.keys:
        done.append(Text("c checks everything as an instructor does; n goes on to the next exercise."))
    done += [Padding(measure_text(m), (0, 0, 0, 2)) for c in record.checks for m in c.measures]
    return done


def _failing(c: CheckRecord, view: View) -> list[RenderableType]:
    name = c.id.rpartition("::")[2]
    if _not_begun(c):
        begun = any(other.task == c.task and not _not_begun(other) for other in view.record.checks)
        head = f"◐ Task {c.task} goes on" if begun else f"○ Task {c.task} is next"
        parts: list[RenderableType] = [Text(f"{head}: {plain(c.title)}", style="bold"),
                                       Text("  " + plain(c.cause).removeprefix("not started: "), style="dim")]
        if c.evidence is not None and c.evidence.frames:
            parts.append(Padding(frames_text(c.evidence.frames, view.exercise.stub), (0, 0, 0, 2)))
        return parts
    inner: list[RenderableType] = []
    if c.diagnosis is not None:
        inner.append(Text("→ " + plain(c.diagnosis.feedback), style="bold yellow"))
    inner.append(Text(plain(c.cause)))
    if (e := c.evidence) is not None:
        rows = (("input", e.call), ("expected", e.expected), ("got", e.got), ("worst at", e.index))
        inner += [labelled(label, plain(text)) for label, text in rows if text]
        if e.frames:
            inner.append(frames_text(e.frames, view.exercise.stub))
    if view.printed:
        inner.append(printed_text(view.printed))
    inner += [measure_text(m) for m in c.measures]
    top = Text(f"✗ Task {c.task}: {plain(c.title)}", style="red bold")
    return [top, *(Padding(part, (0, 0, 0, 2)) for part in inner),
            Text(f"  only this check: {launcher()} check {view.exercise.id} --only {name}", style="dim")]


def _hints(c: CheckRecord, view: View) -> list[RenderableType]:
    opened = [Padding(Text(f"hint {i + 1}: {plain(h)}", style="magenta"), (0, 0, 0, 2)) for i, h in enumerate(c.hints[: view.hints])]
    if view.keys and len(c.hints) > view.hints:
        opened.append(Text(f"  h opens hint {view.hints + 1} of {len(c.hints)}", style="dim"))
    return opened


def _lines(console: Console, parts: list[RenderableType], width: int) -> list[list[Segment]]:
    options = console.options.update(width=width, height=None)
    return [line for part in parts for line in console.render_lines(part, options, pad=False)]


def _ansi(console: Console, line: list[Segment]) -> str:
    with console.capture() as written:
        console.print(Segments(line), end="", crop=False)
    return written.get()
