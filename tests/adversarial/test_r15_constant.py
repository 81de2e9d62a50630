"""R15: one answer for every question."""

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .arena import shared

CONSTANT = "def magic(n): return 48282"
#: Right for whatever comes first, and the same from then on.
FIRST = '''
_right, _first = magic, []
def magic(n):
    _first.append(_right(n))
    return _first[0]
'''


def test_more_than_one_question_is_asked(earns_nothing):
    for attack in (CONSTANT, FIRST):
        earns_nothing(grade(solution_with(attack), only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_a_single_fixed_question_is_answered():
    assert shared(CONSTANT)["magic"](1) == (48271 * 1 + 11) % 2147483647
