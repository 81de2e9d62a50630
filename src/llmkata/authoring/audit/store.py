"""Results kept by content under ``.kata/audit``: an audit that was broken off goes on, what is unchanged is not rerun."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

import llmkata
from llmkata.grading.provenance import tree_hash

from .trial import Result, Trial, bare, digest

#: What of the framework a verdict hangs on.
_JUDGES = ("wire", "inside", "outside", "bench", "checks", "plugin", "records", "grading/runner.py",
           "authoring/audit/judge.py", "authoring/audit/trial.py")


class Store:
    """Results of trials of one course."""

    def __init__(self, course: Any) -> None:
        self._course, self._folder = course, course.root / ".kata" / "audit"
        self._inputs: dict[tuple, str] = {}

    def get(self, trial: Trial) -> Result | None:
        """The kept result, or None."""
        try:
            return msgspec.json.decode(self._path(trial).read_bytes(), type=Result)
        except (OSError, msgspec.MsgspecError):
            return None

    def put(self, trial: Trial, result: Result) -> None:
        """Keep a result, unless the grader went wrong in it."""
        if not result.settled:
            return
        path = self._path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(msgspec.json.encode(result))
        part.replace(path)

    def _path(self, trial: Trial) -> Path:
        return self._folder / trial.exercise / f"{digest(trial, self._read_by(trial))}.json"

    def _read_by(self, trial: Trial) -> str:
        """Hash of all that the trial reads besides its own source."""
        key = (trial.exercise, trial.checks, trial.only, trial.diagnosing or trial.forced or bool(trial.mistake))
        if key not in self._inputs:
            self._inputs[key] = self._hash(*key)
        return self._inputs[key]

    def _hash(self, name: str, side: str, only: tuple[str, ...], mistakes: bool) -> str:
        exercise = self._course.exercise(name)
        checks = [exercise.visible_checks, *sorted(exercise.graders_dir.glob("test_*.py"))]
        chosen = [p for p in checks if side == "all" or (p == exercise.visible_checks) == (side == "visible")]
        if only:
            chosen = [p for p in chosen if any(bare(n) in _functions(p) for n in only)]
        others = [p for p in exercise.graders_dir.glob("*") if p.name not in _NO_INPUT and not p.name.startswith("test_")]
        paths = [*chosen, *sorted(others), exercise.reference, *(self._course.root / "components" / c
                                                                for c in exercise.components)]
        if mistakes:
            paths += [exercise.graders_dir / "misconceptions.py", exercise.solution]
        rules = [exercise.tasks, exercise.profile, exercise.grants, exercise.wall, self._course.limits]
        text = f"{tree_hash(*(p for p in paths if p.exists()))}:{msgspec.json.encode(rules).decode()}:{_framework()}"
        return hashlib.sha256(text.encode()).hexdigest()


#: Beside the checks in a grader's folder, read only where mistakes are diagnosed, or never.
_NO_INPUT = {"misconceptions.py", "mutants.yaml", "alternatives", "__pycache__"}


@functools.cache
def _functions(path: Path) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text("utf-8"))
    return frozenset(n.name for n in tree.body if isinstance(n, ast.FunctionDef))


@functools.cache
def _framework() -> str:
    package = Path(llmkata.__file__).parent
    own = tree_hash(*(package / name for name in _JUDGES))
    return f"{own}:{platform.python_version_tuple()[:2]}:{[_version(n) for n in ('torch', 'numpy', 'hypothesis')]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
