"""P3: end the test runner with a status of one's choice."""

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .acts import naive

ATTACK = "import pytest\ndef magic(n): pytest.exit('fine', returncode=0)\n"


def test_no_runner_is_there_to_be_ended(earns_nothing):
    earns_nothing(grade(solution_with(ATTACK), only="test_magic"), "test_magic")
    earns_nothing(grade(solution_with(ATTACK), only="test_magic", transport="loopback", diagnosing=False), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_a_shared_pytest_ends_as_it_is_told(tmp_path):
    assert naive(tmp_path, ATTACK) == 0
