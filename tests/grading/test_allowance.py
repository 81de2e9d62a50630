"""How often hidden checks may be asked."""

from __future__ import annotations

import datetime

import pytest

from llmkata.grading.allowance import Allowance, ask
from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)


def judged(
    sha: str, hours_ago: float, *, learner: str = "ann", state: State = State.graded, hidden: bool = True
) -> ExerciseRecord:
    check = CheckRecord(
        "t.py::test_a", "T", 1, "core", 1, 0, Outcome.failed, visibility="hidden" if hidden else "visible"
    )
    stamp = (NOON - datetime.timedelta(hours=hours_ago)).isoformat()
    return ExerciseRecord(learner, "m/x", state, [check], submission_sha=sha, graded_at=stamp)


def answer(ledger: list[ExerciseRecord], sha: str = "new", attempts: int = 2):
    return ask(Allowance(attempts, 24), ledger, learner="ann", exercise="m/x", submission_sha=sha, now=NOON)


def test_the_first_attempts_are_allowed_and_then_one_waits_for_the_oldest_to_leave_the_window() -> None:
    assert answer([]).allowed
    assert answer([judged("a", 5)]).used == 2
    refused = answer([judged("a", 5), judged("b", 1)])
    assert not refused.allowed
    assert refused.next_at == NOON + datetime.timedelta(hours=19)
    assert answer([judged("a", 25), judged("b", 1)]).allowed
    assert answer([judged("a", 25), judged("b", 1)]).total == 3


def test_next_is_told_where_the_window_holds_more_than_is_allowed_now() -> None:
    assert answer([judged("a", 9), judged("b", 5), judged("c", 1)]).next_at == NOON + datetime.timedelta(hours=19)


@pytest.mark.parametrize(
    "free",
    [
        judged("b", 1, learner="bob"),
        judged("b", 1, state=State.infrastructure),
        judged("b", 1, hidden=False),
        judged("a", 1),
        judged("b", 1, state=State.missing),
    ],
)
def test_what_is_no_attempt_uses_nothing_up(free: ExerciseRecord) -> None:
    assert answer([judged("a", 5), free]).allowed


def test_the_same_file_may_be_judged_again_though_all_is_used_up() -> None:
    ledger = [judged("a", 5), judged("b", 1)]
    assert answer(ledger, sha="a").allowed
    assert not answer(ledger, sha="c").allowed


def test_a_file_that_breaks_on_import_is_an_attempt() -> None:
    assert not answer([judged("a", 5), judged("b", 1, state=State.unreadable)]).allowed


def test_without_an_allowance_attempts_are_only_counted() -> None:
    told = ask(None, [judged("a", 5)] * 3, learner="ann", exercise="m/x", submission_sha="b", now=NOON)
    assert (told.allowed, told.total) == (True, 2)


def test_a_stamp_that_cannot_be_read_is_long_ago() -> None:
    old = judged("b", 0)
    old.graded_at = "yesterday"
    assert answer([judged("a", 5), old]).allowed
