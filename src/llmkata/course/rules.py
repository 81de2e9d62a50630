"""What must hold between the parts of a course, which no single node can tell.

Values that could not be read are passed over here: their fault is noted already.
"""

from __future__ import annotations

from keyword import iskeyword
from pathlib import Path
from re import fullmatch
from typing import Any

from .faults import did_you_mean
from .nodes import BAD, Reader

Raw = dict[str, Any]
#: An exercise as read, the number of its module (None if unreadable), and its field path.
Placed = tuple[Raw, int | None, str]
#: Slug -> its prerequisites, each with its node and field path.
Edges = dict[str, list[tuple[str, Any, str]]]


def check(reader: Reader, modules: tuple[Raw, ...], root: Path) -> None:
    placed: list[Placed] = [
        (exercise, None if module["number"] is BAD else module["number"][0], f"modules[{m}].exercises[{e}]")
        for m, module in enumerate(modules) if module["exercises"] is not BAD
        for e, exercise in enumerate(module["exercises"])
    ]
    _unique(reader, "module number", [(module["number"], f"modules[{m}].number") for m, module in enumerate(modules)])
    for key in ("slug", "number"):
        _unique(reader, key, [(exercise[key], f"{field}.{key}") for exercise, _, field in placed])
    for exercise, module, field in placed:
        _names(reader, exercise, module, field)
        _hours(reader, exercise, field)
        _tasks(reader, exercise, field)
        _rubric(reader, exercise, field)
        _files(reader, exercise, module, field, root)
    _prerequisites(reader, placed)


def _unique(reader: Reader, what: str, values: list[tuple[Any, str]]) -> None:
    first: dict[Any, int] = {}
    for located, field in values:
        if located is BAD:
            continue
        value, node = located
        if value in first:
            reader.fault(node, field, f"duplicate {what} {value} (first in line {first[value]})")
        first.setdefault(value, node.start_mark.line + 1)


def _names(reader: Reader, exercise: Raw, module: int | None, field: str) -> None:
    if exercise["slug"] is not BAD:
        slug, node = exercise["slug"]
        if not fullmatch(r"[a-z][a-z0-9_]*", slug) or iskeyword(slug):
            reader.fault(node, f"{field}.slug", f'"{slug}" must be a Python module name in lower case')
    if exercise["number"] is not BAD:
        number, node = exercise["number"]
        if not fullmatch(r"(0|[1-9]\d*)\.[1-9]\d*", number):
            reader.fault(node, f"{field}.number", f'"{number}" must read "module.position", as "2.1"')
        elif module is not None and number.split(".")[0] != str(module):
            reader.fault(node, f"{field}.number", f'"{number}" stands in module {module}')


def _hours(reader: Reader, exercise: Raw, field: str) -> None:
    if exercise["hours"] is not BAD:
        hours, node = exercise["hours"]
        if BAD not in hours.values() and hours["core"] > hours["total"]:
            reader.fault(node, f"{field}.hours", "core must not exceed total")


def _tasks(reader: Reader, exercise: Raw, field: str) -> None:
    if BAD in (exercise["tasks"], exercise["status"]):
        return
    stretch_seen = False
    for place, (task, node) in enumerate(exercise["tasks"]):
        where = f"{field}.tasks[{place}]"
        if task["number"] not in (BAD, place + 1):
            said = f"tasks are numbered 1, 2, ...: {place + 1} is due, is {task['number']}"
            reader.fault(node, f"{where}.number", said)
        if task["tier"] == "core" and stretch_seen:
            reader.fault(node, f"{where}.tier", "a core task must not come after a stretch task")
        stretch_seen = stretch_seen or task["tier"] == "stretch"
    status, node = exercise["status"]
    if status == "available" and not any(task["tier"] in ("core", BAD) for task, _ in exercise["tasks"]):
        reader.fault(node, f"{field}.tasks", "an available exercise needs at least one core task")



def _rubric(reader: Reader, exercise: Raw, field: str) -> None:
    first: dict[str, int] = {}
    for place, (criterion, node) in enumerate(exercise["rubric"] if exercise["rubric"] is not BAD else ()):
        name, where = criterion["name"], f"{field}.rubric[{place}].name"
        if name is BAD:
            continue
        if not fullmatch(r"[a-z][a-z0-9_-]*", name):
            reader.fault(node, where, f'"{name}" must be a word in lower case, as "readability"')
        if name in first:
            reader.fault(node, where, f'duplicate criterion "{name}" (first in line {first[name]})')
        first.setdefault(name, node.start_mark.line + 1)


def _files(reader: Reader, exercise: Raw, module: int | None, field: str, root: Path) -> None:
    """What an available exercise cannot do without.

    Not the learner's own file: it is theirs to delete, and a new stub is cut only after the course was read. A released
    repository has no graders, so none are asked for there.
    """
    if BAD in (exercise["slug"], exercise["status"], exercise["components"]) or module is None:
        return
    slug = exercise["slug"][0]
    status, node = exercise["status"]
    if status != "available":
        return
    for name, component in exercise["components"]:
        if not (root / "components" / name).is_dir():
            reader.fault(component, f"{field}.components", f"missing folder components/{name}")
    needed = [f"exercises/module{module}/{slug}/{name}" for name in ("README.md", f"test_{slug}.py")]
    if (root / "graders").is_dir():
        needed += [f"{side}/module{module}/{slug}.py" for side in ("solutions", "reference")]
        needed += [f"graders/module{module}/{slug}/test_correctness.py"]
    for name in needed:
        if not (root / name).is_file():
            reader.fault(node, f"{field}.status", f"available, but {name} is missing")


def _prerequisites(reader: Reader, placed: list[Placed]) -> None:
    known = {exercise["slug"][0] for exercise, _, _ in placed if exercise["slug"] is not BAD}
    edges: Edges = {}
    for exercise, _, field in placed:
        if BAD in (exercise["slug"], exercise["prerequisites"]):
            continue
        after = edges.setdefault(exercise["slug"][0], [])
        for place, (name, node) in enumerate(exercise["prerequisites"]):
            where = f"{field}.prerequisites[{place}]"
            if name not in known:
                reader.fault(node, where, f'no exercise has the slug "{name}"{did_you_mean(name, known)}')
            else:
                after.append((name, node, where))
    done: set[str] = set()
    for slug in edges:
        _visit(reader, edges, slug, [], done)


def _visit(reader: Reader, edges: Edges, slug: str, path: list[str], done: set[str]) -> None:
    if slug in done:
        return
    path.append(slug)
    for name, node, where in edges.get(slug, ()):
        if name in path:
            circle = " -> ".join([*path[path.index(name):], name])
            reader.fault(node, where, f"prerequisites go in a circle: {circle}")
        else:
            _visit(reader, edges, name, path, done)
    path.pop()
    done.add(slug)
