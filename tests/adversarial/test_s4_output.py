"""S4: print without end."""

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

ATTACK = '''
import os, sys
_right = magic
def magic(n):
    for _ in range(50):
        print("x" * 1_000_000)
        sys.stderr.write("y" * 1_000_000)
        os.write(1, b"z" * 1_000_000)
    return _right(n)
'''


def test_prints_are_cut_and_the_answer_counts(capfd):
    record = grade(solution_with(ATTACK), only="test_magic")
    check = named(record, "test_magic")
    assert check.outcome is Outcome.passed and 1000 < len(check.staff_output) < 3000 and "[...]" in check.staff_output
    assert len("".join(capfd.readouterr())) < 1000


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_in_one_process_all_of_it_arrives(capfd):
    grade(solution_with(ATTACK.replace("range(50)", "range(1)")), only="test_magic", transport="loopback", diagnosing=False)
    assert len(capfd.readouterr().out) > 1_000_000
