"""``results.json`` of PrairieLearn's external graders, a file for each exercise (a question there).

Source: prairielearn.readthedocs.io, "External Grading", "Grading results".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkata.gradebook.standing import Standing

from .layout import folder_of, number, to_json
from .wording import explained, summary

if TYPE_CHECKING:
    from llmkata.course import Exercise

    from .items import Item
    from .people import People
    from .results import Results


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``NAME/moduleN/SLUG/results.json`` for each learner and exercise."""
    for learner in view.cards:
        for exercise in view.exercises:
            content = to_json(document(view, learner, exercise))
            yield f"{folder_of(learner)}/{exercise.id}/results.json", content


def document(view: Results, learner: str, exercise: Exercise) -> dict[str, Any]:
    """The object of one exercise. ``gradable`` is false where there is nothing to grade or the grader failed: then
    PrairieLearn takes no points away.
    """
    card = view.card(learner, exercise)
    judged = card.standing not in (Standing.unreadable, Standing.missing, Standing.infrastructure)
    gradable = judged or bool(card.by_hand.given and card.percent is not None)
    found: dict[str, Any] = {
        "gradable": gradable,
        # PrairieLearn knows no more than all.
        "score": round(min(1.0, (card.percent or 0.0) / 100), 9),
        "message": summary(card),
        "output": "",
        "images": [],
        # A line of no check is one that was given by hand, or what lateness costs; where nothing was graded, the exercise.
        "tests": [_test(line) for line in view.lines(learner, exercise) if line.check or line.status == "pass"],
    }
    return found if gradable else found | {"format_errors": [summary(card)]}


def _test(line: Item) -> dict[str, Any]:
    return {
        "name": line.name,
        "description": line.check.name if line.check else "",
        "points": number(line.score),
        "max_points": number(line.max_score),
        "message": line.message,
        "output": explained(line),
        "images": [],
    }
