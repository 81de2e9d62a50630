"""The log -> what is in force."""

from __future__ import annotations

import pytest

from llmkata.course.by_hand import Pin
from llmkata.gradebook.in_force import by_hand, with_changes

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, course
from .by_hand import change, numbered, undo

ADA = ("ada", MATRIX_CALCULUS)
PLUS, MINUS = (
    change("adjust", "ada", points=2.0, of=10.0, text="a"),
    change("adjust", "ada", points=-1.0, of=10.0, text="b"),
)
MARK = change("rubric", "ada", points=1.0, of=2.0, criterion="style")
VOID = change("void", check="f::test_a", way="drop", text="Wrong")
SAID = change("comment", "ada", text="Good", staff=True)
FREEZE = change("freeze", pins={"ada": Pin("t", "s", 0.5)})
RELEASE = change("release", pins={"ada": Pin("t", "s", 0.5)})


def test_nothing_is_in_force_at_first() -> None:
    made = by_hand([])
    assert not any((made.adjustments, made.marks, made.comments, made.voids, made.freezes, made.released, made.waiting))


def test_each_action_where_it_belongs() -> None:
    made = by_hand(numbered(PLUS, MARK, SAID, VOID))
    (given,) = made.adjustments[ADA]
    assert (given.number, given.points, given.of, given.reason, given.by) == (1, 2.0, 10.0, "a", "Prof. Q")
    assert (made.marks[ADA]["style"].points, made.marks[ADA]["style"].most) == (1.0, 2.0)
    assert [(c.text, c.staff) for c in made.comments[ADA]] == [("Good", True)]
    assert (made.voids[MATRIX_CALCULUS]["f::test_a"].way, made.voids[MATRIX_CALCULUS]["f::test_a"].reason) == (
        "drop",
        "Wrong",
    )
    assert ("bob", MATRIX_CALCULUS) not in made.adjustments and KV_CACHE not in made.voids


def test_points_and_comments_add_up_and_the_last_mark_and_voiding_count() -> None:
    again, full = (
        change("rubric", "ada", points=2.0, of=2.0, criterion="style"),
        change("void", check="f::test_a", way="full"),
    )
    made = by_hand(numbered(PLUS, MINUS, MARK, again, SAID, SAID, VOID, full))
    assert [a.points for a in made.adjustments[ADA]] == [2.0, -1.0]
    assert made.marks[ADA]["style"].points == 2.0 and len(made.comments[ADA]) == 2
    assert made.voids[MATRIX_CALCULUS]["f::test_a"].way == "full"
    back = by_hand(numbered(MARK, again, undo(2)))
    assert back.marks[ADA]["style"].points == 1.0, "the mark before counts again"


@pytest.mark.parametrize("made", [PLUS, MARK, SAID, VOID, FREEZE, RELEASE])
def test_what_is_taken_back_is_as_if_it_had_never_been(made) -> None:
    assert by_hand(numbered(made, undo(1))) == by_hand([])
    assert by_hand(numbered(made)) != by_hand([])


@pytest.mark.parametrize("made", [change("regrade", "ada", before=1.0, after=2.0), change("forget", exercise="")])
def test_what_is_only_told_changes_nothing(made) -> None:
    assert by_hand(numbered(made)) == by_hand([])


# -- frozen ----------------------------------------------------------------------------------------------------------


def test_a_freeze_keeps_what_was_before_it_and_holds_what_comes_after() -> None:
    made = by_hand(numbered(PLUS, FREEZE, MINUS, MARK, SAID, VOID))
    assert [a.points for a in made.adjustments[ADA]] == [2.0] and not (made.marks or made.comments or made.voids)
    assert made.waiting == {MATRIX_CALCULUS: (3, 4, 5, 6)} and made.freezes[MATRIX_CALCULUS].number == 2
    assert made.pin("ada", MATRIX_CALCULUS) == Pin("t", "s", 0.5)
    assert made.pin("bob", MATRIX_CALCULUS) is None and made.pin("ada", KV_CACHE) is None
    live = by_hand(numbered(PLUS, FREEZE, MINUS, MARK, SAID, VOID), frozen=False)
    assert [a.points for a in live.adjustments[ADA]] == [2.0, -1.0] and live.marks and live.voids
    assert not live.freezes and not live.waiting


def test_other_exercises_are_not_frozen() -> None:
    other = change("adjust", "ada", KV_CACHE, points=1.0, of=10.0, text="x")
    made = by_hand(numbered(FREEZE, other))
    assert made.adjustments["ada", KV_CACHE] and not made.waiting


def test_frozen_again_it_is_put_into_force() -> None:
    made = by_hand(numbered(FREEZE, PLUS, FREEZE))
    assert [a.points for a in made.adjustments[ADA]] == [2.0] and not made.waiting
    assert made.freezes[MATRIX_CALCULUS].number == 3


def test_taking_back_waits_as_well() -> None:
    held = by_hand(numbered(PLUS, FREEZE, undo(1)))
    assert [a.points for a in held.adjustments[ADA]] == [2.0] and held.waiting == {MATRIX_CALCULUS: (3,)}
    assert not by_hand(numbered(PLUS, FREEZE, undo(1), FREEZE)).adjustments
    # What was made and taken back while it was frozen leaves nothing.
    assert not by_hand(numbered(FREEZE, PLUS, undo(2), FREEZE)).adjustments


def test_a_freeze_that_is_taken_back_ends_at_once() -> None:
    made = by_hand(numbered(FREEZE, PLUS, undo(1)))
    assert [a.points for a in made.adjustments[ADA]] == [2.0] and not made.freezes and not made.waiting
    older = by_hand(numbered(FREEZE, PLUS, FREEZE, MINUS, undo(3)))
    assert older.freezes[MATRIX_CALCULUS].number == 1, "the freeze before holds again"
    assert not older.adjustments and older.waiting == {MATRIX_CALCULUS: (2, 4)}


def test_a_release_freezes_and_tells_when() -> None:
    made = by_hand(numbered(RELEASE, PLUS))
    assert made.released == {MATRIX_CALCULUS: RELEASE.at} and made.waiting == {MATRIX_CALCULUS: (2,)}
    assert not by_hand(numbered(FREEZE)).released


def test_into_the_policy_of_a_course() -> None:
    before = course()
    made = with_changes(before, numbered(PLUS))
    assert made.policy.grading.by_hand == by_hand(numbered(PLUS)) and not before.policy.grading.by_hand.adjustments
    assert made.modules == before.modules and made.policy.weights == before.policy.weights
    assert not with_changes(before, numbered(FREEZE, PLUS)).policy.grading.by_hand.adjustments
    assert with_changes(before, numbered(FREEZE, PLUS), frozen=False).policy.grading.by_hand.adjustments
