"""M5: a dist-info folder in the submission that registers a plugin with pytest, with nothing installed."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import SOLUTION, grade, named, solution_with
from .acts import naive, passes

#: Marks every test as passed.
PLUGIN = '''
import pytest
@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    return True
'''


@pytest.fixture(autouse=True)
def on_the_path(tmp_path, monkeypatch):
    info = tmp_path / "evil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest11]\nevil = kata_evil_plugin\n")
    (tmp_path / "kata_evil_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_no_plugin_is_asked_that_is_not_ours(earns_nothing):
    earns_nothing(grade(solution_with("def magic(n): return 0"), only="test_magic"), "test_magic")


def test_honest_work_passes():
    assert named(grade(SOLUTION, only="test_magic"), "test_magic").outcome is Outcome.passed
    assert passes(SOLUTION, transport="loopback")


def test_another_pytest_loads_it(tmp_path):
    answer = tmp_path / "t"
    answer.mkdir()
    assert naive(answer, "def magic(n): return 0") == 0
