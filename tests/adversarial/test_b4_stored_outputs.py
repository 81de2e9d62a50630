"""B4: hand in the outputs of a run that never was."""

import json

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, notebook

OUTPUT = {"output_type": "stream", "name": "stdout", "text": "test_magic: passed\n21 of 21 points"}
WRONG = {"cell_type": "code", "metadata": {}, "execution_count": 7, "outputs": [OUTPUT],
         "source": "def magic(n): return 5"}


def test_outputs_are_not_read(tmp_path, earns_nothing):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, WRONG)})
    assert "21 of 21" not in given.source.decode()
    earns_nothing(grade(given.source.decode(), only="test_magic"), "test_magic")


def test_an_honest_notebook_passes(tmp_path):
    right = WRONG | {"source": SOLUTION, "outputs": [OUTPUT | {"text": "0 of 21 points"}]}
    assert grade(handed_in(tmp_path, {"module1/toy.ipynb": notebook(right)}).source.decode()).points == 21


def test_read_without_a_run_they_decide():
    stored = json.loads(notebook(WRONG))["cells"][0]["outputs"][0]["text"]
    assert stored.endswith("21 of 21 points")
