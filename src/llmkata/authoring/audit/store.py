"""Results kept by content under ``.kata/audit``: an audit that was broken off goes on, what is unchanged is not rerun."""

from __future__ import annotations

import ast
import contextlib
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

from .mutants import IMPORT, killer
from .source import text_of
from .trial import Result, Trial, bare, digest

#: What of the framework a verdict hangs on.
_JUDGES = ("wire", "inside", "outside", "bench", "checks", "plugin", "records", "grading/runner.py",
           "authoring/audit/judge.py", "authoring/audit/trial.py")


class Kill(msgspec.Struct):
    """A mutant that a check noticed. It is noticed as long as that check is what it was, whatever others become."""

    #: Hash of what the check reads.
    read: str
    result: Result


class Store:
    """Results of trials of one course."""

    def __init__(self, course: Any) -> None:
        self._course, self._folder = course, course.root / ".kata" / "audit"
        self._inputs: dict[tuple, str] = {}

    def get(self, trial: Trial) -> Result | None:
        """The kept result, or None."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(self._path(trial).read_bytes(), type=Result)
        if trial.stop:
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                kill = msgspec.json.decode(self._kill_path(trial).read_bytes(), type=Kill)
                if kill.read == self._read_by_check(trial.exercise, killer(kill.result)):
                    return kill.result
        return None

    def put(self, trial: Trial, result: Result) -> None:
        """Keep a result, unless the grader went wrong in it."""
        if not result.settled:
            return
        self._write(self._path(trial), result)
        if trial.stop and killer(result):
            self._write(self._kill_path(trial), Kill(self._read_by_check(trial.exercise, killer(result)), result))

    def _write(self, path: Path, what: msgspec.Struct) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(msgspec.json.encode(what))
        part.replace(path)

    def _path(self, trial: Trial) -> Path:
        return self._folder / trial.exercise / f"{digest(trial, self._read_by(trial))}.json"

    def _kill_path(self, trial: Trial) -> Path:
        return self._folder / trial.exercise / f"{digest(trial, 'kill')}.json"

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
        paths = [exercise.graders_dir / "misconceptions.py", exercise.solution] if mistakes else []
        return self._digest(exercise, tree_hash(*(p for p in [*chosen, *paths] if p.exists())))

    def _read_by_check(self, name: str, check: str) -> str:
        """Hash of all that one hidden check reads besides the submission ("the import": what is beside the checks)."""
        key = (name, bare(check))
        if key not in self._inputs:
            exercise = self._course.exercise(name)
            hidden = sorted(exercise.graders_dir.glob("test_*.py"))
            texts = [text_of(p.read_text("utf-8"), bare(check)) for p in hidden] if check != IMPORT else []
            self._inputs[key] = self._digest(exercise, "\n".join(texts))
        return self._inputs[key]

    def _digest(self, exercise: Any, checks: str) -> str:
        """Hash of checks and of all that every trial of an exercise reads."""
        others = [p for p in exercise.graders_dir.glob("*") if p.name not in _NO_INPUT and not p.name.startswith("test_")]
        paths = [*sorted(others), exercise.reference, *(self._course.root / "components" / c for c in exercise.components)]
        rules = [exercise.tasks, exercise.profile, exercise.grants, exercise.wall, self._course.limits]
        told = [checks, tree_hash(*(p for p in paths if p.exists())), msgspec.json.encode(rules).decode(), _framework()]
        return hashlib.sha256("\0".join(told).encode()).hexdigest()


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
