"""I4: the frames of a traceback, or sys.modules, lead to the test module and its oracle."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .acts import passes

TRACEBACK = '''
def magic(n):
    try:
        raise ValueError
    except ValueError as e:
        frame = e.__traceback__.tb_frame
    while frame is not None:
        if hasattr(frame.f_locals.get("reference"), "magic"):
            return frame.f_locals["reference"].magic(n)
        frame = frame.f_back
    return 0
'''
MODULES = '''
_right = magic
def magic(n):
    import sys
    found = any(name.startswith(("graders", "_pytest.")) for name in list(sys.modules))
    return _right(n) if found else 0
'''


@pytest.mark.parametrize("attack", [TRACEBACK, MODULES])
def test_they_lead_nowhere(attack, earns_nothing):
    earns_nothing(grade(solution_with(attack), only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


@pytest.mark.parametrize("attack", [TRACEBACK, MODULES])
def test_in_one_process_they_do(attack):
    assert passes(solution_with(attack), transport="loopback", diagnosing=False)
