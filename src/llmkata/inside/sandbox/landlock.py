"""Landlock: an allow-list of paths that needs no privilege, and no TCP or signals beyond it where the kernel can.

Source: Linux ``Documentation/userspace-api/landlock.rst`` and ``include/uapi/linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import os
import stat

from . import libc
from .policy import Policy

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK, MAKE_SOCK = 1 << 6, 1 << 11, 1 << 9
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_SCRATCH = (1 << 15) - 1 & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK | MAKE_SOCK)
_ALL_NET = 0b11  # bind and connect TCP
_ALL_SCOPES = 0b11  # abstract unix sockets, signals

_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # ABI to the number of file system rights it knows; 16 from 5 on


class _RulesetAttr(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def abi() -> int:
    """The Landlock ABI of this kernel. Raises OSError where there is none."""
    return libc.syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)


def restrict(policy: Policy, interpreter: tuple[str, ...]) -> list[str]:
    """Confine this process to the policy's paths. Needs no_new_privs. Raises OSError.

    `interpreter`: the files that may be executed under the `exec` grant. Returns what this kernel's ABI leaves open.
    """
    version = abi()
    handled = (1 << _FS_RIGHTS.get(version, 16)) - 1
    attr = _RulesetAttr(fs=handled)
    size = 8
    if version >= 4:
        size = 16
        # A handled right without a rule is denied, and loopback needs bind: its namespace has nowhere else to go.
        attr.net = 0 if policy.grants.loopback or policy.grants.server else _ALL_NET
    if version >= 6:
        size = 24
        attr.scoped = _ALL_SCOPES
    ruleset = libc.syscall("landlock_create_ruleset", ctypes.byref(attr), size, 0)
    try:
        read = READ_FILE | READ_DIR
        for path in policy.read_paths + ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"):
            _allow(ruleset, path, read & handled)
        for path in interpreter:
            _allow(ruleset, path, (READ_FILE | EXECUTE) & handled)
        _allow(ruleset, "/dev/null", (READ_FILE | WRITE_FILE) & handled)
        _allow(ruleset, policy.scratch, _SCRATCH & handled)
        if policy.grants.loopback or policy.grants.server:
            for path in ("/etc/hosts", "/etc/nsswitch.conf"):
                _allow(ruleset, path, READ_FILE & handled)
        if policy.grants.processes:
            _allow(ruleset, "/dev/shm", _SCRATCH & handled)
        libc.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return [what for since, what in ((3, "truncating"), (4, "TCP"), (5, "device ioctl"), (6, "signals"))
            if version < since]


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, or not reachable for us: nothing to allow
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_A_FILE
        rule = _PathBeneath(rights, fd)
        libc.syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(fd)
