"""S5: texts and objects that are expensive to whoever matches, prints or walks them."""

import re
import time

import pytest

from llmkata.records import Outcome, State

from ..toy.harness import grade, named, solution_with

MESSAGES = {
    "a pattern": "'shape ( ' + '(a+)+' * 1000 + 'a' * 40 + '!'",
    "long": "'shape ( ' + 'a' * 10_000_000",
    "unprintable": "'shape ( ' + ''.join(map(chr, range(0x11000)))",
}
RAISES = "_right = softmax\ndef softmax(x):\n    if x.dim():\n        return _right(x)\n    raise ValueError({message})\n"
OBJECTS = {
    "its repr": "class A:\n    def __repr__(self):\n        while True: pass\n    __str__ = __repr__\ndef magic(n): return A()",
    "its name": "def magic(n): return type('A' * 5_000_000, (), {})()",
    "deep": "def magic(n):\n    out = 0\n    for _ in range(40): out = [out, [out]]\n    return out",
    "itself": "import dataclasses\n@dataclasses.dataclass\nclass A:\n    a: object = None\n"
              "def magic(n):\n    a = A()\n    a.a = [a, a, {'a': a}]\n    return a",
    "keys": "def magic(n): return {float('nan'): i for i in range(1000)}",
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_messages_cost_the_judge_little(message, earns_nothing):
    began = time.process_time()
    record = grade(solution_with(RAISES.format(message=message)), only="test_softmax_refuses")
    assert time.process_time() - began < 2 and record.state is State.graded
    assert len(earns_nothing(record, "test_softmax_refuses_scalars").cause) < 10_000


@pytest.mark.parametrize("made", OBJECTS.values(), ids=OBJECTS)
def test_objects_cost_the_judge_little(made, earns_nothing):
    began = time.process_time()
    record = grade(solution_with(made), only="test_magic")
    assert time.process_time() - began < 2 and record.state is State.graded
    failed = earns_nothing(record, "test_magic")
    assert len(failed.cause) + len(str(failed.evidence)) < 20_000


def test_honest_work_passes(honest):
    assert named(honest, "test_softmax_refuses_scalars").outcome is Outcome.passed


def test_a_pattern_of_strangers_takes_exponential_time():
    def seconds(n):
        began = time.process_time()
        re.match("(a+)+$", "a" * n + "!")
        return time.process_time() - began

    assert seconds(20) > 8 * seconds(14)
