"""What brief, course.yaml, stub, solution, alternatives and checks say of the same thing agrees."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from llmkata.authoring.stub import StubError, cut_stub, regions

from .answers import alternatives
from .promises import judge_promises
from .report import Audit

#: Points of all hidden checks of an exercise.
POINTS = 100.0


def judge_contract(exercise: Any, missed: set[str], quick: bool, audit: Audit) -> None:
    """Faults in what the files promise one another. ``missed``: checks whose budget some known mistake missed."""
    from .judge import collected
    from .lint import lint

    _stub(exercise, audit)
    _names(exercise, audit)
    judge_promises(exercise, audit)
    try:
        checks = collected(exercise)
    except RuntimeError as e:
        audit.fault("contract", "graders", str(e))
        return
    _tasks(exercise, checks, audit)
    _points(checks, audit)
    _budgets(exercise, missed, quick, audit)
    audit.faults += lint(exercise)


def _relative(exercise: Any, path: Path) -> str:
    return path.relative_to(exercise.root).as_posix()


def _stub(exercise: Any, audit: Audit) -> None:
    where = _relative(exercise, exercise.solution)
    try:
        if cut_stub(exercise.solution.read_text("utf-8")) != exercise.stub.read_text("utf-8"):
            audit.fault("contract", _relative(exercise, exercise.stub), f"is out of step: kata sync {exercise.id}")
        numbers = {t.number for t in exercise.tasks}
        for region in regions(exercise.solution.read_text("utf-8")):
            task = int(re.match(r"task (\d+)", region.text)[1]) if region.text else None
            if task is not None and task not in numbers:
                audit.fault("contract", f"{where}:{region.first}", f"task {task} is not a task of course.yaml")
    except StubError as e:
        audit.fault("contract", f"{where}:{e.line}", str(e))


def _names(exercise: Any, audit: Audit) -> None:
    """What the checks use of the submission stands in the stub, and solution and alternatives have the stub's
    parameters. (That they have the names at all their passing shows; helpers of the stub they may do without.)"""
    promised, used = public_names(exercise.stub), _used(exercise)
    for path in (exercise.solution, *alternatives(exercise)):
        present, where = public_names(path), _relative(exercise, path)
        for name, signature in promised.items():
            if name.rpartition(".")[2] in used and signature != present.get(name, signature):
                audit.fault("contract", where, f"{name}{present[name]} must be {name}{signature}")
    for name in public_names(exercise.solution):
        if "." not in name and name not in promised and name in used:
            audit.fault("contract", _relative(exercise, exercise.stub), f"the checks use {name}, which it does not have")


def _used(exercise: Any) -> set[str]:
    """Attributes that the check files read, of anything: ``attention`` of ``submission.attention``."""
    files = (exercise.visible_checks, *exercise.graders_dir.glob("test_*.py"))
    trees = [ast.parse(p.read_text("utf-8")) for p in files]
    names = {n.attr for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    # vjp, call and the like take the name as a string.
    return names | {n.value for tree in trees for n in ast.walk(tree)
                    if isinstance(n, ast.Constant) and isinstance(n.value, str)} | {"__init__"}


def public_names(path: Path) -> dict[str, str]:
    """Public functions, classes and methods of a file -> parameters and their defaults ("" for a class)."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found[node.name] = _signature(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[node.name] = ""
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            found |= {f"{node.name}.{m.name}": _signature(m) for m in methods
                      if not m.name.startswith("_") or m.name.startswith("__")}
    return found


def _signature(node: ast.FunctionDef) -> str:
    """The parameters with their defaults; annotations are comments to the reader and may be spelled otherwise."""
    a = node.args
    for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
        argument.annotation = None
    return f"({ast.unparse(a)})"


def _tasks(exercise: Any, checks: list[Any], audit: Audit) -> None:
    numbers = [t.number for t in exercise.tasks]
    hidden = {c.task for c in checks if not c.visible}
    for number in numbers:
        if number not in hidden:
            audit.fault("contract", f"task {number}", "no hidden check judges it")
        if number not in {c.task for c in checks if c.visible}:
            audit.notes.append(f"task {number} has no visible check")
    told = brief_tasks(exercise.brief.read_text("utf-8"))
    where = _relative(exercise, exercise.brief)
    if sorted(told) != numbers:
        audit.fault("contract", where, f"its tasks are {_list(sorted(told))}, those of course.yaml {_list(numbers)}")
    by_name = {c.name.split("[")[0] for c in checks}
    for check in checks:
        for needed in check.needs:
            if needed not in by_name:
                audit.fault("contract", check.id, f"@needs({needed!r}): there is no such check")


def brief_tasks(text: str) -> set[int]:
    """Numbers of the tasks of a brief: headings ``### Task 3 ...``, or items ``3. ...`` of its section "Tasks"."""
    headed = {int(n) for n in re.findall(r"^#{2,4} +Task +(\d+)\b", text, re.MULTILINE)}
    if headed:
        return headed
    section = re.search(r"^## +Tasks\b.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {int(n) for n in re.findall(r"^(?:\*\*)?(\d+)\. ", section[1], re.MULTILINE)} if section else set()


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _points(checks: list[Any], audit: Audit) -> None:
    total = sum(c.points for c in checks if not c.visible)
    if abs(total - POINTS) > 1e-9:
        audit.fault("contract", "points", f"the hidden checks sum to {total:g} points, not {POINTS:g}")


def _budgets(exercise: Any, missed: set[str], quick: bool, audit: Audit) -> None:
    """Each budget has its figure in a comment, and a known mistake that misses it. What is checked beside the budgets
    without being one (that a kernel is right, say, before it is counted) does not ask for ``budget``.
    """
    path = exercise.graders_dir / "test_budgets.py"
    if not path.exists():
        audit.fault("contract", _relative(exercise, path), "is missing")
        return
    source = path.read_text("utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        where = f"{_relative(exercise, path)}:{node.lineno} {node.name}"
        comments = [line.partition("#")[2] for line in lines[node.lineno - 1 : node.end_lineno] if "#" in line]
        # Where the count hangs on shapes that change, the formula of the docstring is the figure.
        formula = re.search(r"\d ?[·*=/]|[·*=/] ?\d", ast.get_docstring(node) or "")
        if not formula and not any(re.search(r"\d", c) for c in comments):
            audit.fault("contract", where, "no comment says how its limit was computed")
        if "budget" not in {a.arg for a in node.args.args}:
            continue
        if node.name not in missed and not quick:
            audit.fault("contract", where, "no misconception misses it: a naive solution must fail each budget")
        elif node.name not in missed:
            audit.notes.append(f"{node.name}: no misconception that misses this budget names it in caught_by; the full "
                               "audit looks whether another one does")
