"""What a record comes to."""

from __future__ import annotations

import pytest

from llmkata.gradebook import Standing, entry, standing, total
from llmkata.records import CheckRecord, Outcome, State

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, SELF_ATTENTION, check, course, mastered, record

FAILED, SKIPPED = Outcome.failed, Outcome.not_judged


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([check("a", 1), check("b", 2, tier="stretch")], Standing.mastered),
        ([check("a", 1), check("b", 2, FAILED, tier="stretch")], Standing.passed),
        ([check("a", 1), check("b", 2, SKIPPED, tier="stretch")], Standing.passed),
        ([check("a", 1, FAILED), check("b", 2, tier="stretch")], Standing.in_progress),
        ([check("a", 1, SKIPPED), check("b", 2, tier="stretch")], Standing.in_progress),
        ([check("a", 1), check("b", 1, FAILED, points=0, visibility="visible")], Standing.in_progress),
        ([check("a", 1), check("b", 1, SKIPPED, points=0)], Standing.mastered),
        ([check("a", 1, SKIPPED, points=0)], Standing.in_progress),
        ([check("b", 2, tier="stretch")], Standing.in_progress),
        ([], Standing.in_progress),
    ],
)
def test_standing_of_a_graded_record(checks: list[CheckRecord], expected: Standing) -> None:
    assert standing(record("ada", checks=checks)) is expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.not_started, Standing.not_started),
        (State.missing, Standing.missing),
        (State.unreadable, Standing.unreadable),
        (State.infrastructure, Standing.infrastructure),
    ],
)
def test_a_record_without_a_verdict_earns_nothing_whatever_its_checks_say(state: State, expected: Standing) -> None:
    reached = entry(record("ada", state=state, checks=[check("a", 1)]))
    assert reached.standing is expected
    assert reached.points == 0
    assert reached.tasks_done == 0
    assert reached.fraction() == (None if state is State.infrastructure else 0.0)


def test_no_record_is_not_started() -> None:
    assert standing(None) is Standing.not_started


def test_tasks_and_points_are_sums_over_checks() -> None:
    reached = entry(
        record(
            "ada",
            checks=[
                check("a", 1, points=3),
                check("b", 1, FAILED, points=2),
                check("c", 2, points=5),
                check("d", 3, points=4, tier="stretch"),
            ],
        )
    )
    assert (reached.tasks_done, reached.tasks) == (2, 3)
    assert (reached.points, reached.max_points, reached.core_points, reached.core_max_points) == (12, 14, 8, 10)
    assert reached.fraction() == pytest.approx(12 / 14)


def test_a_tier_may_weigh_less() -> None:
    reached = entry(record("ada", checks=[check("a", 1, points=6), check("b", 2, FAILED, points=4, tier="stretch")]))
    assert reached.fraction(course(core=1, stretch=1).policy.weights) == pytest.approx(0.6)
    assert reached.fraction(course(core=1, stretch=0.5).policy.weights) == pytest.approx(6 / 8)
    assert reached.fraction(course(core=1, stretch=0).policy.weights) == 1.0


def test_the_total_is_weighted_and_what_was_not_handed_in_earns_nothing() -> None:
    entries = {MATRIX_CALCULUS: entry(mastered("ada"))}
    reached = total(course(), entries)
    assert reached.percent == pytest.approx(100 * 1 / (1 + 1 + 2))
    assert (reached.weight, reached.pending) == (4, 0)
    assert reached.standings == {Standing.mastered: 1, Standing.not_started: 2}


def test_planned_exercises_and_strangers_are_not_counted() -> None:
    entries = {
        name: entry(mastered("ada", name))
        for name in (MATRIX_CALCULUS, SELF_ATTENTION, KV_CACHE, "module2/transformer_encoder", "module9/unknown")
    }
    reached = total(course(), entries)
    assert reached.percent == 100
    assert sum(reached.standings.values()) == 3


def test_what_the_grader_failed_on_is_left_out() -> None:
    fault = entry(record("ada", KV_CACHE, State.infrastructure))
    reached = total(course(), {MATRIX_CALCULUS: entry(mastered("ada")), KV_CACHE: fault})
    assert reached.percent == pytest.approx(50)
    assert (reached.weight, reached.pending) == (2, 2)
    assert (
        total(course(), {e.id: entry(record("ada", e.id, State.infrastructure)) for e in course().available}).percent
        is None
    )
