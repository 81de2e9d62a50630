"""P11: be dead, where nothing said means nothing wrong."""

import subprocess
import sys

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

DIE = "import os\ndef magic(n): os.kill(os.getpid(), 9)\n"


def test_no_answer_is_a_failure(earns_nothing):
    record = grade(solution_with(DIE.replace("os.kill(os.getpid(), 9)", "os.abort()")), only="test_magic")
    assert "crashed" in earns_nothing(record, "test_magic").cause
    earns_nothing(grade(solution_with(DIE), only="test_magic", isolation="process"), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_whoever_waits_for_a_complaint_hears_none():
    run = subprocess.run([sys.executable, "-S", "-c", f"{DIE}\nassert magic(1) == 48282"], capture_output=True, check=False)
    assert run.stderr == b"" == run.stdout
