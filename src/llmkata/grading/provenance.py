"""What a result hangs on, as a hash: the same submission under the same key is never graded twice."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import llmkata


def tree_hash(*paths: Path) -> str:
    """SHA-256 over the names and bytes of all files below ``paths`` (caches left out), 16 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            if "__pycache__" in file.parts:
                continue
            digest.update(str(file.relative_to(path.parent)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


#: What tells of verdicts and keeps them, and has no part in them: a class is not stale when a page looks different.
_TELLING = ("cli", "reports", "exports", "gradebook")


@functools.cache
def judging_hash() -> str:
    """Hash of the part of the framework that a verdict may hang on."""
    package = Path(llmkata.__file__).parent
    return tree_hash(*sorted(p for p in package.iterdir() if p.name not in _TELLING))


_grader_hashes: dict[tuple[Path, str], str] = {}


def grader_hash(exercise: Any) -> str:
    """Hash of everything of the exercise that a verdict hangs on, and of what judges it (once per process)."""
    root, key = exercise.root, (exercise.root, exercise.id)
    if key in _grader_hashes:
        return _grader_hashes[key]
    parts = [exercise.graders_dir, exercise.reference, exercise.visible_checks, exercise.solution]
    parts += [root / "components" / name for name in exercise.components]
    own = tree_hash(*(p for p in parts if p.exists()))
    _grader_hashes[key] = hashlib.sha256(f"{own}:{judging_hash()}".encode()).hexdigest()[:16]
    return _grader_hashes[key]


def result_key(course: Any, exercise: Any, source: bytes, seed: int, isolation: str) -> str:
    """Key of a result: submission + grader + components + framework + lock + Python minor + grants + limits + tasks and
    their tiers + seed."""
    lock = exercise.root / "requirements.lock"
    text = json.dumps([
        hashlib.sha256(source).hexdigest(), grader_hash(exercise),
        hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else "",
        platform.python_version_tuple()[:2], exercise.grants, exercise.wall, isolation, seed,
        # The other two limits are in the exercise's own, and of what is read before it is graded.
        [course.limits.call, course.limits.cpu, course.limits.memory, course.limits.output],
        [(task.number, task.tier) for task in exercise.tasks],
    ], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
