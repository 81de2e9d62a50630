"""I5: hooks of the interpreter (profile, trace, audit) that see the oracle at work."""

import sys

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

#: An earlier check calls the oracle; the hook keeps its namespace for the next one.
ATTACK = solution_with('''
import sys

_seen = []
def _hook(frame, event, arg):
    if not _seen and "/reference/" in frame.f_code.co_filename and "magic" in frame.f_globals:
        _seen.append(frame.f_globals["magic"])
sys.setprofile(_hook)

def magic(n):
    return _seen[0](n) if _seen else 0
''')


def test_the_hooks_see_no_oracle(earns_nothing):
    earns_nothing(grade(ATTACK), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_in_one_process_they_do():
    try:
        record = grade(ATTACK, transport="loopback", diagnosing=False)
    finally:
        sys.setprofile(None)
    assert named(record, "test_magic").outcome is Outcome.passed
