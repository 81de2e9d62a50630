"""Namespaces: users, network, IPC objects and processes of its own.

A process cannot enter a new pid namespace itself, only its children can. A template that is root's makes one for each
worker it forks (`fork_as_first`). Elsewhere `fork_into_pid_namespace` forks once more: the learner's code runs in the
child, and the parent stays as a reaper that holds nothing. Killing either ends the whole namespace.
Source: user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from typing import NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from . import libc
from .descriptors import close_all_but, die_with_parent

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_BY_LAYER = {"mountns": _NEWNS, "netns": _NEWNET, "ipcns": _NEWIPC, "pidns": _NEWPID}


def unshare(layer: str) -> None:
    """Leave the namespace that `layer` names. Raises OSError."""
    libc.syscall("unshare", _BY_LAYER[layer])


def own_user_namespace(proc: int) -> None:
    """Move to a user namespace that maps our own user and group and nothing else. Raises OSError.

    `proc`: a descriptor of a mounted /proc in which this process is visible.
    """
    uid, gid = os.geteuid(), os.getegid()
    libc.syscall("unshare", _NEWUSER)
    # Changing credentials makes the process undumpable, and its /proc files root's.
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def loopback_up() -> None:
    """Bring up ``lo`` of this network namespace (it then has 127.0.0.1). Raises OSError."""
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        flags = struct.unpack_from("16sH", request)[1]
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | IFF_UP))


def fork_as_first() -> tuple[int, int]:
    """Fork; the child is the first process of a pid namespace of its own -> (0, a descriptor of its parent for
    `tie_to`) in the child, (its pid, -1) in the parent. Raises OSError, before it forks, where this is not allowed:
    to others than root.
    """
    here, parent = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC), -1
    try:
        parent = os.pidfd_open(os.getpid())
        libc.syscall("unshare", _NEWPID)
        child = -1
        try:
            child = os.fork()
        finally:
            if child:
                _back_to(here)
        return (child, -1) if child else (0, os.dup(parent))
    finally:
        for fd in (here, parent):
            if fd >= 0:
                os.close(fd)


def _back_to(here: int) -> None:
    try:
        libc.syscall("setns", here, _NEWPID)
    except OSError as error:  # the next child would land beside this one
        raise SystemExit(f"cannot return to the own pid namespace: {error}") from None


def tie_to(parent: int) -> None:
    """Have this process die with the one that the descriptor `parent` is of, which forked it. To be called after the
    last change of credentials, which would undo it. Closes `parent`. Raises OSError.
    """
    die_with_parent()
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    if poll.poll(0):  # it ended before it was asked for
        os._exit(1)
    os.close(parent)


def host_pid() -> int:
    """The pid of this process as the host sees it, whose /proc is still there. Raises OSError."""
    return int(os.readlink("/proc/self"))


def fork_into_pid_namespace() -> socket.socket:
    """Fork into the namespace that `unshare("pidns")` made; return, in the child alone, its link to the reaper.

    The calling process becomes the reaper: it waits for the child, then ends as the child ended. Raises OSError.
    """
    parent = os.getppid()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child:
        _reap(child, ours.detach(), parent)
    ours.close()
    os.setsid()
    return theirs


def tie_to_reaper(link: socket.socket) -> int:
    """Have this process die with its reaper; return its pid as the host sees it.

    To be called after the last change of credentials, which would undo it. Closes `link`. Raises OSError.
    """
    # Asked for before the reaper answers, so that one that is already dead is noticed.
    die_with_parent()
    with link:
        link.sendall(b"?")
        answer = link.recv(16)
    if not answer:
        os._exit(1)
    return int(answer)


def _reap(child: int, link: int, parent: int) -> NoReturn:
    try:
        close_all_but((link,))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent()
        if os.getppid() == parent and os.read(link, 1):
            os.write(link, str(child).encode())
        os.close(link)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            if -code != signal.SIGKILL:
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)
    finally:
        os._exit(1)
