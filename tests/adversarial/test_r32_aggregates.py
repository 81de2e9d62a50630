"""R32: one measurement next to nothing, which makes the mean of many."""

import math

import numpy as np
import pytest

from llmkata.checks import context
from llmkata.checks.budgets import Budget
from llmkata.checks.compare import Mismatch
from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

#: No product at all: none was seen, at a fraction of the least it takes.
NOTHING = "def project(x, w): return (x[:, :, None] * w).sum(1)"


def test_each_value_is_held_against_its_floor(earns_nothing):
    failed = earns_nothing(grade(solution_with(NOTHING), only="test_project_flops"), "test_project_flops")
    assert failed.flags == ["FLOPs of a product is 0 FLOP, below the floor of 8.192 kFLOP"]
    assert failed.measures[0].value == 0 and not failed.measures[0].ok


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
def test_what_is_no_count_meets_no_limit(value):
    context.enter(context.CheckContext(None, 0))
    with pytest.raises(Mismatch):
        Budget(None, None, None, None, 0).require("n", value, at_most=10, at_least=0)


def test_honest_work_passes(honest):
    assert named(honest, "test_project_flops").outcome is Outcome.passed


def test_a_geometric_mean_is_won_by_one_of_them():
    honest, forged = [1.0, 1.0, 1.0], [9.0, 9.0, 1e-9]
    assert np.exp(np.mean(np.log(forged))) < np.exp(np.mean(np.log(honest)))
