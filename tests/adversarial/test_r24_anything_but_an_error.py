"""R24: do nothing, without an error."""

import pytest

from llmkata.records import Outcome, State

from ..toy.harness import SOLUTION, grade

NOTHING = '''
def _nothing(*args, **kwargs):
    return {answer}

softmax = magic = project = stats = repeated = row_sums = _nothing
class Ledger:
    __init__ = lambda self: None
    def __getattr__(self, name): return _nothing
'''


@pytest.mark.parametrize("answer", ["None", "True", "{{}}", "''", "0"])
def test_no_answer_earns_nothing(answer):
    record = grade(SOLUTION + NOTHING.format(answer=answer))
    assert record.state is State.graded and record.points == 0 and record.max_points == 21
    assert all(c.cause for c in record.checks if c.outcome is not Outcome.passed)


def test_an_empty_file_earns_nothing():
    record = grade("pass\n")
    assert record.points == 0 and record.max_points == 21


def test_honest_work_passes(honest):
    assert honest.points == 21


def test_where_only_errors_count_it_is_right():
    def graded(function):
        try:
            function()
        except Exception:  # noqa: BLE001
            return 0
        return 1

    assert graded(lambda: None) == 1
