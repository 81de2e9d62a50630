"""Three exercises of the course are clean by the quick audit (results kept under .kata/audit are used)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("module0/matrix_calculus", "module2/self_attention", "module6/kv_cache")


def test_the_quick_audit_is_clean() -> None:
    """As an author runs it: in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "llmkata.cli.main", "audit", "--quick", *NAMES], cwd=ROOT, text=True,
                          env=dict(os.environ, PYTHONWARNINGS="ignore"), capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert all(f"{name}: clean" in done.stdout for name in NAMES)
