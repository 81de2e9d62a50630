"""The toy course as learners have it: a clone for self-study, and a released repository without any answer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from llmkata.authoring.feedback import build
from llmkata.authoring.release import contents
from llmkata.authoring.release.deliver import deliver
from llmkata.course import load_course

TOY = Path(__file__).parents[1] / "toy"
#: More visible checks: one that a known mistake fails, and a budget that needs no oracle of ours.
MORE = '''

@task(1)
def test_rows(submission):
    """Each row is a distribution."""
    x = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    same(submission.softmax(x), torch.softmax(x, -1))


@task(2)
@hint("One product is enough.")
def test_project_flops_example(submission, budget, torch_rng):
    """A product of (8, 4) and (4, 2) costs 2 * 8 * 4 * 2 operations."""
    x, w = torch.randn(8, 4, generator=torch_rng), torch.randn(4, 2, generator=torch_rng)
    run = budget.replay(lambda s, x, w: s.project(x, w), x, w, expect=lambda x, w: x @ w)
    budget.require("FLOPs of a product", run.flops, at_most=128, reference=128)
'''

KATA = [sys.executable, "-m", "llmkata.cli.main"]


def environment(**more: str) -> dict[str, str]:
    """Of a learner's shell: no colours asked for or refused, no width."""
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")}
    return env | {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | more


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The toy course with solutions, graders and references."""
    root = tmp_path / "clone"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__", "conftest.py", "harness.py"))
    return root


@pytest.fixture
def released(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``kata release`` makes of the toy course, without the wheel: the framework under test is this one."""
    visible = clone / "exercises/module1/toy/test_toy.py"
    visible.write_text(visible.read_text("utf-8") + MORE, "utf-8")
    course = load_course(clone)
    toy = course.exercise("toy")
    toy.feedback.write_text(json.dumps(build(course, toy)), "utf-8")
    root = tmp_path / "released"
    monkeypatch.setattr(contents, "_wheel", lambda: ("none.whl", b""))
    deliver(contents.contents(course), root, course.title)
    (root / "vendor/none.whl").unlink()
    return root


#: What Windows has not, taken away from the project's code in every process that is started.
WITHOUT_POSIX = """
import builtins, os, signal
GONE = {"fcntl", "resource", "termios", "tty", "pty", "grp", "pwd"}
real = builtins.__import__
def without(name, globals=None, locals=None, fromlist=(), level=0):
    if name in GONE and str((globals or {}).get("__package__")).startswith("llmkata"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = without
for name in ("fork", "forkpty", "setsid", "killpg", "getpgid", "memfd_create"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGWINCH", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGHUP", "setitimer", "alarm"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


def without_posix(folder: Path) -> dict[str, str]:
    """The environment of a system without forks and POSIX modules; ``folder`` is made."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT_POSIX)
    return {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
