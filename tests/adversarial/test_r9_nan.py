"""R9: NaN in the answer, which no comparison finds larger than a tolerance."""

import torch

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

ATTACK = '''
import torch
def project(x, w):
    return torch.full((x.shape[0], w.shape[1]), float("nan"))
def magic(n):
    return float("nan")
def row_sums(a, b, block=64):
    return np.full(len(a), np.nan)
'''


def test_nan_is_no_answer(earns_nothing):
    record = grade(solution_with(ATTACK))
    assert "NaN" in earns_nothing(record, "test_project").cause
    earns_nothing(record, "test_magic")
    earns_nothing(record, "test_row_sums_peak")


def test_honest_work_passes(honest):
    assert named(honest, "test_project").outcome is Outcome.passed


def test_a_maximum_that_must_not_exceed_is_not_exceeded():
    error = (torch.full((3,), float("nan")) - torch.ones(3)).abs().max()
    assert not error > 1e-5
