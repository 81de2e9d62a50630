"""An exercise as a source notebook of nbgrader: brief, model answer in cells, and a graded cell for each task.

``nbgrader generate_assignment`` cuts the model answer out of it. The graded cells hold ``%kata points N``, which calls
``kata check`` and gives the points of the task as a number: nbgrader takes a numeric result for partial credit. Learners
who run the cell, having no graders, get the visible checks of the task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkata.authoring.stub import StubError, cut_stub, regions

from .cells import Cell, code, document, markdown, unique
from .pieces import Piece, pieces
from .write import SET_UP

if TYPE_CHECKING:
    from llmkata.course import Exercise

_HOW = """\
## How to work here
Run the cell below first. Then fill in each `raise NotImplementedError("task ...")` and run its cell. The last cells stand
for the tasks: run here, each judges its task by the visible checks; what counts is what you ran last. `%kata hint` opens
the next hint for the check that failed first."""

_POINTS = """\
# Task {number}: {title} ({points:g} points)
# Here the visible checks of this task are run; when it is graded the hidden ones too, and they give the points.
%kata points {number}"""

#: What nbgrader's own cutter must not take for given code: it knows no regions that simply go.
_HIDDEN, _AS_SOLUTION = re.compile(r"^(\s*#+\s*BEGIN )HIDDEN\b.*$"), r"\1SOLUTION task 0: what only the answer needs"
_HIDDEN_END = re.compile(r"^(\s*#+\s*END )HIDDEN\b.*$")


def source_notebook(exercise: Exercise, solution: str, worth: Mapping[int, float], repository: str = "") -> str:
    """The notebook as JSON (nbformat 4.5).

    Args:
        solution: text of the model answer, with its regions.
        worth: task -> points of its hidden checks; a task without points has no graded cell.
        repository: what Colab clones.

    Raises:
        StubError, SyntaxError: a solution that cannot be cut.
    """
    cells = [
        markdown("brief", exercise.brief.read_text("utf-8")),
        markdown("how", _HOW),
        code("set-up", SET_UP.format(repository=repository, exercise=exercise.id), locked=True),
    ]
    used: set[str] = set()
    for piece in _whole_regions(pieces(solution)):
        cut = bool(regions(piece.text))
        text = _markers_for_nbgrader(piece.text.strip("\n")) if cut else piece.text.strip("\n")
        cells.append(code(unique(piece.name or "given", used), text, solution=cut, locked=not cut))
    return document([*cells, markdown("tasks", "## The tasks, judged"), *_graded(exercise, worth)], exercise.id)


def cut_cell(source: str) -> str:
    """A cell of a source notebook as learners get it: what ``cut_stub`` makes of it. Raises StubError."""
    hidden = re.compile(r"^(\s*#+\s*)BEGIN SOLUTION task 0:")
    lines, inside = [], False
    for line in source.split("\n"):
        if hidden.match(line):
            inside, line = True, hidden.sub(r"\1BEGIN HIDDEN ", line).rstrip()
        elif inside and "END SOLUTION" in line:
            inside, line = False, line.replace("END SOLUTION", "END HIDDEN")
        lines.append(line)
    return cut_stub("\n".join(lines)).strip("\n")


def configure(c: Any, course: str, isolation: str) -> None:
    """What ``nbgrader_config.py`` of an exported course says: release cells are cut as stubs are, cells may take as long
    as checks do, and the graders are those of ``course`` (for the processes nbgrader starts).
    """
    import os

    from nbgrader.converters import GenerateAssignment
    from nbgrader.preprocessors import ClearSolutions

    from .cutter import CutStub

    os.environ["KATA_COURSE"], os.environ["KATA_ISOLATION"] = course, isolation
    steps = GenerateAssignment.class_traits()["preprocessors"].default_args[0]
    c.GenerateAssignment.preprocessors = [CutStub if step is ClearSolutions else step for step in steps]
    c.Execute.timeout = 600


def _whole_regions(parts: list[Piece]) -> list[Piece]:
    """Pieces put together where a region spans several (helpers that only the answer needs)."""
    found: list[Piece] = []
    held: Piece | None = None
    for part in parts:
        held = Piece(held.name, held.text + part.text) if held else part
        if _balanced(held.text):
            found.append(held)
            held = None
    if held:
        regions(held.text)  # says what is not closed
    return found


def _balanced(text: str) -> bool:
    try:
        regions(text)
    except StubError:
        return False
    return True


def _markers_for_nbgrader(text: str) -> str:
    lines = (_HIDDEN_END.sub(r"\1SOLUTION", _HIDDEN.sub(_AS_SOLUTION, line)) for line in text.split("\n"))
    return "\n".join(lines)


def _graded(exercise: Exercise, worth: Mapping[int, float]) -> list[Cell]:
    tasks = {task.number: task.title for task in exercise.tasks}
    return [
        code(f"task-{number}", _POINTS.format(number=number, title=tasks.get(number, ""), points=points),
             locked=True, points=points)
        for number, points in worth.items() if points
    ]  # fmt: skip
