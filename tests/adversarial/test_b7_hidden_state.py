"""B7: state of cells that were run in another order, or are gone."""

from llmkata.records import State

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, notebook, shared


def numbered(source, count):
    return {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": count}


#: Run in the order of their numbers these work, from top to bottom they do not.
OUT_OF_ORDER = (numbered("ANSWER = MULTIPLIER * 2", 2), numbered("MULTIPLIER = 3", 1))


def test_cells_run_from_top_to_bottom(tmp_path):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, *OUT_OF_ORDER)})
    record = grade(given.source.decode())
    assert record.state is State.unreadable and "NameError" in record.cause and "MULTIPLIER" in record.cause


def test_in_order_they_pass(tmp_path):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, *reversed(OUT_OF_ORDER))})
    assert grade(given.source.decode()).points == 21


def test_with_the_state_of_a_kernel_they_work():
    cells = sorted(OUT_OF_ORDER, key=lambda c: c["execution_count"])
    assert shared("\n".join(c["source"] for c in cells))["ANSWER"] == 6
