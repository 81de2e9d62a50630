"""Plain JSON: the scorecards of a class, each as ``llmkata/scorecard/v1`` says (docs/scorecard.schema.json)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from .people import People
    from .results import Results

SCHEMA = "llmkata/class/v1"


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``{schema, course, max_points: {exercise: points}, scorecards: [...]}``."""
    document = {
        "schema": SCHEMA,
        "course": view.course.title,
        "max_points": {exercise.id: view.maxima[exercise.id] for exercise in view.exercises},
        "scorecards": list(view.cards.values()),
    }
    yield "results.json", msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
