"""F11: a compiled module in __pycache__ whose source is never looked at."""

import importlib.util
import py_compile
import subprocess
import sys

import pytest

from llmkata.grading.intake import read_submissions

from ..toy.harness import COURSE, grade, solution_with

SHOWN = solution_with("def magic(n): return 0")
HIDDEN = "def magic(n): return (48271 * n + 11) % 2147483647\n"


@pytest.fixture
def folder(tmp_path):
    """A class of one: what the file shows is wrong, what is compiled beside it is right and never checked."""
    home = tmp_path / "eve"
    home.mkdir()
    (home / "hidden.py").write_text(HIDDEN)
    (home / "toy.py").write_text(SHOWN)
    cache = importlib.util.cache_from_source(str(home / "toy.py"))
    py_compile.compile(str(home / "hidden.py"), cfile=cache, dfile="toy.py",
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    (home / "hidden.py").unlink()
    return tmp_path


def test_the_source_is_what_runs(folder, earns_nothing):
    (found,) = read_submissions(folder, COURSE)
    assert found.source == SHOWN.encode() and "__pycache__/" in found.ignored
    earns_nothing(grade(found.source.decode(), only="test_magic"), "test_magic")


def test_honest_work_passes(honest):
    assert honest.points == 21


def test_an_import_of_the_file_runs_what_is_hidden(folder):
    program = f"import sys\nsys.path.insert(0, {str(folder / 'eve')!r})\nimport toy\nprint(toy.magic(1))"
    run = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "48282\n"
