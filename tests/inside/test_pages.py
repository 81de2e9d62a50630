"""Memory in huge pages: what it holds stays, and stays its owner's."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from llmkata.inside import pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MADV_COLLAPSE is Linux's")

MIB = 1 << 20


@pytest.fixture
def memory():
    """8 MiB of private memory in which every page differs."""
    made = mmap.mmap(-1, 8 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(made), mmap.PAGESIZE):
        made[page : page + 8] = page.to_bytes(8, "little")
    yield made
    made.close()


def whole(memory: mmap.mmap) -> bool:
    return all(memory[page : page + 8] == page.to_bytes(8, "little") for page in range(0, len(memory), mmap.PAGESIZE))


def huge_kib() -> int:
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("AnonHugePages"))


def in_fork(act) -> int:
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = int(act())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_is_there_stays(memory):
    def collapsed() -> bool:
        before = huge_kib()
        done = pages.collapse()
        return done % (2 * MIB) == 0 and whole(memory) and (not done or huge_kib() > max(before, 4096))

    assert in_fork(collapsed) == 1


def test_a_fork_writes_into_its_own(memory):
    def run() -> bool:
        pages.collapse()
        child = in_fork(lambda: (memory.seek(0), memory.write(b"theirs!!"), memory[:8] == b"theirs!!")[-1])
        return child == 1 and whole(memory)

    assert in_fork(run) == 1


def test_a_kernel_that_does_not_know_it_refuses_quietly(memory, monkeypatch):
    monkeypatch.setattr(pages, "_MADV_COLLAPSE", 12345)
    assert pages.collapse() == 0 and whole(memory)


def test_other_systems_are_let_be(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pages.collapse() == 0
