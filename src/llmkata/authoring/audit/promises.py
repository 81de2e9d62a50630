"""What the texts promise, held against the code: errors of the docstrings, functions of the brief."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .report import Audit
from .source import checks, reached

_ERROR = re.compile(r"\b[A-Z]\w*Error\b")


def judge_promises(exercise: Any, audit: Audit) -> None:
    """Each error that a docstring promises is asked for by a hidden check, unless given code raises it; each function
    that a task of the brief is headed with stands in the stub."""
    _errors(exercise, audit)
    _brief(exercise, audit)


def _errors(exercise: Any, audit: Audit) -> None:
    """An error that a learner must raise and no check asks for is one that nobody need raise. (That the check notices
    where it is missing, the mutants without their guard show.)"""
    where = exercise.stub.relative_to(exercise.root).as_posix()
    given = _raised(exercise.stub)
    asked = [words for path in sorted(exercise.graders_dir.glob("test_*.py")) for words in _checks(path)]
    for name, line, error in promised_errors(exercise.stub):
        # A method may be reached through its object: ``PositionalEncoding(...)(x)``.
        names = set(name.split("."))
        if error in given.get(name, ()) or any(error in words and names & words for words in asked):
            continue
        audit.fault("contract", f"{where}:{line}", f"{name} promises {error}, which no hidden check asks for")


def promised_errors(path: Path) -> Iterator[tuple[str, int, str]]:
    """(function, line, error) of each error that the docstring of a public function, class or method names."""
    for name, node in _definitions(path):
        if not any(part.startswith("_") and part != "__init__" for part in name.split(".")):
            for error in dict.fromkeys(_ERROR.findall(ast.get_docstring(node) or "")):
                if error != "NotImplementedError":
                    yield name, node.lineno, error


def _definitions(path: Path) -> Iterator[tuple[str, Any]]:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{m.name}", m) for m in node.body if isinstance(m, ast.FunctionDef))


def _raised(path: Path) -> dict[str, set[str]]:
    """function -> errors that it, or a function of the file that it calls, raises."""
    definitions = dict(_definitions(path))
    by_word: dict[str, list[str]] = {}
    for name in definitions:
        by_word.setdefault(name.rpartition(".")[2], []).append(name)
    found = {}
    for name in definitions:
        reached, todo, errors = {name}, [name], set()
        while todo:
            for node in ast.walk(definitions[todo.pop()]):
                if isinstance(node, ast.Raise) and node.exc is not None:
                    errors |= set(_ERROR.findall(ast.unparse(node.exc)))
                called = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
                new = [other for other in by_word.get(called, ()) if other not in reached]
                reached.update(new)
                todo += new
        found[name] = errors
    return found


def _checks(path: Path) -> Iterator[set[str]]:
    """The names and texts of each check, those of the file's helpers and constants that it uses included."""
    tree = ast.parse(path.read_text("utf-8"))
    for check in checks(tree):
        yield set().union(*map(_words, reached(tree, check)))


def _words(node: ast.AST) -> set[str]:
    found: set[str] = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Attribute):
            found.add(n.attr)
        elif isinstance(n, ast.Constant) and isinstance(n.value, str):
            found.add(n.value)  # vjp, call and the like take the name as a string
        elif isinstance(n, ast.Name):
            found.add(n.id)
    return found


def _brief(exercise: Any, audit: Audit) -> None:
    """Names in code style in the heading of a task: ``**2. `FeedForward`.**``, ``### Task 2: `FeedForward```."""
    where = exercise.brief.relative_to(exercise.root).as_posix()
    there = {part for name, _ in _definitions(exercise.stub) for part in (name, name.rpartition(".")[2])}
    for number, line in enumerate(exercise.brief.read_text("utf-8").splitlines(), 1):
        heading = re.match(r"#{2,4} +Task +\d+\b.*|(?:\*\*)?\d+\. (?:\*\*)?[^*]*\*\*", line)
        for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", heading[0] if heading else ""):
            if name not in there:
                audit.fault("contract", f"{where}:{number}", f"the stub has no {name}")
