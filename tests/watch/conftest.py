"""Copies of the toy course to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

TOY = Path(__file__).parents[1] / "toy"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The root of a copy of the toy course, as a clone has it."""
    root = tmp_path / "toy"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__", "conftest.py", "harness.py"))
    return root
