"""B3: lines that a notebook hands to a shell, and cells in other languages."""

import pytest

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, notebook

LINES = ["!touch {marker}", "%system touch {marker}", "%%bash\ntouch {marker}", "files = !touch {marker}",
         "%run {marker}", "%%script python\nopen('{marker}', 'w')", "!!touch {marker}", "%sx touch {marker}",
         "%%writefile {marker}\nx"]


def test_they_are_dropped_and_told(tmp_path):
    marker = tmp_path / "marker"
    lines = [line.format(marker=marker) for line in LINES]
    given = handed_in(tmp_path / "in", {"module1/toy.ipynb": notebook(SOLUTION, *lines)})
    assert "marker" not in given.source.decode() and f"dropped {len(lines)} magic lines" in " ".join(given.notes)
    assert grade(given.source.decode(), isolation="process").points == 21 and not marker.exists()


def test_by_way_of_a_call_they_meet_the_sandbox(tmp_path, earns_nothing):
    shell = "import os\ndef magic(n):\n    return 48271 * n + 11 if os.system('true') == 0 else 0"
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, shell)})
    earns_nothing(grade(given.source.decode(), only="test_magic"), "test_magic")


def test_an_honest_notebook_passes(tmp_path):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook("%matplotlib inline\n" + SOLUTION)})
    assert grade(given.source.decode()).points == 21


def test_as_ipython_reads_them_they_run(tmp_path):
    transform = pytest.importorskip("IPython.core.inputtransformer2").TransformerManager().transform_cell
    for line in LINES:
        assert "get_ipython()." in transform(line.format(marker="x"))
