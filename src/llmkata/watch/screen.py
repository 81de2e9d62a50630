"""What ``kata watch`` shows: the first failing check on top, the progress bar at the bottom, one line of keys."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State
from llmkata.reports.text import plain

from .judge import first_failure

KEYS = "h hint   n next   l list   c check all   r reset   s solution   q quit"


def screen(course: Any, exercise: Any, record: ExerciseRecord | None, *, hints: int, note: str, path: str,
           busy: bool, width: int) -> RenderableType:
    """The whole screen. ``record`` is None before the first verdict; ``hints`` levels of the failing check are open."""
    parts: list[RenderableType] = [Text(f"{exercise.number} {exercise.title}", style="bold")]
    if record is None:
        parts.append(Text("checking..."))
    else:
        parts += _verdict(record, hints)
    if busy and record is not None:
        parts.append(Text("checking...", style="dim"))
    if note:
        parts += [Text(""), Text(plain(note))]
    parts += [Text(""), _bar(exercise, record, width), Text(f"{path}", style="dim"), Text(KEYS, style="dim")]
    return Group(*parts)


def _verdict(record: ExerciseRecord, hints: int) -> list[RenderableType]:
    if record.state is State.not_started:
        return [Text("Not started yet: read the brief, open the file, begin with task 1.")]
    if record.state is not State.graded:
        lines = [Text(plain(record.cause), style="red")]
        return lines + [Text("  " + plain(f), style="cyan") for f in (record.evidence.frames if record.evidence else ())]
    failing = first_failure(record)
    if failing is None:
        return [Text("All visible checks pass.", style="green bold"),
                Text("Press c for the hidden ones, n for the next exercise.")]
    return _failing(failing, hints)


def _failing(c: CheckRecord, hints: int) -> list[RenderableType]:
    if c.cause.startswith("not started"):
        return [Text(f"task {c.task} is next: {plain(c.title)}"), Text("  " + plain(c.cause), style="dim")]
    out: list[RenderableType] = [Text(f"✗ task {c.task}: {plain(c.title)}", style="red bold")]
    if c.diagnosis is not None:
        out.append(Text("  → " + plain(c.diagnosis.feedback), style="yellow"))
    out.append(Text("  " + plain(c.cause)))
    e = c.evidence
    if e is not None:
        rows = (("call", e.call), ("expected", e.expected), ("got", e.got), ("worst at", e.index))
        out += [Text(f"  {label:>9} {plain(value)}") for label, value in rows if value]
        out += [Text("  " + plain(f), style="cyan") for f in e.frames]
    for m in c.measures:
        if not m.ok:
            limit = f"at most {m.at_most:.6g}" if m.at_most is not None else f"at least {m.at_least:.6g}"
            out.append(Text(f"  {plain(m.name)}: {m.value:.6g} {m.unit}, {limit}"))
    out += [Text(f"  hint {i + 1}: {plain(h)}", style="magenta") for i, h in enumerate(c.hints[:hints])]
    if len(c.hints) > hints:
        out.append(Text(f"  h opens hint {hints + 1} of {len(c.hints)}", style="dim"))
    return out


def _bar(exercise: Any, record: ExerciseRecord | None, width: int) -> Text:
    total = len(exercise.tasks)
    done = tasks_done(exercise, record)
    cells = max(10, min(40, width - 24))
    filled = cells * done // total if total else 0
    return Text("[" + "#" * filled + "-" * (cells - filled) + f"] {done}/{total} tasks")


def tasks_done(exercise: Any, record: ExerciseRecord | None) -> int:
    """Tasks all of whose checks passed (those not judged here do not count against one)."""
    if record is None:
        return 0
    by_task: dict[int, list[CheckRecord]] = {}
    for c in record.checks:
        if c.outcome is not Outcome.not_judged:
            by_task.setdefault(c.task, []).append(c)
    return sum(all(c.outcome is Outcome.passed for c in checks) for checks in by_task.values())
