"""The files of a learner's repository, as bytes by path; nothing is written here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import llmkata
from llmkata.authoring.feedback import is_fresh, is_made
from llmkata.authoring.stub import StubError, copy_of_stub, cut_stub

#: Beside the package: launcher, pins, licence, the learner's manual.
PROJECT = Path(llmkata.__file__).resolve().parents[2]
_TEMPLATES = Path(__file__).parent / "learner"
_TAKEN_OVER = ("kata", "kata.cmd", "requirements.lock", "LICENSE", "docs/learner.md")
_MADE = {"README.md": "README.md", "pyproject.toml": "pyproject.toml", "gitignore": ".gitignore",
         "autograding.yml": ".github/workflows/autograding.yml"}


class OutOfStep(Exception):
    """What is to be released was made from files that have changed since; the message names file and command."""


class NoSource(Exception):
    """The framework is not here as source, so no wheel of it can be built."""


def contents(course: Any) -> dict[str, bytes]:
    """All files of the learner's repository but its manifest.

    Raises OutOfStep where a stub or a feedback.json is out of date, NoSource where the framework cannot be packed.
    """
    files = {name: (PROJECT / name).read_bytes() for name in _TAKEN_OVER if (PROJECT / name).is_file()}
    if "kata" not in files or not (PROJECT / "pyproject.toml").is_file():
        raise NoSource(f"no clone of llmkata around {PROJECT}: a release packs the framework from its source")
    files["course.yaml"] = (course.root / "course.yaml").read_bytes()
    values = {"title": course.title, "exercise": course.available[0].id, "module": course.available[0].module}
    for template, name in _MADE.items():
        files[name] = Template((_TEMPLATES / template).read_text("utf-8")).substitute(values).encode()
    for exercise in course.available:
        files.update(_exercise(exercise))
        if course.policy.feedback.hidden == "outcome":
            _without_hidden_checks(exercise, files)
    for component in dict.fromkeys(c for e in course.available for c in e.components):
        files.update(_tree(course.root, course.root / "components" / component))
    name, wheel = _wheel()
    files[f"vendor/{name}"] = wheel
    return dict(sorted(files.items()))


def _exercise(exercise: Any) -> Iterator[tuple[str, bytes]]:
    try:
        stub = cut_stub(exercise.solution.read_text("utf-8"))
    except (OSError, StubError) as error:
        raise OutOfStep(f"{exercise.id}: its stub cannot be cut: {error}") from None
    if not exercise.stub.is_file() or exercise.stub.read_text("utf-8") != stub:
        raise OutOfStep(f"{exercise.id}: the stub is out of step with its solution")
    if is_made(exercise) and not is_fresh(exercise):
        raise OutOfStep(f"{exercise.id}: feedback.json is out of step with checks and mistakes")
    yield copy_of_stub(exercise), stub.encode()
    yield from _tree(exercise.root, exercise.folder)


def _without_hidden_checks(exercise: Any, files: dict[str, bytes]) -> None:
    """Where a learner is to read no more of a hidden check than its outcome, its name and hints stay behind too."""
    name = exercise.feedback.relative_to(exercise.root).as_posix()
    if name in files:
        told = json.loads(files[name])
        told["checks"] = [c for c in told["checks"] if c["id"].split("::")[0] == exercise.visible_checks.name]
        files[name] = (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()


def _tree(root: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in parts):
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _wheel() -> tuple[str, bytes]:
    """Name and bytes of the framework's wheel, built from its source; the same bytes for the same source."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=PROJECT,
                              capture_output=True, text=True, check=False)
        built = list(Path(folder).glob("*.whl"))
        if done.returncode or len(built) != 1:
            raise NoSource(f"the framework's wheel cannot be built: {done.stderr.strip()[-600:]}")
        return built[0].name, built[0].read_bytes()
