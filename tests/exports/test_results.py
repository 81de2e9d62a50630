"""The view that every format is written from: what counts, out of what, and whose."""

from __future__ import annotations

import pytest

from llmkata.exports.results import results, unjudged
from llmkata.records import Outcome, State

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, SELF_ATTENTION, check, course, mastered, record
from .exporting import a_class, view


def scores(of, learner):
    return {e.id: of.score(learner, e) for e in of.exercises}


def test_what_counts_and_out_of_what():
    of = view()
    assert list(of.cards) == ["=1+1", "ann", "bob", "eve"]
    assert of.maxima == {MATRIX_CALCULUS: 20, SELF_ATTENTION: 43, KV_CACHE: 20}
    assert scores(of, "ann") == {MATRIX_CALCULUS: 20, SELF_ATTENTION: pytest.approx(20), KV_CACHE: 0}
    assert scores(of, "=1+1") == dict.fromkeys(of.maxima, 0)


def test_where_the_grader_failed_there_is_no_score():
    of = view()
    assert scores(of, "eve") == {MATRIX_CALCULUS: None, SELF_ATTENTION: 0, KV_CACHE: 0}
    assert unjudged(of) == ["eve: 0.1 Matrix Calculus"]
    assert unjudged(view([mastered("bob")])) == []


def test_the_weights_of_tiers_count():
    """Half of the core points, none of the stretch points, which the course weighs three times as much."""
    checks = [check("test_a", 1, points=5), check("test_b", 1, Outcome.failed, 5), check("test_c", 6, Outcome.failed, 10, tier="stretch")]
    of = results(course(core=1.0, stretch=3.0), [record("ann", checks=checks)])
    [attention] = [e for e in of.exercises if e.id == SELF_ATTENTION]
    assert of.score("ann", attention) == pytest.approx(20 * 5 / (10 + 30))


def test_only_what_was_asked_for():
    of = view(learners=["ann"])
    assert list(of.cards) == ["ann"]
    assert of.maxima[KV_CACHE] == 20, "what others reached still says what there is"
    narrowed = results(course().narrowed({KV_CACHE}), a_class())
    assert [e.id for e in narrowed.exercises] == [KV_CACHE]
    assert list(narrowed.cards) == ["ann", "bob"]


def test_the_record_that_stands_counts():
    old = mastered("ann")
    new = record("ann", MATRIX_CALCULUS, checks=[check("test_broadcast", 1, Outcome.failed)], graded_at="2027-01-01T00:00:00Z")
    of = results(course(), [new, old])
    assert scores(of, "ann")[MATRIX_CALCULUS] == 0


def test_what_no_record_tells_can_be_told():
    only = [record("ann", KV_CACHE, State.unreadable, cause="x")]
    assert view(only).maxima[KV_CACHE] == 0
    of = view(only, maxima={KV_CACHE: 30.0})
    assert of.maxima[KV_CACHE] == 30
    assert sum(line.max_score for line in of.lines("ann")) == 30


def test_lines_of_one_exercise():
    of = view()
    [kv] = [e for e in of.exercises if e.id == KV_CACHE]
    assert {line.exercise for line in of.lines("bob", kv)} == {KV_CACHE}
    assert {line.exercise for line in of.lines("bob")} == set(of.maxima)
