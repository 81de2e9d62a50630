"""Plain CSV in long form: a line for each learner and exercise, for a spreadsheet, pandas or R."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .layout import number, to_csv

if TYPE_CHECKING:
    from .people import People
    from .results import Results

COLUMNS = (
    "learner", "exercise", "number", "title", "state", "score", "points", "max_points", "percent", "deduction", "late",
    "tasks_done", "tasks", "weight", "submitted_at", "graded_at", "by_hand", "by_hand_reason", "comments",
)  # fmt: skip


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``score`` is what counts, out of ``max_points``, ``deduction`` what lateness costs, in percent; empty, as ``percent``
    and ``points`` are, where the grader failed. ``by_hand``: points given, which ``score`` holds and ``points`` does not.
    """
    rows: list[list[object]] = [list(COLUMNS)]
    for learner, card in view.cards.items():
        for exercise in view.exercises:
            c, score = view.card(learner, exercise), view.score(learner, exercise)
            judged = score is not None
            rows.append([
                card.learner, c.id, c.number, c.title, c.standing.value,
                number(score) if judged else "", number(c.points) if judged else "", number(view.maxima[c.id]),
                round(c.percent, 4) if c.percent is not None else "", round(c.deduction, 4) if judged else "", c.late,
                c.tasks_done, c.tasks_total, number(c.weight), c.submitted_at, c.graded_at,
                number(c.by_hand.points) if c.by_hand.given else "", "; ".join(g.reason for g in c.by_hand.given),
                "; ".join(comment.text for comment in c.by_hand.comments),
            ])  # fmt: skip
    yield "results.csv", to_csv(rows)
