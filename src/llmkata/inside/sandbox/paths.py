"""What every learner's process may read: the interpreter, installed libraries, system libraries; no home, no course."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from pathlib import Path

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/localtime",
           "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom", "/sys/devices/system/cpu")


@functools.cache
def default_read_paths() -> list[str]:
    """Paths of this interpreter, its libraries, the system's libraries and this package's `inside` and `wire`.

    The rest of the package, the course and the graders are not among them. Paths that do not exist, or that lie in
    another one of the list, are left out.
    """
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages", "lib-dynload")}
    paths |= {str(Path(sys.base_exec_prefix) / "lib"), str(Path(sys.prefix) / "pyvenv.cfg")}
    package = Path(__file__).parents[2]
    paths |= {str(package / part) for part in ("__init__.py", "inside", "wire")}
    kept: list[str] = []
    for path in sorted(p for p in paths | set(_SYSTEM) if p and os.path.exists(p)):
        if not any(path.startswith(other + os.sep) for other in kept):
            kept.append(path)
    return kept


def interpreter_files() -> tuple[str, ...]:
    """The files the kernel opens to execute this interpreter: the binary, by its names, and the dynamic loader."""
    loaders = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1",
               "/lib/ld-musl-aarch64.so.1")
    return tuple(p for p in (sys.executable, *loaders) if p and os.path.exists(p))
