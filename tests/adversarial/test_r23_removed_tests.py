"""R23: hand in the tests, too, emptied or made to agree."""

from llmkata.records import Outcome

from ..toy.harness import SOLUTION, grade, named
from .arena import handed_in, plain_pytest

WRONG = SOLUTION + "\n\ndef softmax(x):\n    return x\n"
STUBBED = "def test_two_numbers(submission):\n    pass\n"


def test_tests_are_those_of_the_course(tmp_path, honest, earns_nothing):
    given = handed_in(tmp_path, {"exercises/module1/toy/toy.py": WRONG, "exercises/module1/toy/test_toy.py": STUBBED,
                                 "graders/module1/toy/test_correctness.py": STUBBED})
    record = grade(given.source.decode())
    assert [c.id for c in record.checks] == [c.id for c in honest.checks]
    assert named(record, "test_two_numbers").outcome is Outcome.failed
    earns_nothing(record, "test_softmax_sums_to_one")


def test_honest_work_passes(honest):
    assert named(honest, "test_two_numbers").outcome is Outcome.passed


def test_run_in_place_the_stub_passes(tmp_path):
    assert "1 passed" in plain_pytest(tmp_path, test_work="def test_two_numbers():\n    pass\n").stdout
