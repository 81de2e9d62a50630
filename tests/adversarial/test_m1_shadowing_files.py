"""M1: a file named like a library module, beside the answer."""

import subprocess
import sys

import pytest

from llmkata.grading.intake import read_submissions
from llmkata.records import Outcome

from ..toy.harness import COURSE, SOLUTION, grade, named, solution_with

PLANTED = "def magic(n): return (48271 * n + 11) % 2147483647\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "toy.py").write_text(solution_with("from colorsys import magic"))
    (tmp_path / "eve" / "colorsys.py").write_text(PLANTED)
    return tmp_path


def test_it_is_not_taken_and_not_imported(folder):
    (found,) = read_submissions(folder, COURSE)
    assert "colorsys.py" in found.ignored
    assert "cannot import name 'magic'" in grade(found.source.decode(), only="test_magic").cause


def test_one_that_is_written_in_scratch_shadows_nothing(earns_nothing):
    attack = solution_with(f'''
        open("colorsys.py", "w").write({PLANTED!r})
        import colorsys
        def magic(n): return colorsys.magic(n)
        ''')
    earns_nothing(grade(attack, only="test_magic"), "test_magic")


def test_honest_work_passes(honest, folder):
    assert named(honest, "test_magic").outcome is Outcome.passed
    (folder / "eve" / "toy.py").write_text(SOLUTION)
    assert read_submissions(folder, COURSE)[0].source == SOLUTION.encode()


def test_an_interpreter_started_in_the_folder_imports_it(folder):
    run = subprocess.run([sys.executable, "-c", "import colorsys; print(colorsys.magic(1))"], cwd=folder / "eve",
                         capture_output=True, text=True, check=True)
    assert run.stdout == "48282\n"
