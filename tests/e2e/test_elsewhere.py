"""Grading where there is no sandbox: the demo runs and says so, the grading of strangers waits for a word."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llmkata.cli.options import Isolation
from llmkata.course import load_course
from llmkata.records import State, latest, read_records

from .conftest import KATA, TOY, environment, without_posix


@pytest.fixture
def bundled(clone: Path) -> Path:
    """The toy course with an example class of three: right, wrong, a file that is no Python."""
    right = (TOY / "solutions/module1/toy.py").read_text("utf-8")
    files = {"ann": right, "ben": right.replace("keepdim=True)\n    # END", "keepdim=True) / 2\n    # END"), "cem": "def f(:\n"}
    for learner, text in files.items():
        path = clone / "examples/submissions" / learner / "module1/toy.py"
        path.parent.mkdir(parents=True)
        path.write_text(text, "utf-8")
    return clone


def kata(root: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KATA, *words], cwd=root, env=environment(**env), capture_output=True, text=True, check=False)


def test_the_demo_without_forks_and_sandbox(bundled: Path, tmp_path: Path) -> None:
    env = without_posix(tmp_path / "site")
    done = kata(bundled, "demo", **env)
    assert done.returncode == 0, done.stderr
    assert "Without a sandbox (this system has none)" in done.stdout and "demo/index.html" in done.stdout
    records = latest(read_records([bundled / "demo/records.jsonl"]).records)
    assert {who: r.state for (who, _), r in records.items()} == {
        "ann": State.graded, "ben": State.graded, "cem": State.unreadable}
    assert records["ann", "module1/toy"].points == records["ann", "module1/toy"].max_points > records["ben", "module1/toy"].points
    assert "without a sandbox" in records["ann", "module1/toy"].notes[-1]
    assert records["ann", "module1/toy"].files == ["module1/toy.py"]
    shutil.rmtree(bundled / "demo")
    refused = kata(bundled, "grade", "examples/submissions", **env)
    assert refused.returncode == 2 and "--isolation=process if you trust" in refused.stderr and "fault" not in refused.stderr
    assert not (bundled / "report/records.jsonl").exists()


def test_the_demo_falls_back_where_the_sandbox_does_not_stand(clone: Path, monkeypatch, capsys) -> None:
    from llmkata.cli import demo
    from llmkata.grading import isolation

    def lacking(*_: object) -> None:
        raise isolation.TooLittleIsolation("no seccomp")

    monkeypatch.setattr(isolation, "require", lacking)
    assert demo._best(load_course(clone)) is Isolation.process
    assert "Without a sandbox (no seccomp)" in capsys.readouterr().out
    monkeypatch.setattr(isolation, "require", lambda *_: None)
    assert demo._best(load_course(clone)) is Isolation.sandbox
