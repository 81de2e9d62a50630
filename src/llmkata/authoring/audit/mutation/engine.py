"""From operators on syntax trees to mutated sources that keep every line where it was."""

from __future__ import annotations
import __future__

import ast
import types
from collections.abc import Iterator
from dataclasses import dataclass

from llmkata.authoring.stub import regions

from .operators import OPERATORS, Place
from .tensors import TENSOR_OPERATORS


@dataclass(frozen=True)
class Mutant:
    """One changed source."""

    line: int
    #: The function or method that was changed, ``KVCache.append``.
    where: str
    operator: str
    before: str
    after: str
    #: Task of the region it lies in, 0 in a hidden one.
    task: int
    source: str

    @property
    def change(self) -> str:
        """``a + b -> a``, the way ``mutants.yaml`` names it."""
        return f"{self.before} -> {self.after}"


def mutants(source: str) -> list[Mutant]:
    """All mutants of the marked regions of a solution, in order, without those that compile to the same code."""
    data = source.encode()
    lines = source.split("\n")
    starts = _line_starts(data)
    spans = [(r.first, r.last, int(r.text.split()[1].rstrip(":")) if r.text else 0) for r in regions(source)]
    found = []
    tree = ast.parse(source)
    untracked = _untracked(tree)
    for top in tree.body:
        seen = {_code(lines, top)}
        for node, place in _places(top, spans, untracked):
            for name, operator in (*OPERATORS.items(), *TENSOR_OPERATORS.items()):
                for new in operator(node, place):
                    text = _spliced(data, starts, node, new)
                    code = _code(text.split("\n"), top)
                    if code is not None and code not in seen:
                        seen.add(code)
                        found.append(Mutant(node.lineno, place.path, name, _short(node), _short(new), place.task, text))
    return sorted(found, key=lambda m: m.line)


def _code(lines: list[str], top: ast.stmt) -> tuple | None:
    """What the statement of the module that stands in the lines of ``top`` does; None where it is no Python."""
    first = min([top.lineno, *(d.lineno for d in getattr(top, "decorator_list", ()))])
    text = "\n".join(lines[first - 1 : top.end_lineno]) + "\n"
    try:
        return _shape(compile(text, "<mutant>", "exec", __future__.annotations.compiler_flag, dont_inherit=True))
    except (SyntaxError, ValueError):
        return None


def _places(top: ast.stmt, spans: list[tuple[int, int, int]], untracked: set[str]) -> Iterator[tuple[ast.AST, Place]]:
    """The nodes that may be changed: whole within a region, no annotation, no docstring, no text of an error."""

    def walk(node: ast.AST, parent: ast.AST, function: ast.FunctionDef | None, path: str) -> Iterator[tuple[ast.AST, Place]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            path = f"{path}.{node.name}".lstrip(".")
            function = node if isinstance(node, ast.FunctionDef) else function
        if hasattr(node, "lineno"):
            for first, last, task in spans:
                if first < node.lineno and node.end_lineno < last:
                    yield node, Place(parent, function, path, task, path.split(".")[0] in untracked)
        if isinstance(node, ast.Raise | ast.JoinedStr):
            return
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, node, function, path)

    yield from walk(top, top, None, "")


def _untracked(tree: ast.Module) -> set[str]:
    """Custom autograd functions of a file, and the functions that only they call, directly or not."""
    own = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    called = {name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & own.keys() for name, node in own.items()}
    found = {name for name, node in own.items() if isinstance(node, ast.ClassDef)
             and any(ast.unparse(base).endswith("autograd.Function") for base in node.bases)}
    while True:
        more = {name for name in own if name not in found and isinstance(own[name], ast.FunctionDef)
                and (callers := {c for c in own if name in called[c] and c != name}) and callers <= found}
        if not more:
            return found
        found |= more


def _line_starts(data: bytes) -> list[int]:
    starts, at = [0], 0
    for line in data.split(b"\n"):
        at += len(line) + 1
        starts.append(at)
    return starts


def _spliced(data: bytes, starts: list[int], node: ast.AST, new: ast.AST) -> str:
    """The source with ``new`` in the place of ``node``; what follows keeps its line."""
    begin = starts[node.lineno - 1] + node.col_offset
    end = starts[node.end_lineno - 1] + node.end_col_offset
    text = ast.unparse(ast.fix_missing_locations(new))
    if isinstance(node, ast.stmt):
        pad = " " * node.col_offset
        lines = text.split("\n")
        text = ("\n" + pad).join(lines) + "\n" * (node.end_lineno - node.lineno + 1 - len(lines))
    elif isinstance(node, ast.Slice):  # stands in brackets already, and in no others
        text += "\n" * (node.end_lineno - node.lineno)
    else:
        text = "(" + text + "\n" * (node.end_lineno - node.lineno) + ")"
    return (data[:begin] + text.encode() + data[end:]).decode()


def _short(node: ast.AST, width: int = 90) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _shape(code: types.CodeType) -> tuple:
    """What a code object does, without where it stands."""
    constants = tuple(_shape(c) if isinstance(c, types.CodeType) else (type(c).__name__, repr(c)) for c in code.co_consts)
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags)
