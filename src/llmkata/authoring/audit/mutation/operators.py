"""Mutation operators on plain Python: comparisons, arithmetic, dropped terms, guards, off-by-one, statements.

An operator takes a node and its place, and yields nodes that may stand there.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a node stands."""

    parent: ast.AST
    #: The innermost function around it, and the path to it, ``KVCache.append``.
    function: ast.FunctionDef | None
    path: str
    #: Task of the region it lies in, 0 in a hidden one.
    task: int
    #: Autograd does not look: the code runs within a custom autograd function.
    untracked: bool


Operator = Callable[[ast.AST, Place], Iterable[ast.AST]]

#: Keywords whose loss shows only on a second device, or in a fault of the code itself; ``None``: ``**options``.
_UNSEEN = {None, "device", "strict"}
_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
_ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
               ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
               ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift}


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of ``node`` with other fields."""
    new = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(new, name, copy.deepcopy(value))
    return new


def comparison(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``a < b -> a <= b``"""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield changed(node, ops=[*node.ops[:i], _COMPARE[type(op)](), *node.ops[i + 1 :]])


def arithmetic(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``a + b -> a - b``, also in ``a += b``"""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _ARITHMETIC and not _text(node):
        yield changed(node, op=_ARITHMETIC[type(node.op)]())


def dropped_term(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``a + b -> a``, ``a + b -> b``, ``a - b -> a``"""
    if isinstance(node, ast.BinOp) and not _text(node):
        if isinstance(node.op, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr | ast.Sub | ast.Div | ast.Mod | ast.Pow):
            yield node.left
        if isinstance(node.op, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr):
            yield node.right
    elif isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            rest = [*node.values[:i], *node.values[i + 1 :]]
            yield changed(node, values=rest) if len(rest) > 1 else rest[0]


def accumulation(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``a += b -> a = b``"""
    if isinstance(node, ast.AugAssign):
        yield ast.Assign([copy.deepcopy(node.target)], copy.deepcopy(node.value))


def negation(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``not a -> a``, ``~a -> a``, ``-a -> a``"""
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand


def connective(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``a and b -> a or b``"""
    if isinstance(node, ast.BoolOp):
        yield changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def condition(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``if c`` always or never (a removed guard); ``a if c else b -> a``, ``-> b``; a filter of a comprehension gone"""
    if isinstance(node, ast.If):
        for value in (True, False):
            yield changed(node, test=ast.Constant(value))
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.While):
        yield changed(node, test=ast.Constant(False))
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        for i, generator in enumerate(node.generators):
            if generator.ifs:
                yield changed(node, generators=[*node.generators[:i], changed(generator, ifs=[]), *node.generators[i + 1 :]])


def constant(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``True -> False``, ``n -> n + 1``, ``n -> n - 1``, ``x -> 2 x``; ``-1 -> -2``, ``-1 -> 0`` (another axis)"""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _integer(node.operand):
        yield ast.UnaryOp(ast.USub(), ast.Constant(node.operand.value + 1))
        less = node.operand.value - 1
        yield ast.UnaryOp(ast.USub(), ast.Constant(less)) if less else ast.Constant(0)
    elif isinstance(node, ast.Constant) and not (isinstance(place.parent, ast.UnaryOp) and _integer(node)):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield ast.Constant(node.value + 1)
            if node.value:
                yield ast.Constant(node.value - 1)
        elif isinstance(node.value, float):
            yield ast.Constant(2 * node.value or 1.0)


def bound(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``x[a:b] -> x[a:b + 1]``, ``x[a:]``...; ``range(n) -> range(n - 1)``"""
    if isinstance(node, ast.Slice):
        for name in ("lower", "upper"):
            limit = getattr(node, name)
            if limit is not None:
                yield changed(node, **{name: None})
                if not _integer(limit):
                    yield changed(node, **{name: _plus(limit, 1)})
                    yield changed(node, **{name: _plus(limit, -1)})
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        stop = 0 if len(node.args) == 1 else 1
        for step in (1, -1):
            yield changed(node, args=[*node.args[:stop], _plus(node.args[stop], step), *node.args[stop + 1 :]])


def keyword(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``f(x, keepdim=True) -> f(x)``"""
    if isinstance(node, ast.Call):
        for i, k in enumerate(node.keywords):
            if k.arg not in _UNSEEN:
                yield changed(node, keywords=[*node.keywords[:i], *node.keywords[i + 1 :]])


def extremum(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``max(a, b) -> a``, ``-> b``"""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("max", "min"):
        yield from node.args if len(node.args) == 2 and not node.keywords else ()


def statement(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """A statement left out: a call for its effect, an element written, a ``continue``, a loop, a ``with``"""
    effect = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    stored = isinstance(node, ast.Assign) and all(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)
    if effect or stored or isinstance(node, ast.AugAssign | ast.Continue | ast.Break | ast.Delete | ast.Raise):
        yield ast.Pass()
    elif isinstance(node, ast.For):
        yield changed(node, iter=ast.Tuple([], ast.Load()))
    elif isinstance(node, ast.With) and all(i.optional_vars is None for i in node.items):
        yield ast.If(ast.Constant(True), copy.deepcopy(node.body), [])


def error(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``raise ValueError(...) -> raise RuntimeError(...)``"""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield changed(node, exc=changed(node.exc, func=ast.Name("RuntimeError", ast.Load())))


def _integer(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _plus(node: ast.expr, step: int) -> ast.expr:
    return ast.BinOp(copy.deepcopy(node), ast.Add() if step > 0 else ast.Sub(), ast.Constant(abs(step)))


def _text(node: ast.AST) -> bool:
    """Whether an operand is a text: what is put together there is read by people."""
    return any(isinstance(n, ast.JoinedStr) or isinstance(n, ast.Constant) and isinstance(n.value, str)
               for n in (getattr(node, "left", None), getattr(node, "right", None), getattr(node, "value", None)))


OPERATORS: dict[str, Operator] = {
    "comparison": comparison, "arithmetic": arithmetic, "dropped term": dropped_term, "accumulation": accumulation,
    "negation": negation, "connective": connective, "condition": condition, "constant": constant, "bound": bound,
    "keyword": keyword, "extremum": extremum, "statement": statement, "error": error,
}
