"""What a submission's process took while its program was recorded, against what the program explains."""

import dataclasses

import pytest

from llmkata.checks import budgets
from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

HIDDEN_TIME = '''
import torch
def project(x, w):
    if x.shape[0] == 32:
        sum(i * i for i in range(3_000_000))
    return x @ w
'''
HIDDEN_MEMORY = '''
import numpy as np
def project(x, w):
    if x.shape[0] == 32:
        np.ones(15 << 20)
    return x @ w
'''


@pytest.fixture
def strict(monkeypatch):
    """The bounds are generous: here a twentieth of the time would be noticed."""
    contradictions = budgets._contradictions

    def lowered(recording, answer):
        start, end = recording.gauges
        later = dataclasses.replace(end, cpu=end.cpu + 1.95)
        return contradictions(dataclasses.replace(recording, gauges=(start, later)), answer)

    monkeypatch.setattr(budgets, "_contradictions", lowered)


def test_time_that_no_operator_explains_is_told_to_staff(strict):
    check = named(grade(solution_with(HIDDEN_TIME), only="test_project_flops"), "test_project_flops")
    assert check.outcome is Outcome.passed  # what was counted is right all the same
    assert len(check.flags) == 1 and "computed for" in check.flags[0] and "the program explains 2.0 s" in check.flags[0]


def test_memory_that_no_operator_explains_is_told_to_staff():
    check = named(grade(solution_with(HIDDEN_MEMORY), only="test_project_flops"), "test_project_flops")
    assert len(check.flags) == 1 and "grew by 1" in check.flags[0]


def test_honest_work_raises_no_flag(strict):
    assert named(grade(only="test_project_flops"), "test_project_flops").flags == []
