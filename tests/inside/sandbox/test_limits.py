"""Memory, processor time, files: each limit holds, and without the layer it does not."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import time

import pytest

MIB = 2**20
SMALL = {"memory_bytes": 64 * MIB}


def allocate(size):
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    return len(block)


def test_memory_above_the_grant_is_refused(ground):
    assert "MemoryError" in ground.run(allocate, 128 * MIB, **SMALL).error
    assert ground.run(allocate, 32 * MIB, **SMALL).value == 32 * MIB


def test_control_without_rlimit_memory_is_open(ground):
    assert ground.run(allocate, 128 * MIB, disable=["rlimit"], **SMALL).value == 128 * MIB


def shared_anonymous(size):
    with mmap.mmap(-1, size) as block:
        return len(block)


def growing_down(size):
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100)
    return len(block)


def memory_file(size):
    fd = os.memfd_create("x")
    os.posix_fallocate(fd, 0, size)
    return os.fstat(fd).st_size


@pytest.mark.parametrize("escape", [shared_anonymous, growing_down, memory_file])
def test_memory_that_rlimit_data_does_not_count_is_refused_by_the_filter(ground, escape):
    assert "not permitted" in ground.run(escape, 128 * MIB, **SMALL).error
    assert ground.run(escape, 128 * MIB, disable=["seccomp"], file_size=256 * MIB, **SMALL).value == 128 * MIB


def test_address_space_stands_behind_it(ground):
    assert "Cannot allocate" in ground.run(shared_anonymous, 4096 * MIB, disable=["seccomp"], **SMALL).error


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def test_processor_time_is_bounded(ground):
    assert ground.run(spin, 3, cpu_seconds=1).killed_by == signal.SIGKILL


def test_control_without_rlimit_processor_time_is_open(ground):
    assert ground.run(spin, 1.5, cpu_seconds=1, disable=["rlimit"]).value == "done"


def write_file(size):
    with open("big", "wb") as file:
        file.write(bytes(size))
    return os.path.getsize("big")


def open_many(count):
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    return len(fds)


@pytest.mark.parametrize(("act", "amount", "limit", "error"), [
    (write_file, 2 * MIB, {"file_size": MIB}, "File too large"),
    (open_many, 100, {"max_files": 64}, "Too many open files"),
])
def test_files_are_bounded(ground, act, amount, limit, error):
    assert error in ground.run(act, amount, **limit).error
    assert ground.run(act, amount, disable=["rlimit"], **limit).value == amount


def raise_limit():
    resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_limit_by_pointer():
    libc = ctypes.CDLL(None, use_errno=True)
    new = (ctypes.c_ulong * 2)(10, 10)
    if libc.prlimit64(0, resource.RLIMIT_NOFILE, new, None) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize("act", [raise_limit, raise_limit_by_pointer])
def test_limits_can_be_read_but_not_set(ground, act):
    assert ground.run(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]).value == 256
    assert "not " in ground.run(act).error  # "not permitted", or Python's "not allowed to raise maximum limit"
    assert ground.run(act, disable=["seccomp"]).value == 10


def test_no_core_file(ground):
    assert ground.run(lambda: resource.getrlimit(resource.RLIMIT_CORE)).value == [0, 0]
