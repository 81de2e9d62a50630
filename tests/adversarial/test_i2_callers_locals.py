"""I2: read what the caller knows: the generator of its inputs, expected values, the seed."""

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .acts import passes

#: The check holds its generator in a local variable; whoever has it knows what comes next, and here what came.
ATTACK = solution_with('''
_right = magic
def magic(n):
    import sys
    frame = sys._getframe(1)
    while frame is not None:
        if {"rng", "reference"} & set(frame.f_locals) or "expected" in frame.f_locals:
            return _right(n)
        frame = frame.f_back
    return 0
''')


def test_no_caller_knows_anything(earns_nothing):
    earns_nothing(grade(ATTACK, only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_in_one_process_the_caller_has_it():
    assert passes(ATTACK, transport="loopback", diagnosing=False)
