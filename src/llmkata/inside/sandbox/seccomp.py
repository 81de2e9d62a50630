"""The system call filter: a list of what is allowed, everything else refused.

Refused calls fail with EPERM, so that a library's fallback or a Python exception takes over; calls newer than the table
fail with ENOSYS. Another architecture's calls (32-bit entry points) kill the process.
Source: Linux ``Documentation/userspace-api/seccomp_filter.rst``.
"""

from __future__ import annotations

import ctypes
import errno
import functools
from dataclasses import dataclass

from . import libc, syscalls
from .policy import Grants

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SET_MODE_FILTER = 1
_LOAD, _EQUAL, _GREATER, _GREATER_EQUAL, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH = 0, 4  # offsets in struct seccomp_data; arguments of 8 bytes start at 16, low word first
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY, _ABSENT, _NOT_A_TERMINAL = (0x00050000 | code for code in (errno.EPERM, errno.ENOSYS, errno.ENOTTY))

_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag that makes a namespace
_MAP_SHARED_ANONYMOUS = 0x21
_MAP_GROWSDOWN_OR_HUGETLB = 0x40100  # neither counts towards RLIMIT_DATA
_AF_UNIX, _AF_INET, _AF_NETLINK, _NETLINK_ROUTE = 1, 2, 16, 0
# Streams and datagrams, with SOCK_NONBLOCK and SOCK_CLOEXEC
_SOCKET_KINDS = tuple(kind | flags for kind in (1, 2) for flags in (0, 0o4000, 0o2000000, 0o2004000))
_SOCKET_PROTOCOLS = (0, 6, 17)  # the kind's own, TCP, UDP: others load kernel modules
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, OFD locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
# TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: asking, and flags of one's own descriptor
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_SET/GET_NO_NEW_PRIVS, PR_SVE_GET_VL,
# PR_SME_GET_VL, PR_SET_VMA
_PRCTL = (3, 15, 16, 21, 23, 38, 39, 51, 64, 0x53564D41)


@dataclass(frozen=True)
class Filter:
    """What the filter depends on: grants; the own `pid`, in its namespace; whether others there may be signalled."""

    threads: bool = False
    processes: bool = False
    exec: bool = False
    loopback: bool = False
    signals: bool = False
    pid: int = 1

    @classmethod
    def of(cls, grants: Grants, *, signals: bool, pid: int) -> Filter:
        """The filter for the grants that could be given."""
        return cls(grants.threads > 0, grants.processes > 0, grants.exec is not None, grants.loopback or grants.server,
                   signals, pid)


def _argument(index: int, high: bool = False) -> int:
    return 16 + 8 * index + (4 if high else 0)


def _any_of(index: int, values: tuple[int, ...], refuse: int = _DENY) -> list:
    """Allow if the low word of an argument is one of `values`."""
    block = [(_LOAD, 0, 0, _argument(index))]
    for value in values:
        block += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return block + [(_RETURN, 0, 0, refuse)]


def _only(index: int, values: tuple[int, ...]) -> list:
    """Refuse unless the low word of an argument is one of `values`; go on behind the block otherwise."""
    tests = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [(_LOAD, 0, 0, _argument(index)), *tests, (_RETURN, 0, 0, _DENY)]


def _socket() -> list:
    """IPv4 streams and datagrams; and routing netlink, by which getifaddrs (and so Gloo) asks for the interfaces."""
    netlink = _any_of(2, (_NETLINK_ROUTE,))
    ipv4 = [*_only(0, (_AF_INET,)), *_only(1, _SOCKET_KINDS), *_any_of(2, _SOCKET_PROTOCOLS)]
    return [(_LOAD, 0, 0, _argument(0)), (_EQUAL, 0, len(netlink), _AF_NETLINK), *netlink, *ipv4]


def _judge(f: Filter) -> dict[str, list]:
    """Per system call the block that decides on its arguments. Every path through a block returns."""
    allow, deny = [(_RETURN, 0, 0, _ALLOW)], [(_RETURN, 0, 0, _DENY)]
    if f.threads or f.processes:
        clone = [(_LOAD, 0, 0, _argument(0)), (_ANY_BIT, 0, 1, _CLONE_NEW), *deny]
        clone += [(_ANY_BIT, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW if f.threads else _DENY)]
        clone += allow if f.processes else deny
    else:
        clone = deny
    to_self = _any_of(0, (f.pid,))
    return {
        "mmap": [(_LOAD, 0, 0, _argument(3)), (_ANY_BIT, 0, 1, _MAP_GROWSDOWN_OR_HUGETLB), *deny,
                 (_AND, 0, 0, _MAP_SHARED_ANONYMOUS), (_EQUAL, 0, 1, _MAP_SHARED_ANONYMOUS), *deny, *allow],
        "fcntl": _any_of(1, _FCNTL),
        "ioctl": _any_of(1, _IOCTL, _NOT_A_TERMINAL),
        "prctl": _any_of(0, _PRCTL),
        # Only asking: the third argument, the new limit, must be NULL.
        "prlimit64": [(_LOAD, 0, 0, _argument(2)), (_EQUAL, 1, 0, 0), *deny,
                      (_LOAD, 0, 0, _argument(2, high=True)), (_EQUAL, 1, 0, 0), *deny, *allow],
        "kill": allow if f.signals else to_self,
        "tkill": to_self,
        "tgkill": allow if f.signals else to_self,
        "clone": clone,
        "socket": _socket() if f.loopback else deny,
        "socketpair": _any_of(0, (_AF_UNIX,)) if f.loopback else deny,
    }


@functools.cache
def program(f: Filter) -> bytes:
    """The BPF program (struct sock_filter[]) for this machine. Raises OSError where there is no table for it."""
    if syscalls.MACHINE not in _AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no table of system calls for {syscalls.MACHINE}")
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _AUDIT_ARCH[syscalls.MACHINE]), (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NR), (_GREATER, 0, 1, syscalls.LAST_KNOWN), (_RETURN, 0, 0, _ABSENT)]
    for number in syscalls.numbers(syscalls.ABSENT).values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ABSENT)]
    judged = _judge(f)
    for name, number in syscalls.numbers(syscalls.JUDGED).items():
        code += [(_EQUAL, 0, len(judged[name]), number), *judged[name]]
    for first, last in _ranges(_allowed(f)):
        code += [(_GREATER, 3, 0, last), (_GREATER_EQUAL, 0, 1, first), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    code.append((_RETURN, 0, 0, _DENY))
    return b"".join(op.to_bytes(2, "little") + bytes((jt, jf)) + k.to_bytes(4, "little") for op, jt, jf, k in code)


def _allowed(f: Filter) -> list[int]:
    granted = syscalls.numbers(syscalls.GRANTED)
    names = {"fork", "vfork", "setsid", "setpgid"} if f.processes else set()
    names |= {"execve", "execveat"} if f.exec else set()
    if f.loopback:
        names |= {"bind", "listen", "accept", "accept4", "connect", "setsockopt", "sendmmsg", "recvmmsg"}
    return sorted([*syscalls.numbers(syscalls.ALLOWED).values(), *(granted[n] for n in names if n in granted)])


def _ranges(values: list[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, so that the filter compares twice a run and not once a call."""
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(f: Filter) -> None:
    """Install the filter on this thread and what it starts. Needs no_new_privs. Raises OSError."""
    code = program(f)
    buffer = ctypes.create_string_buffer(code, len(code))
    prog = _Program(len(code) // 8, ctypes.addressof(buffer))
    try:
        libc.syscall("seccomp", _SET_MODE_FILTER, 0, ctypes.byref(prog))
    except OSError:  # Linux before 3.17, or a container that refuses the newer call
        libc.prctl(libc.PR_SET_SECCOMP, 2, ctypes.addressof(prog))
