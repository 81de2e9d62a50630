"""A source cut at its top-level definitions: the cells of a notebook."""

from __future__ import annotations

import ast
from dataclasses import dataclass

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Piece:
    """Whole lines of a source; put one after the other, all pieces are the source."""

    #: The function or class it defines; "" for what comes before the first definition.
    name: str
    text: str


def pieces(source: str) -> list[Piece]:
    """The source up to its first definition, then one piece a definition: the comment above it, its decorators, and
    whatever follows up to the next. Raises SyntaxError.
    """
    lines = source.splitlines(keepends=True)
    starts = [(0, "")]
    for node in ast.parse(source).body:
        if isinstance(node, DEFINITIONS):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            while first > starts[-1][0] and (lines[first - 1].startswith("#") or not lines[first - 1].strip()):
                first -= 1
            starts.append((first, node.name))
    ends = [start for start, _ in starts[1:]] + [len(lines)]
    cut = [Piece(name, "".join(lines[start:end])) for (start, name), end in zip(starts, ends)]
    return [piece for piece in cut if piece.text]
