"""Processes that judge are closed to others of their user; workers are open, to be measured."""

from __future__ import annotations

import ctypes
import os

import pytest

from llmkata.inside.sandbox.privileges import close_to_others
from llmkata.outside import process

from .conftest import AS_ROOT, NOBODY

GET_DUMPABLE = 3


def dumpable() -> int:
    return ctypes.CDLL(None).prctl(GET_DUMPABLE, 0, 0, 0, 0)


def child_reads_parent(closed: bool) -> bool:
    """Whether a child can read the memory of its parent, both of one user without capabilities."""
    parent = os.fork()
    if parent:
        _, status = os.waitpid(parent, 0)
        return os.waitstatus_to_exitcode(status) == 0
    try:
        if AS_ROOT:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        close_to_others(closed)
        child = os.fork()
        if child == 0:
            close_to_others(False)
            try:
                with open(f"/proc/{os.getppid()}/environ", "rb") as file:
                    file.read(1)
                os._exit(0)
            except OSError:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    finally:
        os._exit(9)


def test_a_closed_process_cannot_be_read_and_an_open_one_can():
    assert not child_reads_parent(closed=True)
    assert child_reads_parent(closed=False)


def test_whoever_holds_templates_is_closed_and_its_workers_are_not():
    kept = dumpable()
    close_to_others(False)
    own, process._templates = process._templates, {}
    try:
        worker = process.start_process("base", {"isolation": "process"})
        try:
            assert dumpable() == 0
            if not AS_ROOT:
                with pytest.raises(OSError):
                    open(f"/proc/{worker._template._process.pid}/environ", "rb").close()
            assert worker.memory()[0] > 0
            worker.reset_peak()
        finally:
            worker.kill()
            process.close_templates()
    finally:
        process._templates = own
        close_to_others(not kept)
