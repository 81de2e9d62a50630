"""What a check of a file consists of: its function, and the helpers and constants of the file that it reaches."""

from __future__ import annotations

import ast


def checks(tree: ast.Module) -> list[ast.FunctionDef]:
    """The checks of a file."""
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def reached(tree: ast.Module, check: ast.FunctionDef) -> list[ast.stmt]:
    """``check`` and the definitions of its file that it uses, directly or not, in their order."""
    parts: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _defined(node):
            parts.setdefault(name, []).append(node)
    found, todo = {id(check)}, [check]
    while todo:
        for n in ast.walk(todo.pop()):
            for node in parts.get(n.id, ()) if isinstance(n, ast.Name) else ():
                if id(node) not in found:
                    found.add(id(node))
                    todo.append(node)
    return [node for node in tree.body if id(node) in found]


def text_of(source: str, name: str) -> str:
    """The source of a check with all it reaches, and with what is run whatever is reached: imports, loose statements."""
    tree, lines = ast.parse(source), source.splitlines()
    kept = {id(node) for check in checks(tree) if check.name == name for node in reached(tree, check)}
    kept |= {id(node) for node in tree.body if not _defined(node)}
    texts = []
    for node in tree.body:
        if id(node) in kept:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            texts.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n".join(texts)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    # An element or attribute that is set changes what was defined elsewhere: it is a loose statement.
    plain = all(isinstance(t, ast.Name | ast.Tuple | ast.List) for t in targets)
    return names if plain else []
