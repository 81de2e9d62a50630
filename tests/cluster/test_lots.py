"""Dealing out: everything once, what was lost by itself again, and not for ever."""

from __future__ import annotations

import pytest

from llmkata.cluster.lots import TRIES, Lots
from llmkata.grading.submission import Submission


def handed_in(**counts):
    return [Submission(f"{name}{n}", f"module1/{name}", b"") for name, count in counts.items() for n in range(count)]


def dealt(lots, workers, at_once):
    found = []
    while lots:
        found.append(lots.deal(workers, at_once).numbers)
    return found


@pytest.mark.parametrize(("workers", "at_once"), [(1, 1), (2, 1), (3, 4), (500, 1), (1, 64)])
def test_everything_once_and_no_lot_of_two_exercises(workers, at_once):
    submissions = handed_in(a=37, b=2, c=61)
    found = dealt(Lots(submissions), workers, at_once)
    assert sorted(n for numbers in found for n in numbers) == list(range(100))
    assert all(len({submissions[n].exercise_id for n in numbers}) == 1 for numbers in found)
    assert max(map(len, found)) <= 4 * at_once, "as long as nothing is known of what they take"


def test_lots_get_smaller_towards_the_end():
    sizes = [len(numbers) for numbers in dealt(Lots(handed_in(a=40)), 2, 1)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 and sizes[-1] == 1
    # What a worker grades at once stays together as long as there is as much.
    assert [len(numbers) for numbers in dealt(Lots(handed_in(a=40)), 2, 8)] == [10, 8, 8, 8, 6]


@pytest.mark.parametrize(("pace", "at_once"), [(1 / 64, 1), (1 / 16, 1), (1 / 2, 1), (1 / 2, 4), (64.0, 3)])
def test_lots_are_of_some_seconds(monkeypatch, pace, at_once):
    now = [0.0]
    monkeypatch.setattr("llmkata.cluster.lots.time.monotonic", lambda: now[0])
    lots, left, found = Lots(handed_in(a=400)), 400, []
    while lots:
        lot = lots.deal(2, at_once)
        size = len(lot.numbers)
        now[0] += pace * size
        lots.graded(lot)
        if found:  # of the first nothing was known
            assert size <= at_once or pace * size <= 10, "a lost worker costs some seconds"
            assert size >= min(at_once, left) and (pace * size >= 1 or size >= left // 2), "each lot costs a start"
        found.append(size)
        left -= size
    assert left == 0 and found[0] == 4 * at_once and found[1:] == sorted(found[1:], reverse=True)
    assert len(found) < 20 or pace > 1 / 16


def test_what_one_exercise_takes_says_nothing_of_another(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("llmkata.cluster.lots.time.monotonic", lambda: now[0])
    lots = Lots(handed_in(a=4, b=100))
    first = lots.deal(2, 1)
    now[0] += 0.01
    lots.graded(first)
    assert len(lots.deal(2, 1).numbers) == 4


def test_exercises_one_after_the_other():
    mixed = [s for pair in zip(handed_in(a=9), handed_in(b=9), strict=True) for s in pair]
    order = [mixed[n].exercise_id for numbers in dealt(Lots(mixed), 2, 1) for n in numbers]
    assert order == sorted(order)


def test_a_lost_lot_comes_again_one_by_one_and_the_one_at_fault_is_given_up():
    lots = Lots(handed_in(a=4))
    lot = lots.deal(1, 4)
    assert lot.numbers == (0, 1, 2, 3) and not lots
    assert lots.lost(lot) == []
    given_up, tries = [], 0
    while lots:
        alone = lots.deal(1, 4)
        assert len(alone.numbers) == 1
        if alone.numbers == (2,):
            tries += 1
            given_up += lots.lost(alone)
    assert given_up == [2] and tries == TRIES


def test_no_dealing_from_nothing():
    assert not Lots([])
    with pytest.raises(IndexError):
        Lots([]).deal(1, 1)
