"""P1: end the process with exit status 0, at import."""

import subprocess
import sys

from llmkata.records import State

from ..toy.harness import grade, solution_with

ATTACK = "import os\nos._exit(0)\n"


def test_a_submission_that_ends_at_import_has_no_points():
    record = grade(solution_with(ATTACK))
    assert record.state is State.unreadable and record.points == 0 and "ended by itself" in record.cause


def test_honest_work_passes(honest):
    assert honest.points == 21


def test_where_an_exit_status_is_the_verdict_it_succeeds():
    assert subprocess.run([sys.executable, "-S", "-c", ATTACK + "assert 1 == 2"], check=False).returncode == 0
