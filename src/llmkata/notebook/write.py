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
# Run this first. On Colab it fetches the course from this address, which git must be able to clone:
REPOSITORY = "{repository}"

import importlib.util

if importlib.util.find_spec("llmkata") is None:
    import glob, os, pathlib, subprocess, sys

    here = [folder for folder in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents) if (folder / "course.yaml").is_file()]
    assert not here, f"Choose the Python in {{here[0] / '.venv'}} as the kernel of this notebook: that one has llmkata."
    assert REPOSITORY, "Set REPOSITORY, above, to the address of your course's repository and run this cell again."
    if not os.path.isdir("course"):
        fetched = subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, "course"], capture_output=True)
        assert fetched.returncode == 0, f"{{REPOSITORY}} cannot be cloned: {{fetched.stderr.decode()}}"
    package = glob.glob("course/vendor/llmkata-*.whl") or ["./course"]
    print("Installing what the course needs; this takes a few minutes.")
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *package], capture_output=True, text=True)
    assert done.returncode == 0, f"llmkata cannot be installed: {{done.stderr[-2000:]}}"
    importlib.invalidate_caches()
    os.environ["KATA_COURSE"] = os.path.abspath("course")

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
