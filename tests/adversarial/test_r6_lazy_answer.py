"""R6: answer at once with an object that does the work when it is looked at, after the clock has stopped."""

import pytest

from llmkata.outside.link import Meter

from ..toy.harness import grade, link_to, solution_with
from .arena import shared

LAZY = '''
import dataclasses

class _Later:
    """A field whose value is made when the answer is written."""
    def __get__(self, instance, owner):
        if instance is None:
            raise AttributeError
        return sum(i * i for i in range(300_000))
    def __set__(self, instance, value):
        pass

@dataclasses.dataclass
class Answer:
    value: int

def work(n):
    answer = Answer(0)
    Answer.value = _Later()
    return answer
'''
OPEN = "def work(n): return sum(i * i for i in range(300_000))"
OBJECT = '''
class _Later:
    def __eq__(self, other): return other == 48282
    def __int__(self): return 48282
def magic(n):
    return _Later()
'''


def cpu(source):
    """-> (CPU seconds of one call as it is measured from outside, its answer)."""
    link = link_to(source)
    try:
        link.open()
        link.meter = Meter(None)
        answer = link.call(None, "work", (1,), {})
        return link.meter.calls[0].cpu_seconds, answer
    finally:
        link.close()


def test_work_done_while_the_answer_is_written_counts():
    openly, later = cpu(OPEN)[0], cpu(LAZY)
    assert later[1].value == sum(i * i for i in range(300_000))
    assert later[0] > 0.5 * openly > 0.005


def test_an_object_that_would_answer_later_is_no_answer(earns_nothing):
    earns_nothing(grade(solution_with(OBJECT), only="test_magic"), "test_magic")


def test_a_clock_around_the_call_sees_nothing():
    from time import process_time

    lazy, start = shared(LAZY), process_time()
    answer = lazy["work"](1)
    called = process_time() - start
    assert answer.value == pytest.approx(sum(i * i for i in range(300_000))) and called < 0.005
