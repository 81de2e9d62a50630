"""R7: an answer of another shape that broadcasts to the right one."""

import torch

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

ATTACK = '''
_right = softmax
def softmax(x):
    return torch.tensor(0.5) if x.dim() == 1 and x.max() > 500 else _right(x)

import torch
def stats(x):
    return Stats(x.mean().reshape(1, 1), x.max())
'''


def test_shapes_come_first(earns_nothing):
    record = grade(solution_with(ATTACK))
    assert "has shape (), it must have (2,)" in earns_nothing(record, "test_softmax_of_large_numbers").cause
    assert "has shape (1, 1), it must have ()" in earns_nothing(record, "test_stats").cause


def test_honest_work_passes(honest):
    assert all(named(honest, n).outcome is Outcome.passed for n in ("test_softmax_of_large_numbers", "test_stats"))


def test_allclose_broadcasts():
    assert torch.allclose(torch.tensor(0.5), torch.tensor([0.5, 0.5]))
    assert torch.allclose(torch.full((1, 1), 2.0), torch.tensor(2.0))
