"""R20: settings of the test runner beside the answer, by which nothing is run."""

import pytest

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, plain_pytest

SETTINGS = {"pytest.ini": "[pytest]\naddopts = --collect-only\n",
            "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-k none'\n",
            "tox.ini": "[pytest]\naddopts = --collect-only\n"}


def test_they_are_not_read(tmp_path, monkeypatch, honest):
    given = handed_in(tmp_path, {**SETTINGS, "module1/toy.py": SOLUTION})
    assert set(SETTINGS) <= set(given.ignored)
    monkeypatch.chdir(tmp_path / "ann")
    record = grade(given.source.decode())
    assert [c.outcome for c in record.checks] == [c.outcome for c in honest.checks] and record.points == 21


@pytest.mark.parametrize("name", ["pytest.ini", "tox.ini"])
def test_run_in_place_they_rule(tmp_path, name):
    (tmp_path / name).write_text(SETTINGS[name])
    done = plain_pytest(tmp_path, test_work="def test_magic():\n    assert 5 == 48282\n")
    assert done.returncode == 0 and "failed" not in done.stdout
