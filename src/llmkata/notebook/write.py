"""``kata notebook``: an exercise as one notebook: the brief, the stub in cells, the visible checks.

Cells carry the metadata of nbgrader (schema 3): given cells are locked, cells with a task are solutions, checks are
locked autograder tests. Source: https://nbgrader.readthedocs.io, "The cell metadata".
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from .pieces import pieces

if TYPE_CHECKING:
    from llmkata.course import Exercise

_SET_UP = '''\
# On Colab, and wherever llmkata is not installed: the address of your course's repository.
REPOSITORY = "{repository}"

import importlib.util
import sys

if importlib.util.find_spec("llmkata") is None:
    assert REPOSITORY, "Set REPOSITORY to the address of your course's repository (git clone must take it)."
    !git clone --quiet --depth 1 {{REPOSITORY}} course
    %pip install --quiet --editable course
    sys.path.insert(0, "course/src")

%load_ext llmkata
%kata use {exercise}'''

_HOW = """\
## How to work here
Run the cell below first. Then fill in each `raise NotImplementedError("task ...")` and run its cell. Checks stand at the
end; what counts is what you ran last. `%kata check` runs all of them, `%kata hint` opens the next hint for the check that
failed first. Hand in this notebook, or what your instructor asks for."""


def notebook(exercise: Exercise, stub: str, repository: str = "") -> str:
    """The notebook as JSON (nbformat 4.5). ``stub``: the source to cut into cells; ``repository``: what Colab clones.

    Raises SyntaxError where the stub or the checks are no Python.
    """
    cells = [_markdown("brief", exercise.brief.read_text("utf-8")), _markdown("how", _HOW),
             _code("set-up", _SET_UP.format(repository=repository, exercise=exercise.id), locked=True)]
    used: set[str] = set()
    for piece in pieces(stub):
        task = 'raise NotImplementedError("task ' in piece.text
        cells.append(_code(_unique(piece.name or "given", used), piece.text.strip("\n"), solution=task, locked=not task))
    return json.dumps({
        "cells": [*cells, *_checks(exercise)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "llmkata": {"exercise": exercise.id},
        },
        "nbformat": 4, "nbformat_minor": 5,
    }, indent=1, ensure_ascii=False) + "\n"


def _checks(exercise: Exercise) -> list[dict[str, Any]]:
    """What the checks share in one cell, and a cell a check. Cell magics: a notebook handed in is read without them."""
    shared, tests = [], []
    for piece in pieces(exercise.visible_checks.read_text("utf-8")):
        (tests if piece.name.startswith("test_") else shared).append(piece)
    together = "\n\n".join(piece.text.strip("\n") for piece in shared)
    cells = [_markdown("checks", "## Visible checks"), _code("checks-shared", f"%%kata checks\n{together}", locked=True)]
    cells += [_code(f"check-{piece.name}", f"%%kata check {piece.name}\n" + piece.text.strip("\n"), locked=True, grade=True)
              for piece in tests]
    return [*cells, _code("check-all", "%kata check", locked=True)]


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": _ident(name), "metadata": _nbgrader(name, locked=True),
            "source": _lines(text.strip("\n"))}


def _code(name: str, text: str, **kind: bool) -> dict[str, Any]:
    return {"cell_type": "code", "id": _ident(name), "metadata": _nbgrader(name, **kind), "execution_count": None,
            "outputs": [], "source": _lines(text)}


def _nbgrader(name: str, *, locked: bool = False, solution: bool = False, grade: bool = False) -> dict[str, Any]:
    points = {"points": 1} if grade else {}
    return {"nbgrader": {"grade": grade, "grade_id": _ident(name), "locked": locked, **points, "schema_version": 3,
                         "solution": solution, "task": False}}


def _ident(name: str) -> str:
    """An id for nbformat (at most 64 of A-Z a-z 0-9 - _) and for nbgrader."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64]


def _unique(name: str, used: set[str]) -> str:
    """``name``, or ``name-2`` where an earlier cell defines it too (overloads)."""
    found, number = f"stub-{name}", 1
    while found in used:
        number += 1
        found = f"stub-{name}-{number}"
    used.add(found)
    return found


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
