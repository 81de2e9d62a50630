"""M3: sitecustomize.py, usercustomize.py or a .pth file that runs before everything."""

import os
import subprocess
import sys

import pytest

from llmkata.grading.intake import read_submissions
from llmkata.records import Outcome

from ..toy.harness import COURSE, SOLUTION, grade, named, solution_with

NAMES = ("sitecustomize.py", "usercustomize.py", "evil.pth")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "toy.py").write_text(SOLUTION)
    for name in NAMES:
        (tmp_path / "eve" / name).write_text("print('first')\n" if name.endswith(".py") else "import this\n")
    return tmp_path


def test_they_are_not_taken(folder):
    (found,) = read_submissions(folder, COURSE)
    assert set(NAMES) <= set(found.ignored) and found.source == SOLUTION.encode()


def test_no_place_that_runs_at_start_can_be_written(earns_nothing):
    attack = solution_with('''
        import os, site, sys
        _right = magic
        def magic(n):
            for place in (*site.getsitepackages(), site.getusersitepackages(), sys.prefix):
                try:
                    open(place + "/kata_evil.pth", "w").close()
                    os.unlink(place + "/kata_evil.pth")
                except OSError:
                    continue
                return _right(n)
            return 0
        ''')
    earns_nothing(grade(attack, only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_an_interpreter_that_is_given_the_folder_runs_one(folder):
    told = {**os.environ, "PYTHONPATH": str(folder / "eve")}
    assert subprocess.run([sys.executable, "-c", ""], env=told, capture_output=True, check=True).stdout == b"first\n"
    isolated = subprocess.run([sys.executable, "-I", "-c", ""], env=told, capture_output=True, check=True)
    assert isolated.stdout == b""  # as templates are started
