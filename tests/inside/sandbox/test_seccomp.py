"""Each act is refused by the filter and goes through without it: nothing else in the sandbox stops it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
import threading

import pytest

from llmkata.inside.sandbox import libc, syscalls

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"


def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call(x86, aarch64, *args):
    """The act that makes one system call by number."""
    number = x86 if X86 else aarch64
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return lambda: checked(LIBC.syscall(ctypes.c_long(number), *words)) and None


def own_file():
    path = "file.txt"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    return path


def lock_whole_file():
    with open(own_file()) as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def owner_of_signals(command):
    def act():
        fcntl.fcntl(os.pipe()[0], command, signal.SIGUSR1 if command == 10 else os.getpid())
    return act


def start_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def fork():
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def read_own_memory():
    there, here = ctypes.create_string_buffer(b"there"), ctypes.create_string_buffer(5)
    vectors = [struct.pack("PN", ctypes.addressof(block), 5) for block in (here, there)]
    checked(LIBC.process_vm_readv(os.getpid(), vectors[0], 1, vectors[1], 1, 0))


ACTS = {
    "socket": lambda: socket.socket().close(),
    "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "socketpair": lambda: [s.close() for s in socket.socketpair()] and None,
    "ptrace": call(101, 117, 0, 0, 0, 0),
    "process_vm_readv": read_own_memory,
    "fork": fork,
    "thread": start_thread,
    "memfd_create": lambda: os.close(os.memfd_create("x")),
    "userfaultfd": call(323, 282, 1),
    "io_uring": call(425, 425, 1, ctypes.create_string_buffer(120)),
    "pidfd_open": lambda: os.close(os.pidfd_open(os.getpid())),
    "keyctl": call(250, 219, 0, -2, 1),
    "add_key": call(248, 217, b"user", b"x", b"x", 1, -2),
    "unshare": call(272, 97, 0),
    "personality": call(135, 92, 0),
    "undumpable": lambda: libc.prctl(libc.PR_SET_DUMPABLE, 0) and None,
    "outlive the parent": lambda: libc.prctl(libc.PR_SET_PDEATHSIG, 0) and None,
    "another filter": call(317, 277, 2, 0, struct.pack("I", 0x7FFF0000)),
    "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 10),
    "sched_setaffinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "sched_setscheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "F_SETSIG": owner_of_signals(10),
    "F_SETOWN": owner_of_signals(8),
    "chmod": lambda: os.chmod(own_file(), 0o777),
    "utime": lambda: os.utime(own_file(), (0, 0)),
    "setxattr": lambda: os.setxattr(own_file(), "user.x", b"x"),
    "truncate": lambda: os.truncate(own_file(), 0),
    "flock": lock_whole_file,
    "mkfifo": lambda: os.mkfifo("fifo"),
    "inotify": call(294, 26, 0),
    "shmget": lambda: checked(LIBC.shmget(0, 4096, 0o600)) and None,
    "msgget": lambda: checked(LIBC.msgget(0, 0o600)) and None,
    "semget": lambda: checked(LIBC.semget(0, 1, 0o600)) and None,
    "mlock": call(149, 228, 0, 0),
    "splice to pipes": call(278, 75, 0, 0, 0, 0),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS.keys())
def test_refused_by_the_filter_alone(ground, act):
    # The user namespace bounds tasks, and a limit locked memory: they would refuse some acts in their own right.
    control = ground.run(act, disable=["seccomp", "userns", "rlimit"])
    if control.error is not None:
        pytest.skip(f"this host refuses it without the filter too: {control.error}")
    trial = ground.run(act)
    assert trial.error is not None and ("not permitted" in trial.error or "start new thread" in trial.error), trial


@pytest.mark.parametrize(("act", "reaches"), [
    (lambda: os.execv("/nonexistent", ["x"]), "No such file"),
    (lambda: os.kill(2, 0), "No such process"),
    (lambda: os.kill(-1, 0), "No such process"),
    (call(234, 131, 2, 2, 0), "No such process"),
])
def test_acts_with_nothing_to_act_on(ground, act, reaches):
    assert "not permitted" in ground.run(act).error
    assert reaches in ground.run(act, disable=["seccomp", "landlock"]).error


@pytest.mark.parametrize(("act", "inside", "outside"), [
    (call(435, 435, 0, 0), errno.ENOSYS, errno.EINVAL),  # clone3
    (call(451, 451, -1, 0, 0, 0), errno.ENOSYS, errno.EBADF),  # cachestat, newer than the table
    (call(2000, 2000), errno.ENOSYS, errno.ENOSYS),
])
def test_calls_that_read_as_not_implemented(ground, act, inside, outside):
    control = ground.run(act, disable=["seccomp"]).error
    if f"Errno {outside}]" not in control:
        pytest.skip(f"this kernel answers: {control}")
    assert f"Errno {inside}]" in ground.run(act).error


def getpid_by_32_bit_entry():
    code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


@pytest.mark.skipif(not X86, reason="the 32-bit entry point of x86")
def test_another_architecture_kills(ground):
    control = ground.run(getpid_by_32_bit_entry, disable=["seccomp", "pidns"])
    if control.killed_by:
        pytest.skip("this kernel has no 32-bit entry point")
    assert control.value > 0
    assert ground.run(getpid_by_32_bit_entry).killed_by == signal.SIGSYS


def test_signals_to_oneself_are_allowed(ground):
    def act():
        got = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append("signal"))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        return got

    assert ground.run(act).value == ["signal", "signal"]


def test_the_older_way_to_install_it(ground, monkeypatch):
    original = libc.syscall
    monkeypatch.setattr(libc, "syscall", lambda name, *a: original("none" if name == "seccomp" else name, *a))
    trial = ground.run(lambda: socket.socket().close())
    assert trial.entered.has("seccomp") and "not permitted" in trial.error


def test_without_seccomp_the_rest_stands(ground, monkeypatch):
    original = libc.syscall
    monkeypatch.setattr(libc, "syscall", lambda name, *a: original("none" if name == "seccomp" else name, *a))

    def refuse(option, *args, prctl=libc.prctl):
        if option == libc.PR_SET_SECCOMP:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return prctl(option, *args)

    monkeypatch.setattr(libc, "prctl", refuse)
    trial = ground.run(lambda: os.listdir("."))
    assert trial.value == [] and "Invalid argument" in trial.entered.missing["seccomp"]
    assert trial.entered.has("landlock") and trial.entered.has("rlimit")


def test_an_architecture_off_the_table_is_reported(ground, monkeypatch):
    monkeypatch.setattr(syscalls, "MACHINE", "riscv64")
    trial = ground.run(lambda: os.listdir("."), grants={"loopback": True})  # whose filter is not built yet
    assert trial.value == [] and "riscv64" in trial.entered.missing["seccomp"]
