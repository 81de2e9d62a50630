"""T13: try again until chance is kind."""

from llmkata.checks import budgets
from llmkata.records import Outcome

from ..toy.harness import grade, named, outcomes, solution_with
from .arena import LOOP, race

GAMBLE = '''
import random
_right = magic
def magic(n):
    return _right(n) if random.random() < 0.8 else 0
'''
#: As slow as the baseline, and now and then a hundred times as slow: what is measured has any spread it likes.
NOISY = LOOP + '''
import os
def work(n):
    if os.urandom(1)[0] < 60:
        return [loop(n) for _ in range(12)][0]
    return loop(n)
'''


def test_chance_is_seeded():
    """Another attempt at the same checks is the same attempt."""
    tries = [outcomes(grade(solution_with(GAMBLE), only="test_magic", seed=5)) for _ in range(3)]
    assert tries[0] == tries[1] == tries[2]


def test_counts_do_not_vary(honest):
    again = named(grade(), "test_project_flops")
    assert [m.value for m in again.measures] == [m.value for m in named(honest, "test_project_flops").measures]


def test_noise_of_ones_own_buys_no_doubt(tmp_path, earns_nothing):
    """A comparison that stays undecided is not judged, and costs nothing: it must not be to be had."""
    earns_nothing(race(tmp_path).grade(NOISY), "test_faster")


def test_without_that_it_stays_undecided_for_long(monkeypatch):
    """By the spread of the ratios alone: half of the pairs say little, the other half much, and in both directions."""
    slow = [0.0, -2.5] * 30
    assert budgets._sequential(slow, -0.5, noise=0.1) is False
    assert budgets._sequential(slow[:12], -0.5) is None


def test_honest_work_passes(honest, tmp_path):
    assert named(honest, "test_magic").outcome is Outcome.passed and race(tmp_path).stands()
