"""R22: put one's own function in the place of the oracle."""

from llmkata.plugin import runs
from llmkata.records import Outcome

from ..toy.harness import TOY, grade, named, solution_with

ATTACK = '''
def magic(n):
    import sys
    frame = sys._getframe(1)
    while frame is not None:
        for scope in (frame.f_globals, frame.f_locals):
            if "reference" in scope and hasattr(scope["reference"], "magic"):
                scope["reference"].magic = magic
        frame = frame.f_back
    for module in list(sys.modules.values()):
        if "reference" in (getattr(module, "__file__", None) or ""):
            module.magic = magic
    return 5
'''


def test_it_is_in_another_process(earns_nothing):
    earns_nothing(grade(solution_with(ATTACK), only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_in_one_process_it_answers_for_the_submission():
    oracle = runs.load_module(TOY.reference)
    magic = oracle.magic
    try:
        record = grade(solution_with(ATTACK), only="test_magic", transport="loopback", diagnosing=False)
        assert named(record, "test_magic").outcome is Outcome.passed
    finally:
        oracle.magic = magic
