"""The learner's module as a notebook has it: the stub, with every definition as it was run last.

Of the cells that were run, definitions, imports, and constants that definitions use are taken; trying things out (calls,
plots, variables) leaves no trace, as it would in a file of its own.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable, Iterator

from llmkata.grading.notebook import strip_magics

from .pieces import DEFINITIONS

_Unit = tuple[str, str]  # what it defines, its source


def module_source(stub: str, cells: Iterable[str]) -> str:
    """The source to be judged. ``cells``: what was run, first to last, magics and all; a cell that is no Python counts
    for nothing (it did not run either).
    """
    units = list(_units(stub))
    given = {key for key, _ in units}
    at = 1 + max((i for i, (key, _) in enumerate(units) if key.startswith(("import ", "from "))), default=-1)
    for cell in cells:
        for key, text in _units(strip_magics(cell)[0]):
            if key.startswith("#") and key not in given:
                continue
            known = next((i for i, (name, _) in enumerate(units) if name == key), None)
            if known is None:
                units.insert(at, (key, text))
                at += 1
            else:
                units[known] = (key, text)
                at = known + 1
    used = _globals("\n".join(text for key, text in units if not key.startswith(("=", "#"))))
    kept = [text for key, text in units if not key.startswith("=") or key in given or used.intersection(key[1:].split())]
    return "\n\n".join(kept) + "\n"


def _units(source: str) -> Iterator[_Unit]:
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines()
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        yield _key(node), "\n".join(lines[first : node.end_lineno])


def _key(node: ast.stmt) -> str:
    """What a statement defines. Constants begin with "="; whatever else a statement does, with "#"."""
    if isinstance(node, DEFINITIONS):
        return node.name
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return ast.unparse(node)
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return "=" + " ".join(names) if names else "#" + ast.unparse(node)


def _globals(source: str) -> set[str]:
    """Names of the module that its functions and classes use."""
    found: set[str] = set()

    def walk(table: symtable.SymbolTable) -> None:
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                found.add(symbol.get_name())
        for child in table.get_children():
            walk(child)

    for child in symtable.symtable(source, "notebook", "exec").get_children():
        walk(child)
    return found
