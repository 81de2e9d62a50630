"""F6: overwrite the grader, a parser or the oracle in place."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import TOY, grade, named
from .acts import passes, reachable, right_only_if


@pytest.fixture
def attack(tmp_path):
    """Right where a copy of the oracle, open to everybody, can be written to."""
    copy = tmp_path / "toy.py"
    copy.write_bytes(TOY.reference.read_bytes())
    copy.chmod(0o666)
    reachable(tmp_path)
    return right_only_if(f"open({str(copy)!r}, 'a').write('def magic(n): return 0')")


@pytest.mark.parametrize("off", [(), ("mountns",), ("landlock",)])
def test_nothing_of_ours_can_be_written(attack, off, earns_nothing):
    earns_nothing(grade(attack, only="test_magic", disable=off), "test_magic")


def test_libraries_cannot_be_written_either(earns_nothing):
    act = "import llmkata.wire as w\nopen(w.__file__, 'r+').close()"
    earns_nothing(grade(right_only_if(act), only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_it_is_overwritten(attack):
    assert passes(attack, isolation="process")
