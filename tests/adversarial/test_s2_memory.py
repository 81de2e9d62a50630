"""S2: take all memory, in whatever way it is to be had."""

import pytest

from llmkata.records import Outcome, State

from ..toy.harness import grade, named, outcomes, solution_with

#: The toy course grants 256 MiB.
WAYS = {
    "bytes": "bytearray(2 << 20)",
    "torch": "__import__('torch').ones(1 << 19)",
    "private mapping": "__import__('mmap').mmap(-1, 2 << 20, flags=34)",
    "shared mapping": "__import__('mmap').mmap(-1, 2 << 20)",
    "a file": "open(f'f{len(_kept)}', 'wb').write(bytes(2 << 20))",
    "strings": "'x' * (2 << 20)",
}
ATTACK = '''
_right, _kept = magic, []
def magic(n):
    if not _kept:
        for _ in range(200):
            _kept.append({way})
            if hasattr(_kept[-1], "madvise"):
                for page in range(0, 2 << 20, 4096):
                    _kept[-1][page] = 1
    return _right(n)
'''


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_four_hundred_mebibytes_are_not_to_be_had(way, earns_nothing):
    record = grade(solution_with(ATTACK.replace("{way}", way)), only="test_magic")
    assert record.state is State.graded
    earns_nothing(record, "test_magic")


def test_only_the_check_is_lost():
    record = grade(solution_with(ATTACK.replace("{way}", WAYS["bytes"])))
    assert [n for n, o in outcomes(record).items() if o is not Outcome.passed] == ["test_magic"]


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_the_limit_they_are():
    small = ATTACK.replace("{way}", WAYS["bytes"])
    record = grade(solution_with(small), only="test_magic", disable=("rlimit",))
    assert named(record, "test_magic").outcome is Outcome.passed
