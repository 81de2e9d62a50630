"""The ``run`` steps of both workflows, executed in repositories as they are made, in a clean environment."""

from __future__ import annotations

import base64
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import llmkata
from llmkata.authoring.release import contents as release_contents
from llmkata.authoring.workflow import workflow

from .test_shape import read

PROJECT = release_contents.PROJECT
STUB = "exercises/module1/scale/scale.py"
#: Softmax over the wrong dimension, a mistake that feedback.json knows; and words for the runner.
WRONG = """\
import torch


def softmax(x):
    print("::error file=README.md::pwned")
    if x.dim() == 0:
        raise ValueError("softmax needs a dimension, not shape ()")
    e = torch.exp(x - x.max(dim=0, keepdim=True).values)
    return e / e.sum(0)


def mix(scores, values):
    raise RuntimeError("no\\n::set-output name=result::forged\\n::add-mask::kata")
"""
pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="the workflows run on Linux"),
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git"),
]


def environment_for(root: Path, wheel: Path | None) -> None:
    """What ``./kata version`` would set up in .venv, from the libraries that are here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    site = next((root / ".venv").rglob("site-packages"))
    libraries = next(p for p in sys.path if p.endswith("site-packages"))
    source = "" if wheel else f"{Path(llmkata.__file__).parents[1]}\n"
    (site / "libraries.pth").write_text(f"{libraries}\n{source}")
    if wheel:
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel]
        subprocess.run(install, check=True)
    launcher = runpy.run_path(str(root / "kata"))
    (root / ".venv/kata-stamp").write_text(launcher["expected_stamp"]())


class Runner:
    """Runs the ``run`` steps of a job as GitHub's runner does: bash -e, files for what is told, secrets filled in."""

    def __init__(self, root: Path, tmp_path: Path, secrets: Mapping[str, str]) -> None:
        self.root, self.secrets, self.files = root, secrets, tmp_path / "runner"
        self.files.mkdir()
        self.summary = self.files / "summary.md"
        self.outputs: dict[str, dict[str, str]] = {}
        self.log: dict[str, str] = {}
        self.status: dict[str, int] = {}

    def run(self, text: str) -> None:
        """All ``run`` steps of the job; one that fails ends it, unless it or a later one says otherwise."""
        [job] = read(text)["jobs"].values()
        failed = False
        for step in job["steps"]:
            if "run" not in step or failed and "cancelled()" not in step.get("if", ""):
                continue
            if "outcome == 'failure'" in step.get("if", "") and not self.status.get(step["if"].split(".")[1]):
                continue
            status = self._step(step, step.get("id") or step["run"].split()[1])
            failed = failed or bool(status) and not step.get("continue-on-error", False)
        self.failed = failed

    def _step(self, step: dict, name: str) -> int:
        output = self.files / f"output-{name}"
        output.touch()
        given = {key: self._filled(value) for key, value in step.get("env", {}).items()}
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.files),
            "LANG": "C.UTF-8",
            "CI": "true",
            "OMP_NUM_THREADS": "1",
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_REPOSITORY": "class/ann",
            "GITHUB_SHA": "c0ffee",
            "GITHUB_REF": "refs/heads/main",
            "GITHUB_RUN_ID": "7",
            "GITHUB_WORKSPACE": str(self.root),
            "GITHUB_EVENT_NAME": "push",
            "GITHUB_SERVER_URL": "https://example.invalid",
        } | given
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        self.log[name], self.status[name] = done.stdout + done.stderr, done.returncode
        self.outputs[name] = dict(line.split("=", 1) for line in output.read_text().splitlines())
        return done.returncode

    def _filled(self, value: str) -> str:
        return re.sub(r"\$\{\{ (?:secrets|vars)\.(\w+) \}\}", lambda m: self.secrets.get(m[1], ""), value)


def commands(log: str) -> list[str]:
    """The workflow commands that GitHub's runner would obey: those between stop-commands and its token are text."""
    obeyed, token = [], ""
    for line in log.splitlines():
        if token:
            token = "" if line.strip() == f"::{token}::" else token
        elif line.startswith("::stop-commands::"):
            token = line.removeprefix("::stop-commands::")
        elif line.lstrip().startswith("::") or "##[" in line:
            obeyed.append(line)
    assert not token, "commands stay switched off"
    return obeyed


@pytest.fixture
def student(toy: Path, tmp_path: Path, kata) -> Path:
    """A released repository, set up."""
    root = tmp_path / "student"
    done = kata("--course", toy, "release", root)
    assert done.status == 0, done.err
    environment_for(root, next((root / "vendor").glob("*.whl")))
    return root


def test_the_learners_workflow(student: Path, tmp_path: Path) -> None:
    text = (student / ".github/workflows/autograding.yml").read_text("utf-8")

    untouched = Runner(student, tmp_path, {})
    untouched.run(text)
    assert not untouched.failed, untouched.log
    assert "Nothing was begun yet" in untouched.summary.read_text()
    assert json.loads(base64.b64decode(untouched.outputs["kata"]["result"]))["max_score"] == 2

    (student / STUB).write_text(WRONG)
    shutil.rmtree(untouched.files)
    wrong = Runner(student, tmp_path, {})
    wrong.run(text)
    assert wrong.status == {"version": 0, "kata": 1}, wrong.log
    told = json.loads(base64.b64decode(wrong.outputs["kata"]["result"], validate=True))
    assert (told["status"], told["max_score"], [t["score"] for t in told["tests"]]) == ("fail", 2, [0, 0])
    assert {t["filename"] for t in told["tests"]} == {STUB}
    obeyed = commands(wrong.log["kata"])
    errors = [c for c in obeyed if c.startswith("::error ")]
    assert len(errors) == 2
    assert all(c.startswith(("::error ", "::group::", "::endgroup::")) for c in obeyed), obeyed
    assert f"file={STUB},line=13,title=1.1 Weights and sums%2C task 2" in errors[1]
    assert "pwned" not in "".join(obeyed)
    summary = wrong.summary.read_text()
    assert "**Recognised mistake:**" in summary
    assert "| 1.1 | Weights and sums |" in summary

    (student / STUB).write_text(
        WRONG[: WRONG.index("def mix")].replace("dim=0", "dim=-1").replace("e.sum(0)", "e.sum(-1, keepdim=True)")
        + "def mix(scores, values):\n    return softmax(scores) @ values\n"
    )
    shutil.rmtree(wrong.files)
    right = Runner(student, tmp_path, {})
    right.run(text)
    assert right.status == {"version": 0, "kata": 0}, right.log
    told = json.loads(base64.b64decode(right.outputs["kata"]["result"]))
    assert (told["status"], [t["score"] for t in told["tests"]]) == ("pass", [1, 1])
    assert not [c for c in commands(right.log["kata"]) if c.startswith("::error")]


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *words],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def class_of_two(toy: Path, tmp_path: Path) -> Path:
    """The instructor's repository with the graders, and what two learners pushed; a third one's cannot be read, and a
    fourth has none.
    """
    root = tmp_path / "private"
    shutil.copytree(toy, root)
    for name in ("kata", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, root / name)
    environment_for(root, None)
    rows = ["name,id,repository"]
    for learner, source in {"ann": (toy / "solutions/module1/scale.py").read_text(), "bob": WRONG}.items():
        place = tmp_path / "pushed" / learner
        (place / STUB).parent.mkdir(parents=True)
        (place / STUB).write_text(source)
        git(place, "init", "-q", "-b", "work")
        git(place, "add", ".")
        git(place, "commit", "-q", "-m", "work")
        rows.append(f"{learner.title()},{learner},{place}")
    rows += [f"Eve,eve,{tmp_path / 'pushed/none'}", "Flo Moe,flo,"]
    (root / "repositories.csv").write_text("\n".join(rows) + "\n")
    return root


def test_the_instructors_workflow(class_of_two: Path, tmp_path: Path) -> None:
    key = "k" * 40
    runner = Runner(class_of_two, tmp_path, {"KATA_SEED": "5", "KATA_SIGNING_KEY": key, "SUBMISSIONS_TOKEN": "t0ken"})
    runner.run(workflow())
    assert not runner.failed, runner.log
    assert runner.status == {"version": 0, "collect": 1, "grade": 0, "report": 0, '"::warning::Some': 0}, runner.log
    report = class_of_two / "report"
    records = [json.loads(line) for line in (report / "records.jsonl").read_text().splitlines()]
    earned = {r["learner"]: sum(c["points"] for c in r["checks"]) for r in records}
    assert earned == {"ann": 100, "bob": 10, "eve": 0, "flo": 0}
    states = {"ann": "graded", "bob": "graded", "eve": "missing", "flo": "missing"}
    assert {r["learner"]: r["state"] for r in records} == states
    assert "flo,Flo Moe," in (report / "grades.csv").read_text(), "the list is the roster, too"
    assert "--roster repositories.csv" in runner.log["collect"]
    assert (report / "index.html").is_file()

    signed = [json.loads(line)["file"] for line in (report / "signatures.jsonl").read_text().splitlines()]
    assert {"records.jsonl", "grades.csv", "learners/ann.html"} <= set(signed)

    def verified(name: str, key: str) -> int:
        return subprocess.run(
            [class_of_two / "kata", "verify", report / name],
            cwd=class_of_two,
            capture_output=True,
            env={"PATH": os.environ["PATH"], "KATA_SIGNING_KEY": key},
            check=False,
        ).returncode

    assert verified("learners/bob.json", key) == 0
    card = (report / "learners/bob.json").read_text()
    (report / "learners/bob.json").write_text(card.replace('"points": 10', '"points": 90'))
    assert (report / "learners/bob.json").read_text() != card
    assert verified("learners/bob.json", key) == 1
    assert verified("learners/ann.json", "z" * 40) == 1
    written = "".join(
        p.read_text(errors="replace")
        for p in class_of_two.rglob("*")
        if p.is_file() and p.relative_to(class_of_two).parts[0] in ("report", "submissions", ".kata")
    )
    assert "t0ken" not in written
    assert key not in written
