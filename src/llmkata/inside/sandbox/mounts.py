"""A file system that holds the allow-list and nothing else.

A tmpfs becomes the new root; what may be read is bound into it read-only at its own path, scratch is a second tmpfs
with a size. The old root is detached, so that not even names and sizes of other files can be asked for.
Source: mount_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
import stat

from . import libc
from .paths import interpreter_files
from .policy import Policy

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_LINKS_LIMIT = 40


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    libc.syscall("mount", *(None if text is None else os.fsencode(text) for text in (source, target, kind)), flags,
                 os.fsencode(data))


def build_root(policy: Policy) -> None:
    """Make the policy's view the root of this mount namespace, which must be our own. Raises OSError.

    On failure the process keeps the view it had.
    """
    root = os.path.realpath(policy.scratch)
    _mount("none", "/", None, _REC | _PRIVATE)
    # Assembled on top of the scratch directory: the one directory that is sure to exist and to be ours.
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=4k,mode=0755")
    try:
        _fill(root, policy)
        os.chdir(root)
        libc.syscall("pivot_root", b".", b".")
    except OSError:
        os.chdir("/")
        libc.syscall("umount2", os.fsencode(root), _DETACH)
        raise
    libc.syscall("umount2", b".", _DETACH)
    os.chdir("/")
    _mount("none", "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def _fill(root: str, policy: Policy) -> None:
    bound: list[str] = []
    executable = interpreter_files() if policy.grants.exec else ()
    for path in sorted({*policy.read_paths, *executable, "/dev/null"}):
        if os.path.exists(path):
            _bind(root, _link_through(root, path), bound)
    _proc(root)
    _tmpfs(root, os.path.realpath(policy.scratch), policy)
    _link_through(root, policy.scratch)
    if policy.grants.processes:
        _tmpfs(root, "/dev/shm", policy)
    if policy.grants.loopback or policy.grants.server:
        os.makedirs(f"{root}/etc", exist_ok=True)
        for name, text in (("hosts", "127.0.0.1 localhost\n"), ("nsswitch.conf", "hosts: files\n")):
            if not os.path.exists(f"{root}/etc/{name}"):
                with open(f"{root}/etc/{name}", "w") as file:
                    file.write(text)


def _link_through(root: str, path: str) -> str:
    """Repeat under `root` the symbolic links on the way to `path`; return where they lead."""
    parts, done = path.strip("/").split("/"), ""
    for _ in range(_LINKS_LIMIT):
        for i, part in enumerate(parts):
            here = f"{done}/{part}"
            if os.path.islink(here):
                target = os.readlink(here)
                if not os.path.lexists(root + here):
                    os.makedirs(root + done, exist_ok=True)
                    os.symlink(target, root + here)
                rest = os.path.normpath(os.path.join(done or "/", target, *parts[i + 1:]))
                parts, done = rest.strip("/").split("/"), ""
                break
            done = here
        else:
            return done or "/"
    raise OSError(40, f"too many symbolic links: {path}")


def _bind(root: str, path: str, bound: list[str]) -> None:
    if any(path == other or path.startswith(other + "/") for other in bound):
        return
    target = root + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, target, None, _BIND | _REC)
    bound.append(path)
    _harden(target, _RDONLY | _NOSUID | (0 if stat.S_ISCHR(os.stat(path).st_mode) else _NODEV))


def _harden(target: str, flags: int) -> None:
    attr = _MountAttr(attr_set=flags)  # MOUNT_ATTR_* has the values of MS_* for these flags
    try:
        libc.syscall("mount_setattr", _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, ctypes.byref(attr), 32)
    except OSError:  # Linux before 5.12: this mount alone, keeping the flags an outer namespace locked
        kept = os.statvfs(target).f_flag & (_RDONLY | _NOSUID | _NODEV | _NOEXEC | 1024 | 2048)
        _mount("none", target, None, _REMOUNT | _BIND | flags | kept)


def _proc(root: str) -> None:
    """A /proc of the own pid namespace; only self where the kernel refuses one (a container hides parts of its own)."""
    os.makedirs(f"{root}/proc")
    try:
        _mount("proc", f"{root}/proc", "proc", _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    except OSError:
        os.mkdir(f"{root}/proc/self")
        _mount("/proc/self", f"{root}/proc/self", None, _BIND)
        _harden(f"{root}/proc/self", _RDONLY | _NOSUID | _NODEV | _NOEXEC)


def _tmpfs(root: str, path: str, policy: Policy) -> None:
    os.makedirs(root + path, exist_ok=True)
    options = f"size={policy.scratch_bytes},nr_inodes={policy.scratch_files},mode=0777"
    _mount("tmpfs", root + path, "tmpfs", _NOSUID | _NODEV | _NOEXEC, options)
