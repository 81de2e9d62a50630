"""M7: two submissions with one module name, of which the second gets the marks of the first."""

import importlib
import sys

import pytest

from llmkata.records import Outcome

from ..toy.harness import SOLUTION, grade, named, solution_with

WRONG = solution_with("def magic(n): return 0")


@pytest.mark.parametrize("transport", ["worker", "loopback"])
def test_each_gets_its_own(transport, earns_nothing):
    for source in (SOLUTION, WRONG, SOLUTION):
        record = grade(source, only="test_magic", transport=transport)
        if source is WRONG:
            earns_nothing(record, "test_magic")
        else:
            assert named(record, "test_magic").outcome is Outcome.passed


def test_by_name_in_one_process_the_first_stays(tmp_path, monkeypatch):
    for name, source in (("ann", SOLUTION), ("eve", WRONG)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kata_toy.py").write_text(source)
    numbers = []
    for name in ("ann", "eve"):
        monkeypatch.setattr(sys, "path", [str(tmp_path / name), *sys.path])
        numbers.append(importlib.import_module("kata_toy").magic(1))
    del sys.modules["kata_toy"]
    assert numbers == [48282, 48282]
