"""M10: write the outputs of a workflow's step: GITHUB_OUTPUT, GITHUB_ENV, GITHUB_STEP_SUMMARY."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named
from .acts import passes, reachable, right_only_if

BY_NAME = "import os\nopen(os.environ['GITHUB_OUTPUT'], 'a').write('result=100')"


@pytest.fixture
def output(tmp_path, monkeypatch):
    path = tmp_path / "output"
    path.touch()
    path.chmod(0o666)
    reachable(tmp_path)
    monkeypatch.setenv("GITHUB_OUTPUT", str(path))
    return path


def test_neither_by_name_nor_by_path(output, earns_nothing):
    for act in (BY_NAME, f"open({str(output)!r}, 'a').write('result=100')"):
        earns_nothing(grade(right_only_if(act), only="test_magic"), "test_magic")
    assert output.read_text() == ""


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_in_the_process_of_the_step_it_is_written(output):
    assert passes(right_only_if(BY_NAME), transport="loopback", diagnosing=False)
    assert output.read_text()
