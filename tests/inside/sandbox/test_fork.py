"""The first process of a pid namespace, forked by root: it dies with its parent, and the parent stays where it is."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from llmkata.inside import sandbox
from llmkata.inside.sandbox import namespaces

pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="root on Linux")


def child_says(policy: dict) -> tuple[int, int, bool]:
    """-> (pid as we see it, pid as the child sees itself, whether its policy says it is the first)."""
    read, write = os.pipe()
    pid = sandbox.fork(policy)
    if pid == 0:
        os.write(write, f"{os.getpid()} {int('parent_fd' in policy)}".encode())
        os._exit(0)
    os.close(write)
    seen, first = map(int, os.read(read, 100).split())
    os.close(read)
    os.waitpid(pid, 0)
    return pid, seen, bool(first)


def test_each_child_is_the_first_of_its_own():
    here = os.readlink("/proc/self/ns/pid_for_children")
    for _ in range(2):
        policy: dict = {}
        pid, seen, first = child_says(policy)
        assert (seen, first) == (1, True) and pid != 1
        assert policy == {}  # the parent's is as it was
    assert os.readlink("/proc/self/ns/pid_for_children") == here
    pid = os.fork()  # an ordinary child lands beside its parent
    if pid == 0:
        os._exit(int(os.getpid() == 1))
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("policy", [{"disable": ["pidns"]}, {"isolation": "process"}])
def test_who_wants_none_gets_none(policy):
    pid, seen, first = child_says(policy)
    assert seen == pid and not first


def test_where_it_is_not_allowed_the_fork_is_an_ordinary_one(monkeypatch):
    def refuse(name, *args):
        raise PermissionError(1, name)

    monkeypatch.setattr(namespaces.libc, "syscall", refuse)
    before = len(os.listdir("/proc/self/fd"))
    pid, seen, first = child_says({})
    assert seen == pid and not first
    assert len(os.listdir("/proc/self/fd")) == before


def grandchild(act) -> int:
    """The pid of a child of a child of ours, which ran ``act(descriptor of its parent)``; the one between is killed."""
    read, write = os.pipe()
    between = os.fork()
    if between == 0:
        pid, parent = namespaces.fork_as_first()
        if pid == 0:
            os.setsid()
            act(parent, write)
            os._exit(0)
        os.write(write, f"{pid} ".encode())
        signal.pause()
    said = b""
    while b" " not in said:
        said += os.read(read, 100)
    os.kill(between, signal.SIGKILL)
    os.waitpid(between, 0)
    os.close(read), os.close(write)
    return int(said.split()[0])


def gone(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_it_ends_with_its_parent_whenever_that_ends():
    def at_once(parent: int, write: int) -> None:
        namespaces.tie_to(parent)
        time.sleep(60)

    def late(parent: int, write: int) -> None:
        time.sleep(1.0)  # the parent is gone by now
        namespaces.tie_to(parent)
        time.sleep(60)

    assert gone(grandchild(at_once), 10.0)
    assert gone(grandchild(late), 10.0)


def test_what_is_not_tied_stays():
    """The control of the test above."""
    pid = grandchild(lambda parent, write: time.sleep(60))
    try:
        assert not gone(pid, 0.5)
    finally:
        os.kill(pid, signal.SIGKILL)
