"""The filter's program, run by an interpreter of its own, for both architectures: what this machine cannot try out."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from llmkata.inside.sandbox import seccomp, syscalls
from llmkata.inside.sandbox.seccomp import Filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, ENOTTY = (0x00050000 | code for code in (errno.EPERM, errno.ENOSYS, errno.ENOTTY))
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALL = syscalls.ALLOWED | syscalls.JUDGED | syscalls.GRANTED | syscalls.ABSENT | syscalls.SETUP
CLONE_THREAD_FLAGS = 0x3D0F00  # what pthread_create passes
SIGCHLD = 17


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request, monkeypatch):
    monkeypatch.setattr(syscalls, "MACHINE", request.param)
    seccomp.program.cache_clear()
    yield request.param
    seccomp.program.cache_clear()


def run(program: bytes, number: int, *args: int, arch: int | None = None) -> int:
    """Interpret classic BPF over a struct seccomp_data; return the action."""
    arch = ARCH[syscalls.MACHINE] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, *(a & 2**64 - 1 for a in (*args, *[0] * (6 - len(args)))))
    at, accumulator = 0, 0
    while True:
        op, jt, jf, k = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == 0x54:
            accumulator &= k
        elif op == 0x06:
            return k
        else:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
            at += jt if holds[op] else jf


def number(name):
    return syscalls.numbers(ALL)[name]


def test_every_known_call_is_allowed_or_refused_as_listed(machine):
    program = seccomp.program(Filter())
    allowed = set(syscalls.numbers(syscalls.ALLOWED).values())
    special = set(syscalls.numbers(syscalls.JUDGED | syscalls.ABSENT).values())
    for n in range(syscalls.LAST_KNOWN + 1):
        if n not in special:
            assert run(program, n) == (ALLOW if n in allowed else EPERM), n


def test_newer_calls_and_the_x32_table_are_not_implemented(machine):
    program = seccomp.program(Filter())
    for n in (syscalls.LAST_KNOWN + 1, 1000, 0x40000000, 0x40000000 + 57, 2**32 - 1, number("clone3")):
        assert run(program, n) == ENOSYS


def test_another_architecture_is_killed_whatever_it_calls(machine):
    program = seccomp.program(Filter())
    for arch in (0x40000003, 0x40000028, *(a for m, a in ARCH.items() if m != machine)):
        assert run(program, number("read"), arch=arch) == KILL


def test_clone(machine):
    def outcome(f, flags):
        return run(seccomp.program(f), number("clone"), flags)

    assert outcome(Filter(), CLONE_THREAD_FLAGS) == EPERM and outcome(Filter(), SIGCHLD) == EPERM
    assert outcome(Filter(threads=True), CLONE_THREAD_FLAGS) == ALLOW
    assert outcome(Filter(threads=True), SIGCHLD) == EPERM
    assert outcome(Filter(processes=True), SIGCHLD) == ALLOW
    assert outcome(Filter(processes=True), CLONE_THREAD_FLAGS) == EPERM
    for new in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert outcome(Filter(threads=True, processes=True), SIGCHLD | new) == EPERM


def test_mmap(machine):
    program = seccomp.program(Filter())

    def outcome(flags):
        return run(program, number("mmap"), 0, 4096, 3, flags, -1, 0)

    assert [outcome(f) for f in (0x22, 0x02, 0x01, 0x20022)] == [ALLOW] * 4  # private, file, MAP_STACK
    assert [outcome(f) for f in (0x21, 0x23, 0x122, 0x40022)] == [EPERM] * 4  # shared anonymous, downwards, huge


def test_limits_can_be_asked_for_only(machine):
    program = seccomp.program(Filter())
    assert run(program, number("prlimit64"), 0, 7, 0, 0x7FFF1000) == ALLOW
    assert run(program, number("prlimit64"), 0, 7, 0x7FFF1000, 0) == EPERM
    assert run(program, number("prlimit64"), 0, 7, 0x700000000, 0) == EPERM  # low word zero


def test_signals_only_to_oneself(machine):
    program = seccomp.program(Filter(pid=4711))
    for name in ("kill", "tgkill", "tkill"):
        assert run(program, number(name), 4711) == ALLOW
        assert [run(program, number(name), pid) for pid in (1, 0, -1, -4711)] == [EPERM] * 4
    assert run(seccomp.program(Filter(processes=True, signals=True)), number("kill"), 5) == ALLOW


def test_sockets(machine):
    AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK = 1, 2, 10, 16, 40
    closed, loopback = seccomp.program(Filter()), seccomp.program(Filter(loopback=True))
    for family in (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK):
        assert run(closed, number("socket"), family, 1) == EPERM
        assert run(loopback, number("socket"), family, 1) == (ALLOW if family in (AF_INET, AF_NETLINK) else EPERM)
    SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, FLAGS, MPTCP, SCTP = 1, 2, 3, 5, 0o2004000, 262, 132
    for kind in (SOCK_STREAM, SOCK_DGRAM | FLAGS):
        assert [run(loopback, number("socket"), AF_INET, kind, p) for p in (0, 6, 17)] == [ALLOW] * 3
        assert [run(loopback, number("socket"), AF_INET, kind, p) for p in (MPTCP, SCTP)] == [EPERM] * 2
    assert [run(loopback, number("socket"), AF_INET, kind) for kind in (SOCK_RAW, SOCK_SEQPACKET)] == [EPERM] * 2
    NETLINK_ROUTE, NETLINK_AUDIT, NETLINK_NETFILTER = 0, 9, 12
    assert run(loopback, number("socket"), AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) == ALLOW
    for protocol in (NETLINK_AUDIT, NETLINK_NETFILTER):
        assert run(loopback, number("socket"), AF_NETLINK, SOCK_RAW, protocol) == EPERM
    for name in ("connect", "bind", "listen", "setsockopt"):
        assert run(closed, number(name), 3) == EPERM and run(loopback, number(name), 3) == ALLOW


def test_descriptor_controls(machine):
    program = seccomp.program(Filter())
    F_GETFL, F_SETOWN, F_SETSIG, F_SETOWN_EX = 3, 8, 10, 15
    F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ, F_ADD_SEALS = 1024, 1026, 1031, 1033
    assert run(program, number("fcntl"), 3, F_GETFL) == ALLOW
    for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ, F_ADD_SEALS):
        assert run(program, number("fcntl"), 3, command) == EPERM
    TCGETS, TIOCSTI, TIOCLINUX, TIOCSCTTY, FS_IOC_SETFLAGS = 0x5401, 0x5412, 0x541C, 0x540E, 0x40086602
    assert run(program, number("ioctl"), 1, TCGETS) == ALLOW
    for command in (TIOCSTI, TIOCLINUX, TIOCSCTTY, FS_IOC_SETFLAGS):
        assert run(program, number("ioctl"), 1, command) == ENOTTY


def test_sessions_of_children_need_their_grant(machine):
    for name in ("setsid", "setpgid"):
        assert run(seccomp.program(Filter()), number(name)) == EPERM
        assert run(seccomp.program(Filter(processes=True)), number(name)) == ALLOW


def test_exec_needs_its_grant(machine):
    for name in ("execve", "execveat"):
        assert run(seccomp.program(Filter()), number(name)) == EPERM
        assert run(seccomp.program(Filter(exec=True)), number(name)) == ALLOW


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS, indirect=True)
def test_numbers_are_those_of_the_kernel_headers(machine):
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    text = header.read_text()
    defined = {name.removeprefix("3264_"): int(value)
               for name, value in re.findall(r"#define __NR_?(\w+)\s+(\d+)$", text, re.MULTILINE)}
    table = syscalls.numbers(ALL)
    checked = {name: defined[name] for name in table if name in defined}
    assert len(checked) > 0.9 * len(table)
    assert {name: table[name] for name in checked} == checked
