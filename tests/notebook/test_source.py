"""The module of a notebook: definitions as they were run last, and nothing of what was tried out."""

from __future__ import annotations

import ast

import pytest

from llmkata.notebook.pieces import pieces
from llmkata.notebook.source import module_source

STUB = '''\
"""A module."""

from __future__ import annotations

import math

HALF = 0.5

# -------
# Task 1
# -------


@staticmethod
def f(x):
    raise NotImplementedError("task 1: f")


class C:
    """A class."""

    # a comment inside


def g(x):
    return HALF * x


assert HALF
'''


def names(source: str) -> list[str]:
    return [n.name for n in ast.parse(source).body if hasattr(n, "name")]


def test_pieces_are_the_source():
    cut = pieces(STUB)
    assert "".join(p.text for p in cut) == STUB
    assert [p.name for p in cut] == ["", "f", "C", "g"]
    assert "# Task 1" in cut[1].text and "@staticmethod" in cut[1].text and "a comment inside" in cut[2].text


def test_without_cells_it_is_the_stub():
    assert ast.dump(ast.parse(module_source(STUB, []))) == ast.dump(ast.parse(STUB))


def test_the_last_definition_counts_in_the_place_of_the_first():
    made = module_source(STUB, ["def f(x):\n    return 1", "def f(x):\n    return 2", "HALF = 0.25"])
    assert "return 2" in made and "return 1" not in made and "task 1" not in made
    assert "HALF = 0.25" in made and "HALF = 0.5" not in made
    assert names(made) == ["f", "C", "g"]


def test_helpers_and_what_they_use_come_along():
    made = module_source(STUB, ["import itertools\nLIMIT = 3\ndef helper():\n    return LIMIT", "def f(x):\n    return helper()"])
    space: dict = {}
    exec(made, space)  # noqa: S102 - our own source
    assert space["f"](0) == 3 and "import itertools" in made


@pytest.mark.parametrize(
    "cell",
    ["x = f(1)", "f(1)", "print('here')", "for i in range(3): f(i)", "%timeit f(1)", "%%time\nf(1)", "!rm -r x", "def f(x:",
     "with open('x') as h: pass"],
)
def test_trying_out_leaves_no_trace(cell):
    assert module_source(STUB, [cell]) == module_source(STUB, [])
