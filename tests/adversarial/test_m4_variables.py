"""M4: PYTEST_ADDOPTS, PYTEST_PLUGINS, PYTHONPATH in the environment of the grader."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import SOLUTION, grade, named, solution_with
from .acts import naive, passes

WRONG = solution_with("def magic(n): return 0")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin_there")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_they_have_no_say(earns_nothing):
    earns_nothing(grade(WRONG, only="test_magic"), "test_magic")


def test_honest_work_passes():
    assert named(grade(SOLUTION, only="test_magic"), "test_magic").outcome is Outcome.passed


def test_none_reaches_a_submission():
    source = solution_with('''
        import os
        _right = magic
        def magic(n): return 0 if {"PYTEST_ADDOPTS", "PYTHONPATH"} & set(os.environ) else _right(n)
        ''')
    assert passes(source)


def test_another_pytest_does_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_PLUGINS")
    assert naive(tmp_path, "def magic(n): return 0") == 0
    monkeypatch.delenv("PYTEST_ADDOPTS")
    assert naive(tmp_path, "def magic(n): return 0") == 1
