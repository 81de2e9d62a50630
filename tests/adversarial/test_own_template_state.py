"""Workers are forks of one warm interpreter: what one of them changes must not be there for the next."""

import sys

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

#: Changes what libraries share, and is right only where an earlier one has been.
LEAVES_BEHIND = '''
import builtins, gc, os, sys, torch, numpy as np
_right = magic
def _been_here():
    return (hasattr(torch, "kata_left") or hasattr(builtins, "kata_left") or "kata_left" in sys.modules
            or "KATA_LEFT" in os.environ or os.path.exists("kata_left"))
def magic(n):
    found = _been_here()
    torch.kata_left = builtins.kata_left = True
    sys.modules["kata_left"] = torch
    os.environ["KATA_LEFT"] = "1"
    try:
        open("kata_left", "w").close()
    except OSError:
        pass
    return _right(n) if found and not _first_call else 0
_first_call = not _been_here()
'''
#: Memory that is shared and can be written is seen by template and siblings.
SHARED_MEMORY = '''
_right = magic
def magic(n):
    with open("/proc/self/maps") as maps:
        lines = maps.readlines()
    assert len(lines) > 100
    return _right(n) if any(line.split()[1].startswith("rw") and line.split()[1].endswith("s") for line in lines) else 0
'''
#: The control: made by the worker itself, such memory is found.
OWN_MEMORY = "import mmap\n_room = mmap.mmap(-1, 4096)\n" + SHARED_MEMORY


def test_nothing_is_left_for_the_next(earns_nothing):
    for _ in range(2):
        earns_nothing(grade(solution_with(LEAVES_BEHIND), only="test_magic"), "test_magic")


def test_no_memory_is_shared(earns_nothing):
    failed = earns_nothing(grade(solution_with(SHARED_MEMORY), only="test_magic"), "test_magic")
    assert "AssertionError" not in failed.cause


def test_memory_that_is_shared_would_be_found():
    record = grade(solution_with(OWN_MEMORY), only="test_magic", isolation="process", disable=("seccomp",))
    assert named(record, "test_magic").outcome is Outcome.passed


def test_in_one_process_it_is_left():
    import builtins
    import os

    import torch

    try:
        records = [grade(solution_with(LEAVES_BEHIND), only="test_magic", transport="loopback", diagnosing=False)
                   for _ in range(2)]
        assert [named(r, "test_magic").outcome for r in records] == [Outcome.failed, Outcome.passed]
    finally:
        del torch.kata_left, builtins.kata_left
        sys.modules.pop("kata_left")
        os.environ.pop("KATA_LEFT")
        if os.path.exists("kata_left"):
            os.remove("kata_left")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed
