"""Submissions that do one thing, and the naive ways of grading that fall to them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with


def right_only_if(act: str) -> str:
    """A solution whose ``magic`` is right where the function body ``act`` ends without an exception and does not return
    False, and 0 elsewhere."""
    return solution_with("_right = magic\ndef _act():\n" + textwrap.indent(textwrap.dedent(act), "    ") + '''

def magic(n):
    try:
        done = _act() is not False
    except BaseException:
        done = False
    return _right(n) if done else 0
''')


def passes(source: str, **setting: Any) -> bool:
    """Whether the check of ``magic`` is passed under that setting."""
    return named(grade(source, only="test_magic", **setting), "test_magic").outcome is Outcome.passed


def reachable(folder: Path, mode: int = 0o755) -> None:
    """Open a temporary folder, with those above it that are ours, to the user a worker of root becomes."""
    for path in (folder, *folder.parents[:2]):
        if path.stat().st_uid == os.geteuid():
            path.chmod(mode)


#: What a file that is tested by somebody else's pytest, in the same process, sees of its test.
NAIVE_TEST = "from answer import magic\n\ndef test_magic():\n    assert magic(1) == 48282\n"


def naive(folder: Path, answer: str, test: str = NAIVE_TEST, *arguments: str) -> int:
    """pytest's exit status where test and answer share this process; 0 is what such graders take for full marks."""
    (folder / "answer.py").write_text(textwrap.dedent(answer))
    (folder / "test_answer.py").write_text(test)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return int(pytest.main([str(folder / "test_answer.py"), f"--rootdir={folder}", "-c", "/dev/null", "-p",
                                    "no:cacheprovider", "-p", "no:terminal", "--capture=no", "-p",
                                    "no:unraisableexception", "-p", "no:threadexception", "-p", "no:faulthandler", *arguments]))
    finally:
        sys.path.remove(str(folder))
        for name in ("answer", "test_answer"):
            sys.modules.pop(name, None)
