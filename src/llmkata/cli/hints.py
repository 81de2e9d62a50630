"""The hints of an exercise, read without running a check: from the check files' syntax trees, or from feedback.json.

In a clone the hidden checks are there and their hints are in ``@hint(...)``; a released repository has them in
``feedback.json`` instead. Which levels a learner has opened is kept in ``.kata/hints.json``.
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llmkata.course import Exercise, Hints


@dataclass(frozen=True)
class CheckHints:
    """The hints of one check, from a nudge to nearly the answer."""

    #: Name of the check function, ``test_matches_reference``.
    name: str
    #: What must hold, one sentence.
    title: str
    task: int
    hints: tuple[str, ...]


class _FeedbackCheck(msgspec.Struct):
    id: str
    title: str = ""
    task: int = 1
    hints: list[str] = []


class _Feedback(msgspec.Struct):
    checks: list[_FeedbackCheck] = []


def exercise_hints(exercise: Exercise) -> list[CheckHints]:
    """Checks that have hints: visible ones, then hidden ones (correctness before budgets), each file in its order.

    Raises ``ValueError`` naming the file, where one cannot be read.
    """
    hidden = sorted(exercise.graders_dir.glob("test_*.py"), key=lambda p: (p.name != "test_correctness.py", p.name))
    found: dict[str, CheckHints] = {}
    for path in (exercise.visible_checks, *hidden):
        if path.is_file():
            found.update((check.name, check) for check in _from_checks(path))
    if not hidden and exercise.feedback.is_file():
        found = {check.name: check for check in _from_feedback(exercise.feedback)} | found
    return list(found.values())


def next_hint(hints: list[CheckHints], opened: Mapping[str, int], failed: Sequence[str]) -> CheckHints:
    """The check to be helped with: the first of ``failed`` that has hints; without one, the first in the order of the
    tasks with a hint still closed; else the last.
    """
    by_name = {check.name: check for check in hints}
    for name in failed:
        if name.split("[")[0] in by_name:
            return by_name[name.split("[")[0]]
    in_order = sorted(hints, key=lambda c: c.task)
    return next((c for c in in_order if opened.get(c.name, 0) < len(c.hints)), in_order[-1])


def opened_levels(state: Path) -> dict[str, dict[str, int]]:
    """Exercise id -> check name -> levels opened. A file that cannot be read counts as none opened."""
    try:
        return msgspec.json.decode((state / "hints.json").read_bytes(), type=dict[str, dict[str, int]])
    except (OSError, msgspec.DecodeError):
        return {}


def offer(hints: Hints, opened: Mapping[str, int], check: str, level: int) -> str:
    """What opening the hints of ``check`` up to ``level`` costs, as a sentence; "" where it costs nothing.

    ``opened``: check name -> levels opened, of the exercise; what is open already costs nothing again.
    """
    from llmkata.policy import hint_cost

    before = sum(opened.values())
    new = max(0, level - opened.get(check, 0))
    spent = hint_cost(hints, before)
    cost = hint_cost(hints, before + new) - spent
    if not cost:
        return ""
    what = "This hint costs" if new == 1 else f"These {new} hints cost"
    rule = f"{f'{hints.free} free, then ' if hints.free else ''}{hints.price:g} % each, at most {hints.at_most:g} %"
    return f"{what} {cost:g} % of the points of this exercise on your card; so far {spent:g} % ({rule})."


def remember_level(state: Path, exercise: str, check: str, level: int) -> None:
    """Store that ``level`` hints of a check are open; never fewer than before."""
    levels = opened_levels(state)
    known = levels.setdefault(exercise, {})
    known[check] = max(level, known.get(check, 0))
    state.mkdir(parents=True, exist_ok=True)
    partial = state / f"hints.json.{os.getpid()}"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(levels)))
    partial.replace(state / "hints.json")


def _from_checks(path: Path) -> Iterator[CheckHints]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = {_mark(d): d.args for d in node.decorator_list if isinstance(d, ast.Call)}
            hints = tuple(_literal(arg, path) for arg in marks.get("hint", []))
            if hints:
                task = next((_literal(arg, path) for arg in marks.get("task", [])), 1)
                title = " ".join((ast.get_docstring(node) or node.name).split("\n\n")[0].split())
                yield CheckHints(node.name, title, int(task), tuple(map(str, hints)))


def _mark(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _literal(node: ast.expr, path: Path) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{path}, line {node.lineno}: a task or hint must be written out, not computed") from error


def _from_feedback(path: Path) -> Iterator[CheckHints]:
    try:
        feedback = msgspec.json.decode(path.read_bytes(), type=_Feedback)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    for check in feedback.checks:
        if check.hints:
            name = check.id.rpartition("::")[2]
            yield CheckHints(name, check.title or name, check.task, tuple(check.hints))
