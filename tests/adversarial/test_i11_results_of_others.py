"""I11: read results of others, or what is known of the submission."""

import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission
from llmkata.records import Outcome

from ..toy.harness import COURSE, TOY, grade, named
from .acts import passes, reachable, right_only_if


@pytest.fixture
def attack(tmp_path):
    """Right where the records of the run can be read."""
    grade_many(COURSE, [Submission("ann", TOY.id, TOY.stub.read_bytes(), "toy.py")], out=tmp_path, workers=1)
    (records,) = [p for p in tmp_path.rglob("*.jsonl")]
    records.chmod(0o644)
    reachable(tmp_path)
    return right_only_if(f"return 'ann' in open({str(records)!r}).read()")


def test_they_are_out_of_reach(attack, earns_nothing):
    earns_nothing(grade(attack, only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_they_are_read(attack):
    assert passes(attack, isolation="process")
