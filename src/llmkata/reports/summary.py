"""The job summary of a run of continuous integration, as GitHub-flavoured Markdown."""

from __future__ import annotations

import msgspec

from llmkata.gradebook.standing import Standing

from . import pages
from .scorecard import squeezed
from .view import ExerciseCard, Scorecard

_SIGNS = {
    Standing.in_progress: "◐",
    Standing.passed: "✓",
    Standing.mastered: "★",
    Standing.unreadable: "✗",
    Standing.infrastructure: "–",
    Standing.not_started: "○",
    Standing.missing: "○",
}


def to_summary(card: Scorecard, headline: str) -> str:
    """The exercises that were begun: a table, then what failed in each, with mistakes, evidence and budgets."""
    untouched = (Standing.not_started, Standing.missing)
    begun = [_with_first_hints(e) for e in card.exercises if e.standing not in untouched]
    waiting = [e.number for e in card.exercises if e.standing in untouched]
    text = (
        pages.markdown()
        .get_template("summary.md")
        .render(
            card=msgspec.structs.replace(card, exercises=begun),
            headline=headline,
            waiting=waiting,
            signs=_SIGNS,
            by_points=any(e.max_points for e in begun),
            first=_first,
        )
    )
    return squeezed(text)


def _with_first_hints(exercise: ExerciseCard) -> ExerciseCard:
    """Hints open one level at a time, and who reads a summary has opened none."""
    changed = msgspec.structs.replace
    tasks = [changed(t, checks=[changed(c, hints=c.hints[:1]) for c in t.checks]) for t in exercise.tasks]
    return changed(exercise, tasks=tasks)


def _first(exercise: ExerciseCard) -> str:
    """What to look at first: the recognised mistake or the title of the check, or why there is nothing to grade."""
    for task in exercise.tasks:
        for check in task.checks:
            if check.id == exercise.next_check:
                return f"task {task.number}: {check.title}"
    return exercise.cause
