"""Namespaces: users, network, IPC objects and processes of its own.

A process cannot enter a new pid namespace itself, only its children can: `fork_into_pid_namespace` forks, the learner's
code runs in the child, and the parent stays as a reaper that holds nothing. Killing either ends the whole namespace.
Source: user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import os
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
