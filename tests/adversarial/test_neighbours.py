"""A loop without end and a memory hog cost their own learner the limit once, and nobody else anything."""

import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission
from llmkata.grading.isolation import TooLittleIsolation
from llmkata.records import Outcome, State

from ..toy.harness import COURSE, SOLUTION, TOY, outcomes, solution_with

LOOP = solution_with("def magic(n):\n    while True:\n        pass\n")
HOG = solution_with('''
_kept = []
def magic(n):
    while True:
        _kept.append(bytearray(16 << 20))
''')
GONE = solution_with("import os\ndef magic(n): os._exit(1)")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    submissions = [Submission(learner, TOY.id, source.encode(), "toy.py") for learner, source in (
        ("loop", LOOP), ("honest", SOLUTION), ("hog", HOG), ("gone", GONE), ("honest too", SOLUTION))]
    try:
        graded = grade_many(COURSE, submissions, out=tmp_path_factory.mktemp("run"), workers=2)
    except TooLittleIsolation as e:
        pytest.skip(str(e))
    return {r.learner: r for r in graded}


def test_neighbours_get_everything(records):
    for learner in ("honest", "honest too"):
        assert records[learner].state is State.graded and records[learner].points == 21


@pytest.mark.parametrize("learner", ["loop", "hog", "gone"])
def test_only_the_check_is_lost(records, learner):
    record = records[learner]
    assert record.state is State.graded and record.points == 19 and record.max_points == 21
    assert outcomes(record)["test_magic"] is Outcome.failed


def test_causes_and_costs(records):
    cause = {name: next(c.cause for c in r.checks if "test_magic" in c.id) for name, r in records.items()}
    assert "did not finish within 2 s of computing" in cause["loop"]
    assert "memory" in cause["hog"].lower() or "killed" in cause["hog"]
    assert "ended by itself" in cause["gone"]
    assert records["loop"].cpu_seconds < 2 * records["honest"].cpu_seconds + 3  # the limit once
