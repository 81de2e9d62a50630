"""What people put beside the checks, on a card: points given, marks by the rubric, comments, voided checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from .policy import Audience
from .text import line, plain, points

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.policy import Grade

_BY = Annotated[str, Meta(description="Who did it; empty on a learner's card.")]


class GivenCard(msgspec.Struct, forbid_unknown_fields=True):
    """Points given or taken by hand, with the reason."""

    points: float
    reason: str
    at: str
    by: _BY


class MarkCard(msgspec.Struct, forbid_unknown_fields=True):
    """A criterion of the rubric."""

    name: str
    about: str
    points: Annotated[float | None, Meta(description="null: not marked yet; then it counts nowhere.")]
    max_points: float
    at: str
    by: _BY


class CommentCard(msgspec.Struct, forbid_unknown_fields=True):
    """A comment by hand."""

    text: str
    staff: Annotated[bool, Meta(description="For staff; not on a learner's card.")]
    at: str
    by: _BY


class HandCard(msgspec.Struct, forbid_unknown_fields=True):
    """What was done by hand in one exercise."""

    points: Annotated[float, Meta(description="Sum of the points given and taken.")] = 0
    percent: Annotated[float, Meta(description="What they change in percent of the points; it is in the exercise's percent.")] = 0
    given: list[GivenCard] = []
    rubric: list[MarkCard] = []
    comments: list[CommentCard] = []
    frozen: Annotated[str, Meta(description="Since when the grade is frozen; empty where it is not.")] = ""

    @property
    def told(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.given or self.rubric or self.comments)


def hand_card(course: Course, exercise: Exercise, learner: str, made: Grade, graded: bool, audience: Audience) -> HandCard:
    """``made``: the grade, adjustment included. ``graded``: whether there is work that could be marked by the rubric."""
    by_hand, pair = course.policy.grading.by_hand, (learner, exercise.id)
    freeze = by_hand.freezes.get(exercise.id)

    def who(name: str) -> str:
        return line(name) if audience == "staff" else ""

    given = [GivenCard(a.points, line(a.reason), line(a.at), who(a.by)) for a in by_hand.adjustments.get(pair, ())]
    marks = by_hand.marks.get(pair, {})
    rubric = []
    for criterion in exercise.rubric if graded else ():
        mark = marks.get(criterion.name)
        rubric.append(MarkCard(
            criterion.name, line(criterion.about), mark.points / mark.most * criterion.points if mark else None,
            criterion.points, line(mark.at) if mark else "", who(mark.by) if mark else "",
        ))  # fmt: skip
    comments = [
        CommentCard(plain(c.text).strip(), c.staff, line(c.at), who(c.by))
        for c in by_hand.comments.get(pair, ()) if audience == "staff" or not c.staff
    ]
    return HandCard(
        sum(a.points for a in given), 100 * made.adjustment, given, rubric, comments, line(freeze.at) if freeze else ""
    )


def voided(course: Course, exercise: str, check: str) -> str:
    """What became of a check that was found wrong, and why; "" for any other."""
    voiding = course.policy.grading.by_hand.voids.get(exercise, {}).get(check)
    if voiding is None:
        return ""
    effect = "Its points went to everybody" if voiding.way == "full" else "It counts for nobody"
    return f"This check was found wrong. {effect}: {line(voiding.reason)}"


def signed(value: float) -> str:
    """Points with their sign: ``+3``, ``−0.5``."""
    return f"{'−' if value < 0 else '+'}{points(abs(value))}"
