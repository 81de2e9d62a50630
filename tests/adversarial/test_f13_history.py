"""F13: copy the solution from the history of a repository."""

import pytest

from llmkata.grading.intake import read_submissions
from llmkata.records import Outcome

from ..toy.harness import COURSE, SOLUTION, grade, named
from .acts import passes, reachable, right_only_if


@pytest.fixture
def attack(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "packed-refs").write_text("# pack-refs")
    reachable(tmp_path)
    return right_only_if(f"return bool(open({str(tmp_path / '.git' / 'packed-refs')!r}).read())")


def test_no_repository_can_be_read(attack, earns_nothing):
    earns_nothing(grade(attack, only="test_magic"), "test_magic")


def test_a_submissions_own_is_not_looked_into(tmp_path):
    (tmp_path / "eve" / ".git").mkdir(parents=True)
    (tmp_path / "eve" / ".git" / "toy.py").write_text(SOLUTION)
    (found,) = read_submissions(tmp_path, COURSE)
    assert found.source is None and ".git/" in found.ignored


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_it_is_read(attack):
    assert passes(attack, isolation="process")
