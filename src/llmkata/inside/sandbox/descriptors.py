"""The first act after the fork: let go of everything inherited.

An open descriptor bypasses every rule about paths, so the descriptors of the parent go before anything else happens.
"""

from __future__ import annotations

import os
import signal

from . import libc

_TOP = 2**32 - 1


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor not in `keep`; 0, 1 and 2 read and write /dev/null unless kept. Raises OSError."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in keep:
            os.dup2(null, fd)
    start = 3
    for fd in sorted({fd for fd in keep if fd > 2}) + [_TOP]:
        if fd > start:
            _close_range(start, fd - 1 if fd != _TOP else _TOP)
        start = fd + 1


def _close_range(first: int, last: int) -> None:
    try:
        libc.syscall("close_range", first, last, 0)
    except OSError:  # Linux before 5.9, or another system
        for directory in ("/proc/self/fd", "/dev/fd"):
            if os.path.isdir(directory):
                for fd in [int(name) for name in os.listdir(directory) if first <= int(name) <= last]:
                    os.closerange(fd, fd + 1)
                return
        os.closerange(first, min(last, os.sysconf("SC_OPEN_MAX")) + 1)


def own_session() -> None:
    """Leave the parent's session and terminal, and volunteer for the out-of-memory killer. Raises OSError."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except FileNotFoundError:  # no /proc: another system
        pass


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends. Raises OSError."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
