"""P6: fork, and let the child answer as well."""

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

FORK = '''
_right = magic
def magic(n):
    import os
    try:
        os.fork()  # both answer
    except OSError:
        return -1
    return _right(n)
'''
COUNT = '''
def magic(n):
    import os
    try:
        pid = os.fork()
    except OSError:
        return -1
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return (48271 * n + 11) % 2147483647
'''


def test_a_fork_is_refused(earns_nothing):
    earns_nothing(grade(solution_with(FORK), only="test_magic"), "test_magic")


def test_two_answers_are_none(earns_nothing):
    """Where forking is possible, the second answer breaks the protocol."""
    record = grade(solution_with(FORK), only="test_magic", isolation="process")
    earns_nothing(record, "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed
    assert named(grade(only="test_magic", isolation="process"), "test_magic").outcome is Outcome.passed


def test_without_the_filter_a_fork_succeeds():
    assert named(grade(solution_with(COUNT), only="test_magic"), "test_magic").outcome is Outcome.failed
    without = grade(solution_with(COUNT), only="test_magic", isolation="process")
    assert named(without, "test_magic").outcome is Outcome.passed
