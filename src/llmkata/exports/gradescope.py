"""Gradescope's ``results.json``, as its autograder reads it from ``/autograder/results/``.

Source: "Autograder Specifications", gradescope-autograders.readthedocs.io; the field names are those of
gradescope-utils.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .layout import folder_of, number, to_json
from .wording import explained, summary

if TYPE_CHECKING:
    from .items import Item
    from .people import People
    from .results import Results


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``NAME/results.json`` for each learner."""
    for learner in view.cards:
        yield f"{folder_of(learner)}/results.json", to_json(document(view, learner))


def document(view: Results, learner: str) -> dict[str, Any]:
    """The object of one learner. ``score`` is what counts, which differs from the sum of the tests where the course
    weighs tiers or a policy takes points off; an exercise the grader failed on has no test and adds nothing.
    """
    cards = [view.card(learner, exercise) for exercise in view.exercises]
    scores = [score for exercise in view.exercises if (score := view.score(learner, exercise)) is not None]
    lines = view.lines(learner)
    return {
        "score": number(sum(scores)),
        "execution_time": round(sum(line.seconds for line in lines), 3),
        "output": "\n".join(summary(card) for card in cards),
        "output_format": "text",
        "test_output_format": "text",
        "visibility": "visible",
        # What a submission printed is in no export; nothing of the autograder's own output is shown.
        "stdout_visibility": "hidden",
        "tests": [_test(line) for line in lines if line.max_score or line.status != "error"],
        "leaderboard": [],
        "extra_data": {"exercises": {
            card.id: {"state": card.standing.value, "points": number(card.points), "max_points": number(view.maxima[card.id])}
            for card in cards
        }},
    }  # fmt: skip


def _test(line: Item) -> dict[str, Any]:
    test: dict[str, Any] = {
        "name": line.name,
        "name_format": "text",
        "score": number(line.score),
        "max_score": number(line.max_score),
        "status": "passed" if line.status == "pass" else "failed",
        "number": f"{line.name.partition(' ')[0]}.{line.task}" if line.task else line.name.partition(" ")[0],
        "output": explained(line),
        "output_format": "text",
        "tags": [line.exercise, line.tier],
        "visibility": "visible",
    }
    if line.check:
        test["extra_data"] = {"check": line.check.id, "kind": line.check.kind, "outcome": line.check.outcome.value}
    return test
