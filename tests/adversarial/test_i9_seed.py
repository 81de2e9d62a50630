"""I9: learn or guess the seed, and with it every input that is yet to come."""

import numpy as np
import pytest

from llmkata.checks.context import seed_for
from llmkata.records import Outcome

from ..toy.harness import TOY, grade, named, solution_with
from .acts import passes

#: The random state a check begins with is the submission's to read: its seed must not be that of the inputs.
READ = '''
import random
import numpy as np
import torch

_right = magic
_asked = []
def magic(n):
    """Right only where the stream of inputs follows from a seed that is found in this process."""
    _asked.append(n)
    for seed in (torch.initial_seed(), torch.initial_seed() >> 1, *_session_seeds()):
        if np.random.default_rng(seed).integers(0, 2**31, 5).tolist()[: len(_asked)] == _asked:
            return _right(n)
    return 0

def _session_seeds():
    import gc
    return [o["seed"] for o in gc.get_objects() if type(o) is dict and type(o.get("seed")) is int]
'''


def table(seed):
    """Answers to the inputs of a run with that seed, by their place in the order."""
    numbers = np.random.default_rng(seed_for(seed, f"{TOY.id}/test_correctness.py::test_magic")).integers(0, 2**31, 5)
    answers = [(48271 * n + 11) % 2147483647 for n in numbers.tolist()]
    return solution_with(f"_answers = iter({answers})\ndef magic(n): return next(_answers, 0)")


def test_the_seed_is_not_in_the_process(earns_nothing):
    earns_nothing(grade(solution_with(READ), only="test_magic"), "test_magic")
    earns_nothing(grade(solution_with(READ), only="test_magic", seed=0x5EED), "test_magic")


def test_answers_to_another_seed_are_worth_nothing(earns_nothing):
    earns_nothing(grade(table(0), only="test_magic", seed=1), "test_magic")


@pytest.mark.parametrize("seed", [0, 1])
def test_honest_work_passes(seed):
    assert named(grade(only="test_magic", seed=seed), "test_magic").outcome is Outcome.passed


def test_whoever_knows_the_seed_knows_the_answers():
    assert passes(table(0), seed=0)


def test_a_worker_that_is_told_the_seed_tells_it(monkeypatch):
    from llmkata.outside import link

    monkeypatch.setattr(link, "seed_of_submission", lambda seed: seed)
    assert passes(solution_with(READ))
