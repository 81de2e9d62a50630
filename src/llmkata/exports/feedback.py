"""Feedback for handing back: a folder for each learner with their scorecard as HTML, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmkata.reports import scorecard

from .layout import folder_of

if TYPE_CHECKING:
    from llmkata.reports.view import Scorecard

    from .people import People
    from .results import Results


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``NAME/scorecard.html``, ``.md`` and ``.json``."""
    for learner, card in view.cards.items():
        for name, content in documents(card):
            yield f"{folder_of(learner)}/{name}", content


def documents(card: Scorecard) -> Iterator[tuple[str, bytes]]:
    """The files of one learner."""
    yield "scorecard.html", scorecard.to_html(card).encode()
    yield "scorecard.md", scorecard.to_markdown(card).encode()
    yield "scorecard.json", scorecard.to_json(card)
