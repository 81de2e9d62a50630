"""R34: call the finished function of a library, by whatever name."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .arena import build

CALLS = {
    "by its name": "torch.softmax(x, -1)",
    "functional": "torch.nn.functional.softmax(x, -1)",
    "a method": "x.softmax(-1)",
    "a module": "torch.nn.Softmax(-1)(x)",
    "an operator": "torch.ops.aten.softmax.int(x, -1)",
    "its kernel": "torch.ops.aten._softmax(x, -1, False)",
    "of the logarithm": "torch.log_softmax(x, -1).exp()",
    "another library": "torch.from_numpy(__import__('scipy.special').special.softmax(x.numpy(), -1))",
}
SOLUTION = "def softmax(x):\n    e = (x - x.amax(-1, keepdim=True)).exp()\n    return e / e.sum(-1, keepdim=True)\n"
BUDGET = '''
@task(1)
@points(1)
def test_work(submission, budget, torch_rng):
    """No products."""
    x = torch.randn(3, 4, generator=torch_rng)
    run = budget.replay(lambda s, x: s.softmax(x), x, expect=lambda x: torch.softmax(x, -1))
    budget.require("FLOPs", run.flops, at_most=0)
'''
FORBID = '''
from llmkata.checks import Forbid
FORBID = Forbid(functions={"torch.softmax": "Write it with exp and sum."})
'''
#: Switches the guard off where it stands: in this process anything can be.
GUARD_OFF = '''
import torch
def softmax(x):
    with torch._C.DisableTorchFunction():
        return torch._softmax(x, -1, False)
'''


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_it_is_banned_by_what_it_does(call, earns_nothing):
    failed = earns_nothing(grade(solution_with(f"import torch\ndef softmax(x):\n    return {call}"),
                                 only="test_softmax_sums"), "test_softmax_sums_to_one")
    assert "not allowed in this exercise" in failed.cause


def test_with_the_guard_off_the_recorded_program_tells(tmp_path, earns_nothing):
    banned = build(tmp_path, SOLUTION, budgets=BUDGET, forbid=FORBID)
    assert "not allowed" in earns_nothing(banned.instead(GUARD_OFF), "test_work").cause
    assert banned.stands()


def test_where_it_is_not_banned_it_passes(tmp_path):
    assert build(tmp_path, SOLUTION, budgets=BUDGET).stands(GUARD_OFF)


def test_honest_work_passes(honest):
    assert named(honest, "test_softmax_sums_to_one").outcome is Outcome.passed
