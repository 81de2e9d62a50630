"""Have the judge import the submission: a worker that dies is opened again, and what was asked is asked of others, too."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

#: Writes a file where it may: in the judge's process, not in a sandboxed worker. The last visible check meets a dead
#: worker, the first hidden one opens the next and is failed, so it is diagnosed.
ATTACK = '''
try:
    with open({marker!r}, "a") as _file:
        _file.write("imported\\n")
except OSError:
    pass

_right = softmax
def softmax(x):
    return _right(x) * 1.5

def _leave(self, name, value):
    import os
    os._exit(0)
Ledger.add = _leave
'''


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def test_a_diagnosis_runs_nothing_of_the_learners(marker, earns_nothing):
    record = grade(solution_with(ATTACK.format(marker=str(marker))))
    assert "ended by itself" in named(record, "test_one_entry").cause
    earns_nothing(record, "test_softmax_sums_to_one")
    assert not marker.exists()


def test_honest_work_passes(honest):
    assert named(honest, "test_softmax_sums_to_one").outcome is Outcome.passed


def test_in_one_process_it_is_imported(marker):
    grade(solution_with(ATTACK.format(marker=str(marker))), only="test_softmax_sums_to_one", transport="loopback")
    assert marker.exists()
