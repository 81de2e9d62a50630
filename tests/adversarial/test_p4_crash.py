"""P4: crash the interpreter, so that whatever was reported last stands."""

import subprocess
import sys

from llmkata.records import Outcome, State

from ..toy.harness import grade, named, solution_with

CRASH = "import ctypes\nctypes.string_at(0)\n"
ATTACK = solution_with("def magic(n):\n    import ctypes\n    ctypes.string_at(0)\n")


def test_a_crash_is_a_failed_check_with_its_cause(earns_nothing):
    record = grade(ATTACK)
    assert "segmentation fault" in earns_nothing(record, "test_magic").cause
    assert record.state is State.graded and record.points == 19 and record.max_points == 21  # and nothing else is lost


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_in_one_process_the_last_report_stands():
    program = f"print('all tests passed', flush=True)\n{CRASH}\nprint('magic failed')"
    run = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode < 0 and run.stdout == "all tests passed\n"
