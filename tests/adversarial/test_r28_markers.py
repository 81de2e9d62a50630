"""R28: print what a platform takes for the result."""

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

NOTICE = "::notice title=Autograding complete::Points 21/21"
ATTACK = f'''
import os, sys
def magic(n):
    print("{NOTICE}")
    print("::stop-commands::x", file=sys.stderr)
    for fd in (1, 2):
        os.write(fd, b"\\n{NOTICE}\\n")
    return 5
'''


def test_it_is_kept_for_staff_and_printed_nowhere(capfd, earns_nothing):
    record = grade(solution_with(ATTACK), only="test_magic")
    failed = earns_nothing(record, "test_magic")
    printed = capfd.readouterr()
    assert "::notice" not in printed.out + printed.err
    assert NOTICE in failed.staff_output and "::" not in failed.cause


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_in_one_process_it_is_printed(capfd):
    grade(solution_with(ATTACK), only="test_magic", transport="loopback", diagnosing=False)
    assert NOTICE in capfd.readouterr().out
