"""Wrong implementations that stand for mistakes people really make, read from ``misconceptions.py`` of a grader.

They are read by their syntax tree and run in the namespace of the model answer, in a process of ours: the file itself
is never imported, so it may use the answer's helpers as globals (and ``original``, what it replaces).
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def misconception(name: str, *, replaces: str | tuple[str, ...], caught_by: str, feedback: str,
                  matches: str | None = None, equivalent_to: str | None = None) -> Callable[[Any], Any]:
    """Mark a wrong function or class.

    ``replaces``: what it stands in for ("attention", "KVCache.append", a class). With several targets the decorated
    class holds one attribute for each (by last name). ``caught_by``: the check that must reject it. ``matches``: the
    budget quantity by which it is recognised when its answers are right. ``equivalent_to``: another one that gives
    the same answers; either may be named.
    """

    def mark(fn: Any) -> Any:
        return fn

    return mark


@dataclass(frozen=True)
class Misconception:
    """One entry, ready to be run: ``source`` defines ``bind[target]``."""

    name: str
    replaces: tuple[str, ...]
    caught_by: str
    feedback: str
    matches: str | None
    equivalent_to: str | None
    source: str
    bind: dict[str, str]
    line: int


def load(path: Path) -> list[Misconception]:
    """The entries of a file. Raises SyntaxError naming the file and line of one that is not well formed."""
    return list(_entries(path, path.read_text(encoding="utf-8"))) if path.exists() else []


@functools.lru_cache(maxsize=64)
def _entries(path: Path, text: str) -> tuple[Misconception, ...]:
    tree = ast.parse(text, str(path))
    shared = [node for node in tree.body if not _decorator(node) and not _of_llmkata(node)]
    return tuple(_entry(path, node, shared) for node in tree.body if _decorator(node))


def _decorator(node: ast.stmt) -> ast.Call | None:
    for d in getattr(node, "decorator_list", ()):
        if isinstance(d, ast.Call) and isinstance(d.func, ast.Name) and d.func.id == "misconception":
            return d
    return None


def _of_llmkata(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("llmkata", "__future__"))


def _entry(path: Path, node: Any, shared: list[ast.stmt]) -> Misconception:
    call = _decorator(node)
    try:
        fields = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        name = ast.literal_eval(call.args[0])
        replaces = fields["replaces"]
        targets = (replaces,) if isinstance(replaces, str) else tuple(replaces)
        several = len(targets) > 1
        bind = {t: f"{node.name}.{t.rsplit('.', 1)[-1]}" if several else node.name for t in targets}
        node.decorator_list = [d for d in node.decorator_list if d is not call]
        module = ast.Module(body=[ast.parse("from __future__ import annotations").body[0], *shared, node],
                            type_ignores=[])
        return Misconception(name, targets, fields["caught_by"], " ".join(fields["feedback"].split()),
                             fields.get("matches"), fields.get("equivalent_to"), ast.unparse(module), bind,
                             node.lineno)
    except (KeyError, ValueError, IndexError) as e:
        raise SyntaxError(f"{path}:{node.lineno}: @misconception needs a name, replaces, caught_by and feedback as "
                          f"plain literals ({type(e).__name__}: {e})") from None
