"""Giving up privilege: not root, no capabilities, none to be regained by executing a file."""

from __future__ import annotations

import contextlib
import ctypes
import os

from . import libc

NOBODY = 65534
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522


def no_new_privs() -> None:
    """Make set-uid bits and file capabilities void, for good; what Landlock and filters ask for. Raises OSError."""
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)


def close_to_others(closed: bool) -> None:
    """Whether the memory, environment and descriptors of this process are closed to others of its user (not root).

    Forks inherit it, exec undoes it. Nothing happens on other systems than Linux.
    """
    with contextlib.suppress(OSError):
        libc.prctl(libc.PR_SET_DUMPABLE, int(not closed))


def leave_root(paths: tuple[str, ...], scratch: str | None) -> str | None:
    """Become `NOBODY` if we are root. Returns None, or why root was kept. Raises OSError.

    Root is kept, without its capabilities, where another user could not read `paths`: learner code that cannot import
    its libraries would fail for a reason that is not the learner's. `scratch`: a directory to hand over, if any.
    """
    if os.geteuid() != 0:
        return None
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    hidden = [path for path in paths if not os.access(path, os.R_OK, effective_ids=True)]
    if scratch is not None and not os.access(os.path.dirname(scratch), os.X_OK, effective_ids=True):
        hidden.append(os.path.dirname(scratch))
    os.seteuid(0)
    os.setegid(0)
    if hidden := [path for path in hidden if os.path.exists(path)]:
        return f"other users cannot read {hidden[0]}"
    if scratch is not None:
        os.chown(scratch, NOBODY, NOBODY)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Measured from outside through /proc/<pid>, which is closed for an undumpable process.
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    return None


def drop_capabilities() -> None:
    """Empty every capability set of this thread. Raises OSError."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
        except OSError:  # past this kernel's last capability, or not ours to drop: the sets below are emptied anyway
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    empty = (ctypes.c_uint32 * 6)()
    libc.syscall("capset", ctypes.byref(header), ctypes.byref(empty))
