"""No network, no foreign processes or IPC, no privileges; the whole tree dies at once."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import threading
import time
from contextlib import closing

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
OPEN = ["seccomp", "landlock"]  # switched off on both sides of a control, so that the namespace alone decides


def connect(address):
    with socket.socket() as s:
        s.settimeout(5)
        s.connect(tuple(address))
    return "connected"


@pytest.fixture
def listener():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()


def test_netns_has_no_way_to_this_machine(ground, needs, listener):
    needs("netns")
    assert "unreachable" in ground.run(connect, listener, disable=OPEN).error


def test_control_without_netns_the_connection_is_made(ground, listener):
    assert ground.run(connect, listener, disable=[*OPEN, "netns"]).value == "connected"


def abstract_socket(name):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("\0" + name)
    return "connected"


def test_netns_hides_abstract_unix_sockets(ground, needs):
    needs("netns")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0llmkata-test-socket")
        server.listen()
        assert "refused" in ground.run(abstract_socket, "llmkata-test-socket", disable=OPEN).error
        assert ground.run(abstract_socket, "llmkata-test-socket", disable=[*OPEN, "netns"]).value == "connected"


def find_shared_memory(key):
    if LIBC.shmget(key, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "found"


def test_ipcns_hides_shared_memory(ground, needs):
    needs("ipcns")
    key, IPC_CREAT, IPC_RMID = 0x6B617461, 0o1000, 0
    segment = LIBC.shmget(key, 4096, IPC_CREAT | 0o666)
    assert segment != -1
    try:
        assert "No such file" in ground.run(find_shared_memory, key, disable=OPEN).error
        assert ground.run(find_shared_memory, key, disable=[*OPEN, "ipcns"]).value == "found"
    finally:
        LIBC.shmctl(segment, IPC_RMID, None)


def signal_zero(pid):
    os.kill(pid, 0)
    return "could be killed"


def test_pidns_hides_other_processes(ground, needs):
    needs("pidns")
    other, channel = ground.start(time.sleep, 30, isolation="process")
    assert channel.recv(1)  # it has entered
    # A process of the same user; root on both sides where root runs the tests.
    off = [*OPEN, "privileges"] if ground.user == "root" else OPEN
    try:
        assert "No such process" in ground.run(signal_zero, other, disable=off).error
        assert ground.run(signal_zero, other, disable=[*off, "pidns"]).value == "could be killed"
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        channel.close()


def daemon_then_wait():
    """A child in a session of its own, as one that wants to outlive the check."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    time.sleep(60)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(text) for text in file.read().split()]


def wait_gone(pid):
    for _ in range(200):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":  # ended; its new parent has not looked yet
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("victim", ["outer", "inner"])
def test_killing_either_process_ends_the_whole_tree(ground, needs, victim):
    needs("pidns")
    outer, channel = ground.start(daemon_then_wait, grants={"processes": 1})
    inner = json.loads(channel.makefile().readline())[2]
    assert children_of(outer) == [inner]
    while not children_of(inner):
        time.sleep(0.01)
    daemon = children_of(inner)[0]
    os.kill(outer if victim == "outer" else inner, signal.SIGKILL)
    _, status = os.waitpid(outer, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert wait_gone(inner) and wait_gone(daemon)
    channel.close()


def test_control_without_pidns_the_daemon_outlives_its_parent(ground):
    outer, channel = ground.start(daemon_then_wait, disable=["seccomp", "pidns", "userns"])
    assert json.loads(channel.makefile().readline())[2] == outer
    while not children_of(outer):
        time.sleep(0.01)
    daemon = children_of(outer)[0]
    os.kill(outer, signal.SIGKILL)
    os.waitpid(outer, 0)
    time.sleep(0.1)
    assert os.path.exists(f"/proc/{daemon}")
    os.kill(daemon, signal.SIGKILL)
    channel.close()


@pytest.mark.parametrize("off", [[], ["pidns"]])
def test_the_tree_dies_with_the_process_that_forked_it(ground, off):
    report, inside = os.pipe()

    def template():
        os.close(report)
        _, channel = ground.start(time.sleep, 60, disable=off)
        os.write(inside, channel.makefile().readline().encode())
        os._exit(0)

    pid = os.fork()
    if pid == 0:
        template()
    os.close(inside)
    with os.fdopen(report) as file:
        inner = json.loads(file.readline())[2]
    os.waitpid(pid, 0)
    assert wait_gone(inner)


@pytest.mark.parametrize(("act", "code"), [(lambda: os._exit(7), 7), (lambda: ctypes.string_at(0), -signal.SIGSEGV)])
def test_the_reaper_ends_as_its_child_did(ground, needs, act, code):
    needs("pidns")
    assert os.waitstatus_to_exitcode(ground.run(act).status) == code


def start_threads(count):
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    finally:
        done.set()
    return count


def test_userns_bounds_the_tasks(ground, needs):
    needs("userns", "privileges")
    assert "can't start new thread" in ground.run(start_threads, 20, grants={"threads": 8}).error
    assert ground.run(start_threads, 8, grants={"threads": 8}).value == 8


def test_control_without_userns_the_tasks_are_not_bounded(ground):
    assert ground.run(start_threads, 20, grants={"threads": 8}, disable=["userns"]).value == 20


def effective_capabilities():
    with open("/proc/self/status") as file:
        return int(dict(line.split(":", 1) for line in file)["CapEff"], 16)


def mount_something():
    if LIBC.mount(b"none", os.getcwd().encode(), b"tmpfs", 0, None) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "mounted"


def test_privileges_are_gone(ground):
    assert ground.run(effective_capabilities).value == 0
    assert ground.run(os.getuid).value != 0
    assert "not permitted" in ground.run(mount_something, disable=OPEN).error


def test_control_without_the_layer_privileges_stay(ground, needs):
    needs("userns", "mountns")
    off = ["privileges"]
    assert ground.run(effective_capabilities, disable=off).value != 0
    assert ground.run(mount_something, disable=[*OPEN, *off]).value == "mounted"


def test_root_is_kept_only_without_capabilities_where_others_cannot_read(ground):
    if ground.user != "root":
        pytest.skip("for root")
    closed = ground.path / "components"
    closed.mkdir(mode=0o700)
    trial = ground.run(effective_capabilities, read_paths=[str(closed)])
    assert "other users cannot read" in trial.entered.missing["privileges"]
    assert trial.value == 0


def test_the_worker_can_be_measured_from_outside(ground):
    outer, channel = ground.start(time.sleep, 30)
    inner = json.loads(channel.makefile().readline())[2]
    with open(f"/proc/{inner}/status") as file:
        assert "VmHWM" in file.read()
    with open(f"/proc/{inner}/clear_refs", "w") as file:
        file.write("5")
    assert time.clock_gettime(~inner << 3 | 2) > 0
    os.kill(inner, signal.SIGKILL)
    os.waitpid(outer, 0)
    channel.close()
