"""``kata notebook``: an exercise as one notebook: the brief, the stub in cells, the visible checks.

Cells carry the metadata of nbgrader: given cells are locked, cells with a task are solutions, checks are locked
autograder tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cells import Cell, code, document, markdown, unique
from .pieces import pieces

if TYPE_CHECKING:
    from llmkata.course import Exercise

SET_UP = '''\
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
    cells = [markdown("brief", exercise.brief.read_text("utf-8")), markdown("how", _HOW),
             code("set-up", SET_UP.format(repository=repository, exercise=exercise.id), locked=True)]
    used: set[str] = set()
    for piece in pieces(stub):
        task = 'raise NotImplementedError("task ' in piece.text
        cells.append(code(unique(piece.name or "given", used), piece.text.strip("\n"), solution=task, locked=not task))
    return document([*cells, *_checks(exercise)], exercise.id)


def _checks(exercise: Exercise) -> list[Cell]:
    """What the checks share in one cell, and a cell a check. Cell magics: a notebook handed in is read without them."""
    shared, tests = [], []
    for piece in pieces(exercise.visible_checks.read_text("utf-8")):
        (tests if piece.name.startswith("test_") else shared).append(piece)
    together = "\n\n".join(piece.text.strip("\n") for piece in shared)
    cells = [markdown("checks", "## Visible checks"), code("checks-shared", f"%%kata checks\n{together}", locked=True)]
    cells += [code(f"check-{piece.name}", f"%%kata check {piece.name}\n" + piece.text.strip("\n"), locked=True, points=1)
              for piece in tests]
    return [*cells, code("check-all", "%kata check", locked=True)]
