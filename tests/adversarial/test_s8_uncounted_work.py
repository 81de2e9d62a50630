"""S8: switch off the mode that counts, and do the work where it is not seen."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .arena import shared

MODES_OFF = '''
from torch.utils._python_dispatch import _disable_current_modes
_right = project
def project(x, w):
    with _disable_current_modes():
        hidden = _right(x, w)
    return hidden + 0
'''
NUMPY = '''
import torch
def project(x, w):
    return torch.from_numpy(x.numpy() @ w.numpy())
'''


def test_hidden_work_is_missing_from_the_program(earns_nothing):
    for attack in (MODES_OFF, NUMPY):
        record = grade(solution_with(attack), only="test_project_flops")
        assert named(record, "test_project").outcome is Outcome.passed  # the answers are right
        assert "the answer" in earns_nothing(record, "test_project_flops").cause


def test_work_done_twice_is_seen_twice(earns_nothing):
    twice = solution_with("def project(x, w): return (x @ w + x @ w) / 2")
    assert "2 times the limit" in earns_nothing(grade(twice, only="test_project_flops"), "test_project_flops").cause


def test_honest_work_passes(honest):
    flops = named(honest, "test_project_flops")
    assert flops.outcome is Outcome.passed and flops.measures[0].value == 8192


def test_a_counter_in_the_same_process_sees_nothing():
    x, w = torch.ones(32, 16), torch.ones(16, 8)
    for attack in (MODES_OFF, NUMPY):
        with FlopCounterMode(display=False) as counter:
            project = shared("def project(x, w): return x @ w\n" + attack)["project"]
            assert torch.equal(project(x, w), x @ w) and counter.get_total_flops() == 8192  # ours alone
