"""R26: duplicate keys, numbers beyond all bounds, nesting without end, in place of data."""

import json
import math

import pytest

from llmkata.records import Outcome, State

from ..toy.harness import grade, named, solution_with
from .conftest import INSIDE

ANSWERS = {
    "nan": "float('nan')", "infinite": "1e999", "a number of a million digits": "1 << 4_000_000",
    "nested": "_deep(100_000)", "itself": "_itself()", "two hundred thousand keys": "dict.fromkeys(range(200_000))",
    "lone surrogates": "chr(0xd800) * 1000", "a hash flood": "{i * ((1 << 61) - 1): 0 for i in range(1, 2000)}",
}
ATTACK = '''
def _deep(n):
    out = []
    for _ in range(n):
        out = [out]
    return out

def _itself():
    out = []
    out.append(out)
    return out

def magic(n):
    return {answer}
'''
#: A dict of the wire that names its value twice: whichever is believed, one who checks the other is misled.
TWICE = INSIDE + '''
def magic(n):
    import os
    from llmkata.wire import encode
    from llmkata.wire.frames import _HEADER, _MAGIC
    right, wrong = encode({"value": (48271 * n + 11) % 2147483647}), encode({"value": 0})
    body = wrong[:1] + (2).to_bytes(4, "little") + wrong[5:] + right[5:]
    os.write(_channel(), _HEADER.pack(_MAGIC, 3, _session().seq, len(body)) + body)
    os._exit(0)
'''


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_it_is_refused_or_wrong(answer, earns_nothing):
    record = grade(solution_with(ATTACK.format(answer=answer)), only="test_magic")
    assert record.state is State.graded
    earns_nothing(record, "test_magic")


def test_a_key_that_comes_twice_breaks_the_protocol(earns_nothing):
    failed = earns_nothing(grade(solution_with(TWICE), only="test_magic"), "test_magic")
    assert "broke the protocol" in failed.cause


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_json_takes_the_last_of_two_and_what_is_no_number():
    assert json.loads('{"points": 0, "points": 100}') == {"points": 100}
    assert math.isinf(json.loads('{"points": 1e999}')["points"]) and math.isnan(json.loads("NaN"))
    with pytest.raises(RecursionError):
        json.loads("[" * 200_000)
