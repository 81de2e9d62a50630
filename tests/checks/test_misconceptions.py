"""The file of known mistakes: read by its syntax, run in the namespace of the model answer."""

from __future__ import annotations

import textwrap

import pytest

from llmkata.checks.misconceptions import load, misconception
from llmkata.outside.loopback import LoopbackLink

ANSWER = b"""
import math
HALF = 0.5
def helper(x): return x * HALF
def f(x): return helper(x) + 1
class Cache:
    def append(self, x): return x
    @property
    def length(self): return 1
    def both(self): return self.append(2), self.length
"""

FILE = '''
"""Mistakes."""
from __future__ import annotations
import json
from llmkata.checks import misconception

SHARED = 10

@misconception("ten", replaces="f", caught_by="test_f", feedback="""It is
    ten.""")
def f(x):
    return helper(x) + SHARED

@misconception("uses_original", replaces="f", caught_by="test_f", feedback="Off by one.", equivalent_to="ten", matches="flops")
def wrong(x, *, base=json.loads("1")):
    return original(x) + base

@misconception("method", replaces="Cache.append", caught_by="test_cache", feedback="x")
def append(self, x):
    return -original(self, x)

@misconception("several", replaces=("Cache.append", "Cache.length"), caught_by="test_cache", feedback="y")
class Several:
    def append(self, x): return 7
    @property
    def length(self): return 9
'''


@pytest.fixture
def entries(tmp_path):
    path = tmp_path / "misconceptions.py"
    path.write_text(FILE)
    return {m.name: m for m in load(path)}


def behaviour(m):
    link = LoopbackLink(f"answer_{m.name}", "answer.py", ANSWER)
    link.patch = {"source": m.source, "filename": f"<{m.name}>", "bind": m.bind}
    both = link.call(link.call(None, "Cache", (), {}), "both", (), {})
    return link.call(None, "f", (4.0,), {}), both


def test_entries(entries):
    assert list(entries) == ["ten", "uses_original", "method", "several"]
    ten, original = entries["ten"], entries["uses_original"]
    assert (ten.replaces, ten.caught_by, ten.feedback, ten.matches, ten.equivalent_to) == (("f",), "test_f", "It is ten.", None, None)
    assert (original.matches, original.equivalent_to) == ("flops", "ten") and ten.line == 11


def test_they_run_with_the_answers_helpers(entries):
    assert behaviour(entries["ten"]) == (12.0, (2, 1))
    assert behaviour(entries["uses_original"]) == (4.0, (2, 1))
    assert behaviour(entries["method"]) == (3.0, (-2, 1))
    assert behaviour(entries["several"]) == (3.0, (7, 9))


def test_no_file_no_mistakes(tmp_path):
    assert load(tmp_path / "nothing.py") == []


@pytest.mark.parametrize("decorator", [
    'misconception("x")', 'misconception(replaces="f", caught_by="t", feedback="y")', 'misconception("x", replaces=NAME, caught_by="t", feedback="y")',
    'misconception("x", replaces="f", feedback="y")'])
def test_entries_that_are_not_well_formed(tmp_path, decorator):
    path = tmp_path / "misconceptions.py"
    path.write_text(f"\n@{decorator}\ndef f(x): pass\n")
    with pytest.raises(SyntaxError, match=r"misconceptions.py:\d: @misconception needs a name"):
        load(path)


def test_the_decorator_changes_nothing():
    def f():
        pass

    assert misconception("x", replaces="f", caught_by="t", feedback="y")(f) is f


def test_the_file_is_never_imported(tmp_path):
    path = tmp_path / "misconceptions.py"
    path.write_text(textwrap.dedent('''
        raise SystemExit
        @misconception("x", replaces="f", caught_by="t", feedback="y")
        def f(x): pass
    '''))
    assert load(path)[0].name == "x"
