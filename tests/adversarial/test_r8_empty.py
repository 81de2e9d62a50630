"""R8: an answer with nothing in it, where every item of it is compared."""

import pytest
import torch

from .arena import build

SOLUTION = '''
import torch

def rows(x):
    return [2 * row for row in x]

def double(x):
    return 2 * x
'''
CHECKS = '''
@task(1)
@points(1)
def test_rows(submission):
    """Every row is doubled."""
    x = torch.arange(6.0).reshape(2, 3)
    for row, want in zip(submission.rows(x), x):
        same(row, 2 * want)

@task(1)
@points(1)
def test_double(submission):
    """Everything is doubled."""
    same(submission.double(torch.ones(3)), torch.full((3,), 2.0))
'''


@pytest.fixture
def arena(tmp_path):
    return build(tmp_path, SOLUTION, CHECKS)


def test_nothing_compared_is_nothing_passed(arena, earns_nothing):
    record = arena.instead("def rows(x): return []\ndef double(x): return x[:0]")
    assert "holds nothing that could be compared" in earns_nothing(record, "test_rows").cause
    assert "has shape (0,), it must have (3,)" in earns_nothing(record, "test_double").cause


def test_honest_work_passes(arena):
    assert arena.stands()


def test_a_loop_over_nothing_and_an_empty_comparison_pass():
    x = torch.arange(6.0).reshape(2, 3)
    for row, want in zip([], x):
        assert torch.equal(row, want)
    assert torch.allclose(x[:0], torch.ones(3)) if False else torch.allclose(x[:0], 2 * x[:0]) and (x[:0] == 7).all()
