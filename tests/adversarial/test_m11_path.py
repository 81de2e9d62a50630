"""M11: a trojan of a helper program, earlier on PATH."""

import os
import subprocess

import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import read_submissions

from ..toy.harness import COURSE, SOLUTION, grade
from .acts import passes, right_only_if

NAMES = ("python", "python3", "git", "sh", "bash", "unzip", "tar", "cc", "gcc", "c++", "g++", "ldconfig", "uname")


@pytest.fixture
def trojan(tmp_path, monkeypatch):
    """Programs that leave a mark, before all others on PATH."""
    (tmp_path / "bin").mkdir()
    for name in NAMES:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n: > {tmp_path}/mark\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def test_grading_runs_none_of_them_and_honest_work_passes(trojan):
    (trojan / "class" / "eve").mkdir(parents=True)
    (trojan / "class" / "eve" / "toy.py").write_text(SOLUTION)
    (record,) = grade_many(COURSE, read_submissions(trojan / "class", COURSE), out=trojan / "out", workers=1)
    assert record.points == 21 and not (trojan / "mark").exists()


def test_a_submissions_path_is_the_systems(trojan):
    assert passes(right_only_if("import os\nreturn os.environ['PATH'] == '/usr/bin:/bin'"))
    assert grade(only="test_magic").points > 0


def test_by_name_the_trojan_is_run(trojan):
    subprocess.run(["git", "--version"], check=True)
    assert (trojan / "mark").exists()
