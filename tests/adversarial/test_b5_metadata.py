"""B5: edit what a notebook says of itself: points, locks, ids of cells."""

import json

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, notebook

GRADED = {"nbgrader": {"grade": True, "grade_id": "magic", "locked": False, "points": 1000, "solution": False}}


def cell(source):
    return {"cell_type": "code", "source": source, "metadata": GRADED, "outputs": [], "execution_count": 1}


def test_points_and_checks_are_those_of_the_course(tmp_path, honest, earns_nothing):
    cells = notebook(cell(SOLUTION), cell("def magic(n): return 5"), cell("assert True"), kata={"points": 1000, "checks": []})
    record = grade(handed_in(tmp_path, {"module1/toy.ipynb": cells}).source.decode())
    assert [(c.id, c.points + (c.max_points - c.points)) for c in record.checks] == [(c.id, c.max_points) for c in honest.checks]
    earns_nothing(record, "test_magic")
    assert record.max_points == 21


def test_an_honest_notebook_passes(tmp_path):
    assert grade(handed_in(tmp_path, {"module1/toy.ipynb": notebook(cell(SOLUTION))}).source.decode()).points == 21


def test_where_cells_carry_their_points_they_are_had():
    cells = json.loads(notebook(cell("assert True")))["cells"]
    assert sum(c["metadata"]["nbgrader"]["points"] for c in cells) == 1000
