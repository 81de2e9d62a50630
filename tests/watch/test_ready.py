"""The warm process has the libraries of the exercise's files before the first run that needs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmkata.course import load_course
from llmkata.forks import CAN_FORK
from llmkata.watch.judge import Judge
from llmkata.watch.ready import imports

FILE = """
import sys
import jinja2.nodes
from llmkata.checks import probe

@probe
def drawn(module):
    from rich.table import Table
    import beside, no_such_module_here
    from . import sibling
"""


def test_imports_of_installed_packages_are_found_wherever_they_stand(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "checks.py"
    file.write_text(FILE)
    assert sorted(imports(file)) == ["jinja2.nodes", "rich.table"]
    file.write_text("def f(:")
    assert list(imports(file)) == list(imports(tmp_path / "missing.py")) == []


def test_caches_are_filled_once_and_what_fails_is_let_be(tmp_path):
    """In a process of its own: what is imported there stays out of this one."""
    code = """
import sys
import json
from llmkata.watch import ready
calls = []
def failing():
    calls.append(1)
    raise RuntimeError
ready._CACHES.clear()
ready._CACHES.update({"json": failing, "no.such": failing})
r = ready.Ready(None)
r.next(); r.next()
print(len(calls))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_the_caches_of_the_libraries_at_hand_are_filled():
    code = """
import matplotlib.figure, transformers.conversion_mapping as mapping
from matplotlib.mathtext import MathTextParser
from llmkata.watch.ready import Ready
def filled():
    return MathTextParser._parse_cached.cache_info().currsize > 0, mapping._checkpoint_conversion_mapping_cache is not None
before = filled()
Ready(None).next()
print(*before, *filled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]


_MISTAKES = """
import sys
from pathlib import Path
from llmkata.checks import misconceptions
from llmkata.course import load_course
from llmkata.inside import session
from llmkata.watch.ready import Ready
exercise = load_course(Path(sys.argv[1])).exercise("toy")
if sys.argv[2] == "without":
    exercise.solution.unlink()
Ready(exercise).next()
print(misconceptions._entries.cache_info().currsize, session._compiled.cache_info().currsize)
"""


@pytest.mark.parametrize(("answers", "known"), [("with", "1 1"), ("without", "0 0")])
def test_known_mistakes_are_read_and_compiled_where_there_are_any(toy, answers, known):
    done = subprocess.run([sys.executable, "-c", _MISTAKES, str(toy), answers], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == known


@pytest.mark.skipif(not CAN_FORK, reason="each run is a process of its own there")
def test_the_first_run_after_the_stub_has_what_the_checks_import(toy):
    exercise = load_course(toy).exercise("toy")
    checks = exercise.visible_checks
    checks.write_text(checks.read_text("utf-8") + "\n\ndef later():\n    import jinja2.sandbox\n", "utf-8")
    judge = Judge(exercise)
    try:
        judge.verdict()  # the stub: nothing is run
        stub = exercise.stub.read_text("utf-8")
        line = next(text for text in stub.splitlines() if "raise NotImplementedError(\"task 1" in text)
        exercise.stub.write_text(stub.replace(line, "    import sys\n    print('jinja2.sandbox' in sys.modules)\n    return x", 1), "utf-8")
        judge.verdict()
        assert [text.strip() for text in judge.printed.values()] == ["True"]
    finally:
        judge.close()
