"""A copy of the toy course to be spoiled, and ``kata`` called as from a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"
collect_ignore = ["toy"]  # a course of its own: its checks are run by the audit that is tested here


@dataclass
class Done:
    """What a call came to."""

    status: int
    out: str
    err: str


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Path]:
    """The root of a copy of the toy course."""
    root = tmp_path / "course"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns(".kata", "__pycache__"))
    yield root
    # pytest keeps the modules of the checks it collected here by their path within the course: every copy has the same.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(root)):
            del sys.modules[name]


@pytest.fixture
def kata(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``kata("sync", "1.1")`` in this process, through the entry point."""
    from llmkata.cli.main import main

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["kata", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as left:
            status = left.code or 0
        shown = capfd.readouterr()
        return Done(status, shown.out, shown.err)

    return call


def edit(path: Path, before: str, after: str) -> None:
    """Replace a text that must be there."""
    text = path.read_text("utf-8")
    assert before in text, f"{before!r} is not in {path}"
    path.write_text(text.replace(before, after), "utf-8")
