"""A probe runs among patched libraries: what it sees may be a lie, so it must not be what decides."""

import pytest

from .arena import build

SOLUTION = "import torch\n\ndef double(x):\n    return 2 * x\n"
#: One probe brings back what the function gave, the other says itself whether that is right.
CHECKS = '''
@probe
def observed(module, x):
    return module.double(x)

@probe
def judged(module, x):
    import torch
    return bool(torch.equal(module.double(x), x + x))

@task(1)
@points(1)
def test_observed(submission, torch_rng):
    """Twice the input."""
    x = torch.randn(3, generator=torch_rng)
    same(submission.run(observed, x), 2 * x)

@task(1)
@points(1)
def test_judged(submission, torch_rng):
    """Twice the input, says the probe."""
    check(submission.run(judged, torch.randn(3, generator=torch_rng)) is True, "It is not twice the input.")
'''
PATCHED = "torch.equal = torch.allclose = lambda *a, **k: True\ndef double(x): return 0 * x"
#: Not the libraries but what carries the probe out.
REPLACED = '''
import gc
from llmkata.inside.session import Session
def double(x): return 0 * x
for session in [o for o in gc.get_objects() if type(o) is Session]:
    session._probes = type("Probes", (dict,), {"get": lambda self, source: (lambda module, x: {answer})})()
'''


@pytest.fixture
def arena(tmp_path):
    return build(tmp_path, SOLUTION, CHECKS)


def test_what_is_brought_back_is_judged_outside(arena, earns_nothing):
    for attack in (PATCHED, REPLACED.replace("{answer}", "True"), REPLACED.replace("{answer}", "x")):
        earns_nothing(arena.instead(attack), "test_observed")


def test_honest_work_passes(arena):
    assert arena.stands()


def test_a_verdict_of_the_probes_own_is_theirs(arena):
    """Why probes observe and do not judge."""
    outcomes = {c.id.split("::")[1]: c.outcome for c in arena.instead(PATCHED).checks}
    assert outcomes["test_judged"] == "passed" and outcomes["test_observed"] == "failed"
