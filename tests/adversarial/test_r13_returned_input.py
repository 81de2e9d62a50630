"""R13: return the buffer of the input itself, which the check may use again."""

import pytest
import torch

from .arena import build

SOLUTION = "def double(x):\n    return 2 * x\n"
CHECKS = '''
@task(1)
@points(1)
def test_double(submission, torch_rng):
    """Twice the input."""
    x = torch.randn(3, generator=torch_rng)
    got = submission.double(x)
    x.mul_(2)  # the check saves memory
    same(got, x)

@task(1)
@points(1)
def test_kept(submission, torch_rng):
    """An answer stays as it was."""
    x = torch.randn(3, generator=torch_rng)
    first = submission.double(x)
    submission.double(torch.zeros(3))
    same(first, 2 * x)
'''
#: One buffer for all answers: the first one changes with the second, to the writer's harm or gain.
ONE_BUFFER = '''
import torch
_buffer = torch.empty(3)
def double(x):
    return torch.mul(x, 2, out=_buffer)
'''


@pytest.fixture
def arena(tmp_path):
    return build(tmp_path, SOLUTION, CHECKS)


@pytest.mark.parametrize("transport", ["worker", "loopback"])
def test_an_answer_is_a_copy(arena, transport, earns_nothing):
    record = arena.instead("def double(x): return x", transport=transport, diagnosing=False)
    earns_nothing(record, "test_double")
    assert arena.stands(ONE_BUFFER, transport=transport)


def test_honest_work_passes(arena):
    assert arena.stands()


def test_with_shared_memory_the_answer_follows():
    x = torch.randn(3)
    got = x
    x.mul_(2)
    assert torch.equal(got, x)
