"""What a learner is told of a check, as plain text of several lines: for systems that show a text beside each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkata.gradebook.standing import Standing
from llmkata.records import NOT_STARTED
from llmkata.reports.by_hand import signed
from llmkata.reports.figures import verdict
from llmkata.reports.text import amount, percent, points

if TYPE_CHECKING:
    from llmkata.reports.view import CheckCard, ExerciseCard, Scorecard

    from .items import Item


def explained(item: Item) -> str:
    """Cause, recognised mistake, input, first hint, budgets, the command that runs it again. Empty where it passed and
    nothing was measured.
    """
    parts = _of_check(item.check) if item.check else [item.message]
    if item.status != "pass":
        parts.append(f"Again: {item.command}")
    return "\n".join(part for part in parts if part)


def _of_check(check: CheckCard) -> list[str]:
    parts = [] if check.outcome == "passed" else [check.cause]
    if check.diagnosis:
        parts.append(check.diagnosis.feedback)
    elif check.hints:
        parts.append(f"Hint: {check.hints[0]}")
    if check.evidence:
        rows = {"Input": check.evidence.call, "Expected": check.evidence.expected, "Got": check.evidence.got}
        parts += [f"{name}: {text}" for name, text in rows.items() if text]
    return parts + [f"{m.name}: {amount(m.value, m.unit)}, {verdict(m)}" for m in check.measures]


def summary(card: ExerciseCard) -> str:
    """One exercise in a sentence or two, lateness and what it costs included."""
    head = f"{card.number} {card.title}: {card.standing.value}"
    if card.standing in (Standing.infrastructure, Standing.missing, Standing.unreadable, Standing.not_started):
        return f"{head}. {card.cause}".rstrip(". ") + f".{_by_hand(card)}"
    told = f"{head}, {points(card.points)} of {points(card.max_points)} points, {card.tasks_done} of {card.tasks_total} tasks."
    if not card.late:
        return f"{told}{_by_hand(card)}"
    counted = (card.percent or 0.0) - card.by_hand.percent
    return f"{told} {f'{percent(counted)} count: ' if card.deduction else ''}{card.late}.{_by_hand(card)}"


def _by_hand(card: ExerciseCard) -> str:
    """Marks, points given and comments, after the rest."""
    hand = card.by_hand
    said = [
        f"{m.name}: {points(m.points)} of {points(m.max_points)}" for m in hand.rubric if m.points is not None
    ]  # fmt: skip
    said += [f"{signed(g.points)} point{'s' if abs(g.points) != 1 else ''} by hand: {g.reason}" for g in hand.given]
    said += [" ".join(c.text.split()) for c in hand.comments]
    counted = f" {percent(card.percent)} count." if hand.given else ""
    return "".join(f" {text.rstrip('.')}." for text in said) + counted


def comment(card: Scorecard) -> str:
    """A learner's result as a comment: the total, then a line an exercise that counts with what to look at first."""
    lines = [f"{card.course}: {percent(card.total.percent)}"]
    for exercise in card.exercises:
        if not exercise.counted:
            continue
        lines.append(summary(exercise))
        first = next((c for t in exercise.tasks for c in t.checks if c.id == exercise.next_check), None)
        if first is not None and not first.cause.startswith(NOT_STARTED):
            lines.append(f"    Look first at: {first.title} {first.diagnosis.feedback if first.diagnosis else first.cause}")
    return "\n".join(lines)
