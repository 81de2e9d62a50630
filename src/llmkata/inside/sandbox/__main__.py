"""``python -m llmkata.inside.sandbox``: enter with every grant, and print as JSON what stands on this host."""

from __future__ import annotations

import json
import os
import sys
import tempfile

from . import LAYERS, Policy, enter

_GRANTS = {"threads": 1, "processes": 1, "exec": "python", "loopback": True, "server": True}


def main() -> int:
    """Print ``{"layers": [...], "missing": {...}}``; returns 0."""
    if not hasattr(os, "fork"):
        print(json.dumps({"layers": [], "missing": dict.fromkeys(LAYERS, f"not made for {sys.platform}")}))
        return 0
    with tempfile.TemporaryDirectory(prefix="kata-doctor-") as scratch:
        child = os.fork()
        if child == 0:
            _report(scratch)
        os.waitpid(child, 0)
    return 0


def _report(scratch: str) -> None:
    try:
        entered = enter(Policy.from_dict({"scratch": scratch, "keep_fds": [1, 2], "grants": _GRANTS}))
        os.write(1, json.dumps({"layers": entered.layers, "missing": entered.missing}).encode())
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
