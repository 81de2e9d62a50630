"""I8: recognise a test by the shape of its input, and answer from a store."""

import torch

from llmkata.checks.context import seed_for
from llmkata.records import Outcome

from ..toy.harness import TOY, grade, named, solution_with


def store(seed):
    """Answers of a run with that seed, by the shapes of the inputs."""
    generator = torch.Generator().manual_seed(seed_for(seed, f"{TOY.id}/test_correctness.py::test_project"))
    x, w = torch.randn(3, 4, generator=generator), torch.randn(4, 2, generator=generator)
    return solution_with(f'''
import torch
_store = {{((3, 4), (4, 2)): {(x @ w).tolist()}}}
def project(x, w):
    return torch.tensor(_store.get((tuple(x.shape), tuple(w.shape)), [[0.0]]))
''')


def test_the_values_are_others(earns_nothing):
    earns_nothing(grade(store(0), only="test_project", seed=1), "test_project")


def test_one_shape_is_not_enough_where_many_are_drawn(earns_nothing):
    only_square = solution_with("_right = softmax\ndef softmax(x): return _right(x) if x.shape == (3, 5) else x * 0\n")
    earns_nothing(grade(only_square, only="test_softmax_matches"), "test_softmax_matches")


def test_honest_work_passes(honest):
    assert named(honest, "test_project").outcome is Outcome.passed


def test_of_the_same_inputs_the_store_has_the_answers():
    assert named(grade(store(0), only="test_project", seed=0), "test_project").outcome is Outcome.passed
