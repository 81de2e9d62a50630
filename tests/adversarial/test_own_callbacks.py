"""A function that is handed in runs in the judge, with arguments that learner code chooses."""

import pytest

from llmkata.records import Outcome, State

from ..toy.harness import grade, named, solution_with
from .conftest import INSIDE

CALLS = {
    "too often": "x = f(f(f(f(x)))) / 2; return x",
    "for ever": "while True: f(x)",
    "with what is no tensor": "f(object()); return 8 * x",
    "with a text": "f('x' * 1000); return 8 * x",
    "with nothing": "f(); return 8 * x",
    "with names of their own": "f(x=x, __class__=1); return 8 * x",
    "with a name that is none": "f(**{'x' * 100_000: x}); return 8 * x",
    "deep": "y = x\n    for _ in range(100): y = [y]\n    f(y); return 8 * x",
    "and swallows what it raises": "\n    for _ in range(3):\n        try: f(None)\n        except BaseException: pass\n"
                                   "    return 8 * x",
    "and says it was done": "return 8 * x",
    "in a thread": "import threading; t = threading.Thread(target=f, args=(x,)); t.start(); t.join(); return f(f(x))",
}
FORGED = INSIDE + '''
def repeated(f, x, times):
    import os
    from llmkata.wire import encode
    from llmkata.wire.frames import _HEADER, _MAGIC
    body = encode({"id": {ident}, "args": (x,), "kwargs": {kwargs}})
    os.write(_channel(), _HEADER.pack(_MAGIC, 5, _session().seq, len(body)) + body)
    return 8 * x
'''
#: Kept from one request and called in the next one, or between them.
LATE = '''
_kept = []
_right, _magic = repeated, magic
def repeated(f, x, times):
    _kept.append(f)
    return _right(f, x, times)
def stats(x):
    for f in _kept:
        f(x)
    return Stats(x.mean(), x.max())
Ledger.add = lambda self, name, value: [f(value) for f in _kept] and 0
'''


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_check_decides(call, earns_nothing):
    record = grade(solution_with(f"def repeated(f, x, times):\n    {call}\n"), only="test_repeated")
    assert record.state is State.graded
    earns_nothing(record, "test_repeated")


@pytest.mark.parametrize("ident, kwargs", [("99", "{}"), ("-1", "{}"), ("1", "{1: 2}"), ("True", "{}"), ("None", "[]")])
def test_a_call_that_was_made_up(ident, kwargs, earns_nothing):
    record = grade(solution_with(FORGED.replace("{ident}", ident).replace("{kwargs}", kwargs)), only="test_repeated")
    assert "broke the protocol" in earns_nothing(record, "test_repeated").cause


def test_a_function_of_an_earlier_check_is_gone(earns_nothing):
    record = grade(solution_with(LATE))
    assert named(record, "test_repeated").outcome is Outcome.passed
    earns_nothing(record, "test_ledger")


def test_what_is_done_to_its_arguments_stays_there():
    """The judge's own tensors are not those that learner code holds."""
    source = solution_with("_right = repeated\ndef repeated(f, x, times):\n    out = _right(f, x, times)\n    x.zero_()\n    return out")
    assert named(grade(source, only="test_repeated"), "test_repeated").outcome is Outcome.passed


def test_honest_work_passes(honest):
    assert named(honest, "test_repeated").outcome is Outcome.passed


def test_an_exception_that_is_swallowed_is_gone_in_one_process():
    def handed_in(x):
        raise AssertionError("called with what is no tensor")

    def theirs(f):
        try:
            f("no tensor")
        except AssertionError:
            pass
        return 8

    assert theirs(handed_in) == 8
