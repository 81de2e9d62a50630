"""A scorecard as HTML, Markdown and JSON, written from :class:`.view.Scorecard` alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from llmkata.gradebook.standing import Standing

from . import pages
from .view import ExerciseCard, Scorecard


@dataclass(frozen=True)
class Share:
    """An exercise in the bar of the total: its width is its weight, what is filled its points; in percent."""

    number: str
    title: str
    percent: float | None
    x: float
    width: float
    filled: float


def to_html(card: Scorecard) -> str:
    """The card as one self-contained HTML file: no network, no other file."""
    told, bare = _apart(card)
    given = {"card": card, "told": told, "bare": bare, "shares": _shares(card), "script": "card.js"}
    return pages.html().get_template("scorecard.html").render(given)


def to_markdown(card: Scorecard) -> str:
    """The card as GitHub-flavoured Markdown."""
    return squeezed(pages.markdown().get_template("scorecard.md").render(card=card, detailed=_apart(card)[0]))


def squeezed(text: str) -> str:
    """Markdown with one empty line in place of several, except in fenced blocks."""
    return _FENCE_OR_GAP.sub(lambda match: match[0] if match[1] else "\n\n", text)


def to_json(card: Scorecard) -> bytes:
    """The card as JSON, ``llmkata/scorecard/v1`` (docs/scorecard.schema.json)."""
    return msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n"


#: A fenced block, which keeps its blank lines, or a run of blank lines outside one.
_FENCE_OR_GAP = re.compile(r"^(`{3,})text\n.*?\n\1$|\n{3,}", re.DOTALL | re.MULTILINE)


def _apart(card: Scorecard) -> tuple[list[ExerciseCard], list[ExerciseCard]]:
    """Exercises with something to tell, and those that nobody has touched, which would bury them; all are told where
    there are no others.
    """
    bare = [e for e in card.exercises if not (
        e.standing is not Standing.not_started or e.graded_at or e.history or e.hints_opened or e.given_up or e.by_hand.told
    )]  # fmt: skip
    told = [e for e in card.exercises if e not in bare]
    return (told, bare) if told else (bare, [])


def _shares(card: Scorecard) -> list[Share]:
    """Where each exercise that counts lies on the bar, with a gap of half a percent between neighbours. What is left
    out of the total, or comes on top of it, is no part of the bar; what goes beyond 100 % fills no more than the whole.
    """
    counting = [e for e in card.exercises if e.counted and e.weight > 0 and not e.dropped and not e.extra]
    gap = 0.5
    room = (100.0 - gap * (len(counting) - 1)) / (sum(exercise.weight for exercise in counting) or 1.0)
    shares, x = [], 0.0
    for exercise in counting:
        width = exercise.weight * room
        filled = width * min(1.0, (exercise.percent or 0.0) / 100)
        shares.append(Share(
            exercise.number, exercise.title, exercise.percent, round(x, 3), round(width, 3), round(filled, 3)
        ))
        x += width + gap
    return shares
