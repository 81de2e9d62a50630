"""The few calls into the C library the sandbox needs, each raising OSError with the errno it met."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from . import syscalls

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if _libc is not None:
    _libc.syscall.restype = ctypes.c_long
    _libc.prctl.restype = ctypes.c_int

_NUMBERS = syscalls.numbers(syscalls.ALLOWED | syscalls.SETUP) if syscalls.supported() else {}

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38


def _word(value):
    # ctypes passes a bare int as a 32-bit one, which would cut pointers and sizes.
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(name: str, *args) -> int:
    """Make the system call `name`. Raises OSError (ENOSYS where this machine's table lacks it)."""
    if name not in _NUMBERS:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return _checked(_libc.syscall(ctypes.c_long(_NUMBERS[name]), *map(_word, args)))


def prctl(option: int, *args) -> int:
    """prctl(2). Raises OSError (ENOSYS off Linux)."""
    if _libc is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    words = [*map(_word, args), *[ctypes.c_long(0)] * (4 - len(args))]
    return _checked(_libc.prctl(option, *words))
