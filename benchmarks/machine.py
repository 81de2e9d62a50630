"""What a figure hangs on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "pytest", "hypothesis", "nbgrader", "distributed")


def facts(root: Path) -> dict[str, Any]:
    """Cores this process may use, CPU, memory in GiB, system, versions, load average over the last minute, commit."""
    return {
        "cores": len(os.sched_getaffinity(0)), "cpu": _cpu(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: number for name in _PACKAGES if (number := version_of(name))},
        "load": round(os.getloadavg()[0], 2), "commit": _commit(root),
    }  # fmt: skip


def version_of(package: str) -> str | None:
    """Its installed version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def _commit(root: Path) -> str | None:
    """The commit, with ``+`` where files that are tracked differ from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit and commit + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
