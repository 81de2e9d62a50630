"""A released tree: what is in it, that it works, how it is updated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmkata.authoring.release import contents as release_contents
from llmkata.authoring.release.deliver import MANIFEST, Occupied, deliver, hidden_in_history
from llmkata.grading.folder import RELEASE, RELEASED

from ..conftest import edit

STUB = "exercises/module1/scale/scale.py"
#: What ``kata reset`` puts back and an untouched file is told by.
COPY = ".kata-stubs/module1/scale.py"
WRONG = '''
import torch


def softmax(x):
    if x.dim() == 0:
        raise ValueError("softmax needs a dimension, not shape ()")
    e = torch.exp(x - x.max(dim=0, keepdim=True).values)
    return e / e.sum(0)


def mix(scores, values):
    return softmax(scores) @ values
'''


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without building the wheel, which takes seconds."""
    monkeypatch.setattr(release_contents, "_wheel", lambda: ("llmkata-0.0-py3-none-any.whl", b"no archive"))


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_released_repository_works(toy: Path, tmp_path: Path, kata) -> None:
    """Install its wheel, and nothing else of ours, into a fresh environment; a wrong answer is named there."""
    out = tmp_path / "student"
    done = kata("--course", toy, "release", out)
    assert done.status == 0, done.err
    assert tree(out) == {
        ".github/workflows/autograding.yml", ".gitignore", MANIFEST, "LICENSE", "README.md", "course.yaml", "docs/learner.md",
        "exercises/module1/scale/README.md", STUB, "exercises/module1/scale/feedback.json",
        "exercises/module1/scale/test_scale.py", COPY, "kata", "kata.cmd", "pyproject.toml", "requirements.lock",
        f"vendor/{next((out / 'vendor').iterdir()).name}",
    }  # fmt: skip
    assert MANIFEST == RELEASE and {name.split("/")[0] for name in tree(out)} <= RELEASED | {"exercises"}, "no card lists it"
    assert os.access(out / "kata", os.X_OK)
    assert "A course to be audited" in (out / "README.md").read_text()

    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next(environment.rglob("site-packages"))
    libraries = next(p for p in sys.path if p.endswith("site-packages"))
    # The libraries of requirements.lock as they are here; llmkata's own editable entry is not followed from a .pth file.
    (site / "libraries.pth").write_text(f"{libraries}\n")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*install, *(out / "vendor").glob("*.whl")], check=True)
    python = next(p for p in (environment / "bin/python", environment / "Scripts/python.exe") if p.exists())

    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([python, "-m", *words], cwd=out, capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": ""})

    where = call("llmkata.cli.main", "version")
    assert where.returncode == 0, where.stderr
    found = subprocess.run([python, "-c", "import llmkata; print(llmkata.__file__)"], cwd=out, capture_output=True, text=True, check=True)
    assert str(site) in found.stdout
    board = call("llmkata.cli.main", "start")
    assert board.returncode == 0, board.stderr
    assert "Weights and sums" in board.stdout
    fresh = call("pytest", "exercises/module1")
    assert "not started" in fresh.stdout
    given_out = (out / STUB).read_text()
    untouched = call("llmkata.cli.main", "check", "scale")
    assert untouched.returncode == 1 and "not started" in untouched.stdout, untouched.stdout + untouched.stderr
    (out / STUB).write_text(WRONG)
    wrong = call("pytest", "exercises/module1")
    assert wrong.returncode == 1
    assert "Your softmax runs over the first dimension." in wrong.stdout, wrong.stdout
    checked = call("llmkata.cli.main", "check", "scale")
    assert checked.returncode == 1 and "Your softmax runs over the first dimension." in checked.stdout, checked.stderr
    assert call("llmkata.cli.main", "hint", "scale").returncode == 0
    back = call("llmkata.cli.main", "reset", "scale", "--yes")
    assert back.returncode == 0, back.stderr
    assert (out / STUB).read_text() == given_out == (out / COPY).read_text()
    assert [kept.read_text() for kept in (out / STUB).parent.glob("scale.*.bak.py")] == [WRONG]


def test_a_leak_stops_the_release(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    (toy / "exercises/module1/scale/README.md").write_text(
        (toy / "exercises/module1/scale/README.md").read_text() + "\n    e = (x - x.amax(dim=-1, keepdim=True)).exp()\n")
    done = kata("--course", toy, "release", tmp_path / "student")
    assert done.status == 1
    assert "nothing was released: 1 leaks" in done.err
    assert "exercises/module1/scale/README.md:10: line of an answer" in done.err
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("solutions/module1/scale.py", "task 2: one product", "task 2: a product", "the stub is out of step"),
        ("graders/module1/scale/misconceptions.py", "Your softmax runs", "Your softmax ran", "feedback.json is out of step"),
    ],
)
def test_what_is_out_of_step_is_not_released(
    toy: Path, tmp_path: Path, kata, quick: None, file: str, before: str, after: str, told: str
) -> None:
    edit(toy / file, before, after)
    done = kata("--course", toy, "release", tmp_path / "student")
    assert done.status == 1
    assert told in done.err
    assert not (tmp_path / "student").exists()


def test_an_update_keeps_what_a_learner_edited(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    out = tmp_path / "student"
    assert kata("--course", toy, "release", out).status == 0
    (out / STUB).write_text(WRONG)
    (out / "notes.md").write_text("mine")
    edit(toy / "exercises/module1/scale/README.md", "Scores become weights", "Scores turn into weights")
    edit(toy / "solutions/module1/scale.py", "task 2: one product", "task 2: a product")
    assert kata("--course", toy, "sync").status == 0
    done = kata("--course", toy, "release", out)
    assert done.status == 0, done.err
    assert f"edited there and left as they are:\n  {STUB}" in done.out
    assert (out / STUB).read_text() == WRONG
    assert (out / "notes.md").read_text() == "mine"
    assert "Scores turn into weights" in (out / "exercises/module1/scale/README.md").read_text()
    again = kata("--course", toy, "release", out)
    assert " 0 written" in again.out
    assert (out / STUB).read_text() == WRONG


def test_a_stub_that_nobody_edited_is_updated(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    out = tmp_path / "student"
    kata("--course", toy, "release", out)
    (out / STUB).write_bytes((out / STUB).read_bytes().replace(b"\n", b"\r\n"))  # a checkout on Windows
    edit(toy / "solutions/module1/scale.py", "task 2: one product", "task 2: a product")
    kata("--course", toy, "sync")
    assert kata("--course", toy, "release", out).status == 0
    assert "task 2: a product" in (out / STUB).read_text()


def test_what_is_not_released_any_more_goes(tmp_path: Path) -> None:
    deliver({"a": b"1", "b": b"2", "c": b"3"}, tmp_path, "T")
    (tmp_path / "c").write_bytes(b"mine")
    done = deliver({"a": b"1"}, tmp_path, "T")
    assert (done.written, done.removed, done.kept) == ([], ["b"], ["c"])
    assert tree(tmp_path) == {"a", "c", MANIFEST}


def test_a_folder_of_something_else_is_refused(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("x")
    done = kata("--course", toy, "release", tmp_path / "other")
    assert done.status == 2
    assert "thesis.tex and no earlier release" in done.err
    assert tree(tmp_path / "other") == {"thesis.tex"}
    (tmp_path / "other" / MANIFEST).write_text("{}")
    with pytest.raises(Occupied):
        deliver({"a": b""}, tmp_path / "other", "T")


def test_a_hidden_file_in_the_history(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    out = tmp_path / "student"
    out.mkdir()

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", out, "-c", "user.name=T", "-c", "user.email=t@example.org", *words], check=True, capture_output=True)

    git("init")
    assert kata("--course", toy, "release", out).status == 0
    git("add", ".")
    git("commit", "-m", "release")
    assert hidden_in_history(out) == []
    (out / "solutions").mkdir()
    (out / "solutions/a.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "oh")
    git("rm", "-r", "solutions")
    git("commit", "-m", "gone")
    assert hidden_in_history(out) == ["solutions/a.py"]
    done = kata("--course", toy, "release", out)
    assert done.status == 1
    assert "its history holds solutions/a.py" in done.err


def test_hidden_checks_stay_unknown_where_only_their_outcome_is_told(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    feedback = "exercises/module1/scale/feedback.json"
    kata("--course", toy, "release", tmp_path / "hints")
    assert "test_correctness.py" in (tmp_path / "hints" / feedback).read_text()
    path = toy / "course.yaml"
    path.write_text(re.sub(r"hidden: \w+", "hidden: outcome", path.read_text(), count=1))
    assert kata("--course", toy, "release", tmp_path / "outcomes").status == 0
    told = (tmp_path / "outcomes" / feedback).read_text()
    assert "test_correctness.py" not in told
    assert "test_scale.py" in told


def test_no_weight_of_a_hidden_check_is_released(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    kata("--course", toy, "release", tmp_path / "student")
    told = json.loads((tmp_path / "student/exercises/module1/scale/feedback.json").read_text())
    assert told["checks"]
    assert all(set(check) == {"id", "title", "task", "hints"} for check in told["checks"])


def test_the_manifest_names_no_hidden_file(toy: Path, tmp_path: Path, kata, quick: None) -> None:
    kata("--course", toy, "release", tmp_path / "student")
    told = json.loads((tmp_path / "student" / MANIFEST).read_text())
    assert told["schema"] == "llmkata/release/v1"
    assert not [name for name in told["files"] if name.startswith(("graders", "solutions", "reference"))]
