"""How checks must be written: said once, so that nobody has to look for it."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path
from typing import Any

from .report import Fault
from .source import checks

#: Calls by which a check says what must hold.
_VERDICTS = {"same", "check", "expect_error", "require", "growth", "cpu_ratio", "run_machine", "fail"}
#: Names that would fit any check.
_SAYS_NOTHING = re.compile(r"test_(\d+|basic|more|misc|foo|other|works?|correct|case|simple|function)")
#: Lines of one check beyond which it holds more than one idea.
_LONG = 80


def lint(exercise: Any) -> list[Fault]:
    """Faults of style in the checks of an exercise, with file and line."""
    found: list[Fault] = []
    for path in (exercise.visible_checks, *sorted(exercise.graders_dir.glob("test_*.py"))):
        if path.is_file():
            found += _file(path, path.relative_to(exercise.root).as_posix())
    return [*found, *_names(exercise), *_strays(exercise), *_brief(exercise)]


def _names(exercise: Any) -> list[Fault]:
    """The name of a hidden check is what people and ``@needs`` call it by: one check each, and it says something."""
    found, first = [], {}
    for path in sorted(exercise.graders_dir.glob("test_*.py")):
        where = path.relative_to(exercise.root).as_posix()
        for node in checks(ast.parse(path.read_text("utf-8"))):
            if node.name in first:
                found.append(Fault("lint", f"{where}:{node.lineno} {node.name}", f"is the name of {first[node.name]} too"))
            elif _SAYS_NOTHING.fullmatch(node.name):
                found.append(Fault("lint", f"{where}:{node.lineno} {node.name}", "says nothing: name what must hold"))
            first.setdefault(node.name, f"{where}:{node.lineno}")
    return found


def _strays(exercise: Any) -> list[Fault]:
    """Files that nothing reads."""
    own = {exercise.brief, exercise.stub, exercise.visible_checks, exercise.feedback}
    known = {"test_correctness.py", "test_budgets.py", "misconceptions.py", "forbid.py", "mutants.yaml"}
    strays = [p for p in exercise.folder.rglob("*.py") if p not in own]
    strays += [p for p in exercise.graders_dir.glob("*") if p.is_file() and p.name not in known
               and not (p.suffix == ".py" and _is_read(exercise, p))]
    return [Fault("lint", p.relative_to(exercise.root).as_posix(), "is read by nothing") for p in sorted(strays)]


def _is_read(exercise: Any, path: Path) -> bool:
    """Whether a check names the file (a baseline of a measured ratio)."""
    return any(path.name in check.read_text("utf-8") for check in exercise.graders_dir.glob("test_*.py") if check != path)


def _brief(exercise: Any) -> list[Fault]:
    """A brief begins with the exercise's number and title, and has the sections a learner looks for."""
    if not exercise.brief.is_file():
        return []
    where, text = exercise.brief.relative_to(exercise.root).as_posix(), exercise.brief.read_text("utf-8")
    found = []
    if not text.startswith(f"# {exercise.number} "):
        found.append(Fault("lint", f"{where}:1", f"must begin with the heading '# {exercise.number} <title>'"))
    if not re.search(r"^## Tasks\b", text, re.MULTILINE):
        found.append(Fault("lint", where, "has no section '## Tasks'"))
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("# ") and number > 1 and not _in_code(text, number):
            found.append(Fault("lint", f"{where}:{number}", "a second heading of the first level"))
    return found


def _in_code(text: str, number: int) -> bool:
    """Whether a line lies in a fenced block."""
    return sum(line.lstrip().startswith("```") for line in text.splitlines()[: number - 1]) % 2 == 1


def _file(path: Path, where: str) -> list[Fault]:
    tree = ast.parse(path.read_text("utf-8"))
    helpers = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append(Fault("lint", f"{where}:{node.lineno}", "a bare assert tells a learner nothing: use check()"))
        if isinstance(node, ast.FunctionDef) and "probe" in _decorators(node):
            for name in _free(node):
                found.append(Fault("lint", f"{where}:{node.lineno}", f"the probe {node.name} uses {name} of the grader; "
                                                                      "a probe imports and defines all it needs"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found += [Fault("lint", f"{where}:{node.lineno} {node.name}", what) for what in _check(node, helpers)]
    return found


def _check(node: ast.FunctionDef, helpers: dict[str, ast.AST]) -> list[str]:
    decorators = _decorators(node)
    found = []
    if not ast.get_docstring(node):
        found.append("has no docstring: one sentence that says what must hold")
    if "task" not in decorators:
        found.append("has no @task")
    if "hint" not in decorators:
        found.append("has no @hint")
    if not _judges(node, helpers, set()):
        found.append("says nothing that must hold (same, check, expect_error, budget.require)")
    if node.end_lineno - node.lineno > _LONG:
        found.append(f"has {node.end_lineno - node.lineno} lines; more than {_LONG} hold more than one idea")
    return found


def _judges(node: ast.AST, helpers: dict[str, ast.AST], visited: set[str]) -> bool:
    """Whether a check, or a helper of the file that it uses, takes a verdict."""
    for n in ast.walk(node):
        name = n.id if isinstance(n, ast.Name) else n.attr if isinstance(n, ast.Attribute) else None
        if name in _VERDICTS:
            return True
        if name in helpers and name not in visited:
            visited.add(name)
            if _judges(helpers[name], helpers, visited):
                return True
    return False


def _decorators(node: ast.FunctionDef) -> set[str]:
    names = set()
    for d in node.decorator_list:
        target = d.func if isinstance(d, ast.Call) else d
        names.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return names


def _free(probe: ast.FunctionDef) -> list[str]:
    """Names a probe reads that it neither binds nor imports (decorators and annotations do not travel)."""
    bound = set(dir(builtins))
    read: set[str] = set()
    nodes = [n for statement in probe.body for n in ast.walk(statement)]
    for argument in ast.walk(probe.args):
        if isinstance(argument, ast.arg):
            bound.add(argument.arg)
    for default in (*probe.args.defaults, *filter(None, probe.args.kw_defaults)):
        nodes += ast.walk(default)
    for n in nodes:
        if isinstance(n, ast.Name):
            (read if isinstance(n.ctx, ast.Load) else bound).add(n.id)
        elif isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            bound.add(n.name)
        elif isinstance(n, ast.arg):
            bound.add(n.arg)
        elif isinstance(n, ast.Import | ast.ImportFrom):
            bound |= {(a.asname or a.name).split(".")[0] for a in n.names}
        elif isinstance(n, ast.ExceptHandler) and n.name or isinstance(n, ast.MatchAs | ast.MatchStar) and n.name:
            bound.add(n.name)
    return sorted(read - bound)
