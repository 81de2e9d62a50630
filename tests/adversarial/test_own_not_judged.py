"""What is not judged costs no points: an answer made so that the check itself stumbles must not come to that."""

import pytest

from .arena import build, check

CHECKS = '''
@task(1)
@points(4)
def test_chain(submission, reference):
    """The second step continues the first."""
    first = submission.first(torch.tensor([1.0, 2.0]))
    same(submission.second(first), reference.second(first))

@task(1)
@points(1)
def test_first(submission):
    """The first step doubles."""
    same(submission.first(torch.ones(2)), torch.full((2,), 2.0))
'''
BUDGETS = '''
@task(1)
@points(5)
def test_flops(submission, budget, torch_rng):
    """One product."""
    x = torch.randn(4, 4, generator=torch_rng)
    run = budget.replay(lambda s, x: s.pair(x)[0], x, expect=lambda x: x @ x)
    budget.require("FLOPs", run.flops, at_most=128, at_least=128)
'''
SOLUTION = '''
import torch

def first(x):
    return 2 * x

def second(x):
    return x / x.sum()

def pair(x):
    return x @ x, x
'''
#: The oracle divides by zero where the learner's own first answer is zero.
POISONED = "def first(x): return torch.zeros(2)\ndef second(x): return torch.zeros(2)"
#: Indexing a tensor makes a new one, which nobody can follow into the recorded program.
STACKED = "def pair(x): return torch.stack([x @ x @ x, x])"


@pytest.fixture
def arena(tmp_path):
    return build(tmp_path, SOLUTION, CHECKS, BUDGETS)


def test_the_model_answer_passes(arena):
    assert arena.stands()


@pytest.mark.parametrize("attack, name", [(POISONED, "test_chain"), (STACKED, "test_flops")])
def test_a_check_that_stumbles_over_an_answer_is_failed(arena, attack, name, earns_nothing):
    record = arena.instead(attack)
    earns_nothing(record, name)
    assert record.max_points == 10


@pytest.mark.parametrize("transport", ["worker", "loopback"])
def test_a_fault_of_the_grader_costs_nothing(tmp_path, transport):
    """The model answer meets it, too."""
    broken = CHECKS.replace("reference.second(first)", "reference.second(0 * first)")
    record = build(tmp_path, SOLUTION, broken).grade(transport=transport)
    chain = check(record, "test_chain")
    assert chain.outcome == "not judged" and chain.max_points == 0 and "NaN" in chain.cause
    assert record.max_points == 1
