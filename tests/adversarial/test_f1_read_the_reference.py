"""F1: read the oracle from the disk and let it answer."""

from llmkata.records import Outcome

from ..toy.harness import TOY, grade, named, solution_with

ATTACK = solution_with(f'''
def magic(n):
    scope = {{}}
    try:
        exec(open({str(TOY.reference)!r}).read(), scope)
    except OSError:
        return 0
    return scope["magic"](n)
''')


def test_it_cannot_be_read(earns_nothing):
    earns_nothing(grade(ATTACK, only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_it_is_read():
    assert named(grade(ATTACK, only="test_magic", isolation="process"), "test_magic").outcome is Outcome.passed
