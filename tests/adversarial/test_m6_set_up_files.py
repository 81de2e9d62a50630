"""M6: requirements.txt or setup.py, run when the submission is installed."""

import subprocess
import sys

import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import read_submissions

from ..toy.harness import COURSE, SOLUTION

NAMES = ("setup.py", "requirements.txt", "pyproject.toml", "conftest.py", "Makefile")


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "class" / "eve"
    home.mkdir(parents=True)
    (home / "toy.py").write_text(SOLUTION)
    for name in NAMES:
        (home / name).write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    return tmp_path


def test_nothing_is_run_and_honest_work_passes(folder):
    submissions = read_submissions(folder / "class", COURSE)
    assert set(NAMES) <= set(submissions[0].ignored)
    (record,) = grade_many(COURSE, submissions, out=folder / "out", workers=1)
    assert record.points == 21 and not (folder / "run").exists()


def test_whoever_installs_it_runs_it(folder):
    subprocess.run([sys.executable, "-S", "setup.py"], cwd=folder / "class" / "eve", check=True)
    assert (folder / "run").exists()
