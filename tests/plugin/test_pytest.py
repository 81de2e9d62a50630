"""Plain pytest: on a learner's exercise it speaks like a tutor, anywhere else it costs a look for a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..toy.harness import SOLUTION


def run(cwd: Path, *args: str) -> tuple[int, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args], cwd=cwd, env=environment,
                          capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_an_untouched_stub_is_not_started(course):
    code, out = run(course, "exercises/module1/toy")
    assert code == 1, out  # nothing was achieved: a script must not take it for success
    assert "not started. Open exercises/module1/toy/toy.py; the brief is exercises/module1/toy/README.md." in out
    assert "2 skipped" in out and "Traceback" not in out and "FAILED" not in out and "Error" not in out


def test_work_in_progress(course):
    stub = course / "exercises/module1/toy/toy.py"
    text = stub.read_text()
    text = text.replace('raise NotImplementedError("task 1: softmax over the last dimension")', "return x.exp() / x.exp().sum()")
    text = text.replace('raise NotImplementedError("task 3: add to the entry")', "self.entries[name] = value\n        return 2 * value")
    stub.write_text(text)
    code, out = run(course, "exercises/module1/toy")
    assert code == 1
    assert "[x] task 1  Softmax and magic numbers (core): done" in out
    assert "[~] task 3" in out and "0/1 checks" in out and "./kata check module1/toy" in out
    assert "A ledger with one entry." in out and "expected 2" in out and "got      4" in out  # the sentence and the evidence
    assert "A hint for task 3: ./kata hint module1/toy" in out
    again = re.search(r"Only test_\w+: (.*)", out)[1].split()
    assert again[0] == "pytest" and "1 failed" in run(course, *again[1:])[1]
    assert "Traceback" not in out and "llmkata/" not in out.split("short test summary")[0]


def test_done(course):
    (course / "exercises/module1/toy/toy.py").write_text(SOLUTION)
    code, out = run(course, "exercises", "graders")
    assert code == 0 and "13 passed" in out and "A hint" not in out, out


@pytest.mark.parametrize(("end", "says"), [
    ("def f(:", ["SyntaxError: invalid syntax", "    toy.py:LINE: def f(:\n" + " " * len("    toy.py:LL: def f(") + "^\n"]),
    ("import no_such_library", ["ModuleNotFoundError: No module named 'no_such_library'", "toy.py:LINE in <module>: import no_such"]),
])  # fmt: skip
def test_a_file_that_does_not_import_is_told_once(course, end, says):
    (course / "exercises/module1/toy/toy.py").write_text(f"{SOLUTION}{end}\n")
    line = str(SOLUTION.count("\n") + 1)
    for more in ((), ("-n", "2")):
        code, out = run(course, "exercises/module1/toy", "-rs", *more)
        assert code == 1 and "1 failed, 1 skipped" in out, out
        assert "toy.py does not import, so nothing in it can be judged.\n" in out and "  1 more check waits for that." in out
        for text in says:
            assert out.count(text.replace("LINE", line)) == 1, out
        assert re.search(r"SKIPPED \[1\].*: toy.py does not import\n", out)
        assert "exercises/module1/toy/toy.py does not import." in out and "A hint" not in out and "ERROR" not in out


def test_one_check_alone_tells_of_it_too(course):
    (course / "exercises/module1/toy/toy.py").write_text("raise ValueError('here')\n")
    code, out = run(course, "exercises/module1/toy", "-k", "one_entry")
    assert code == 1 and "1 failed, 1 deselected" in out and "more check" not in out
    assert "toy.py:1 in <module>: raise ValueError('here')" in out


def test_a_broken_course_is_a_usage_error(course):
    (course / "course.yaml").write_text("schema: nothing\n")
    code, out = run(course, "exercises/module1/toy")
    assert code == 4 and "course.yaml" in out and "Traceback" not in out


ELSEWHERE = '''
import sys

def test_nothing_of_ours_is_loaded():
    ours = {m for m in sys.modules if m.startswith("llmkata")}
    assert ours == {"llmkata", "llmkata.plugin", "llmkata.plugin.entry"}, ours
    assert "torch" not in sys.modules and "yaml" not in sys.modules
'''


def test_elsewhere_it_costs_nothing(tmp_path):
    (tmp_path / "test_x.py").write_text(ELSEWHERE)
    code, out = run(tmp_path, "test_x.py")
    assert code == 0, out


def test_other_tests_of_a_course_are_left_alone(course):
    (course / "tests").mkdir()
    (course / "tests" / "test_x.py").write_text(ELSEWHERE)
    code, out = run(course, "tests")
    assert code == 0, out


_COLD = """
import gc, sys
def pytest_unconfigure():
    print("brought:", sorted({"hypothesis", "sympy", "http.server"} & set(sys.modules)), gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize(("uses", "brings", "more"), [
    ("", "[]", ()), ("", "[]", ("-p", "no:hypothesispytest")), ("from llmkata.checks import sk\n", "['hypothesis']", ()),
])  # fmt: skip
def test_a_cold_start_imports_what_its_checks_need(course, monkeypatch, uses, brings, more):
    (course / "kata_cold.py").write_text(_COLD)
    checks = course / "exercises/module1/toy/test_toy.py"
    checks.write_text(uses + checks.read_text())
    monkeypatch.setenv("PYTHONPATH", str(course))
    code, out = run(course, "-p", "kata_cold", *more, "exercises/module1/toy")
    assert code == 1 and f"brought: {brings} True True" in out and "INTERNALERROR" not in out, out
