"""Mutation operators on tensor code: reductions, dtypes, masks, transposes, gradients cut or not, in place or not."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .operators import Operator, Place, changed

#: A name for another of the same shape of use.
_SWAPS = {
    "amax": "amin", "amin": "amax", "argmax": "argmin", "argmin": "argmax", "maximum": "minimum", "minimum": "maximum",
    "max": "min", "min": "max", "sum": "mean", "mean": "sum", "any": "all", "all": "any", "zeros": "ones", "ones": "zeros",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "tril": "triu", "triu": "tril", "floor": "ceil", "ceil": "floor",
    "sin": "cos", "cos": "sin", "exp": "expm1", "log": "log1p", "sqrt": "square", "rsqrt": "sqrt", "var": "std",
    "std": "var", "softmax": "log_softmax", "log_softmax": "softmax", "cumsum": "cumprod", "sigmoid": "tanh",
    "tanh": "sigmoid", "gelu": "relu", "silu": "relu", "hstack": "vstack", "vstack": "hstack",
}
_DTYPES = {
    "float32": "float64", "float64": "float32", "float16": "float32", "bfloat16": "float16", "int64": "int32",
    "int32": "int64", "double": "float", "float": "double", "long": "int",
}
#: Calls whose result has the shape of what they are called on (as a method) or of their first argument.
_SHAPE_KEEPING = {
    "detach", "clone", "contiguous", "to", "float", "double", "half", "long", "bool", "type_as", "abs", "exp", "expm1", "log",
    "log1p", "sqrt", "rsqrt", "square", "neg", "masked_fill", "tril", "triu", "clamp", "clip", "softmax", "log_softmax",
    "sigmoid", "tanh", "relu", "gelu", "silu", "round", "floor", "ceil", "copy", "astype", "cumsum", "flip", "roll", "sort",
    "sorted", "nan_to_num", "expand_as", "int", "ascontiguousarray", "normalize", "dropout", "requires_grad_", "lower",
    "strip", "fabs", "logical_not", "tuple", "list", "set", "transpose", "swapaxes", "permute",
}
#: Out-of-place methods with an in-place twin: written there, an input or something saved is overwritten.
_TWINS = {"masked_fill", "clamp", "mul", "add", "sub", "div", "exp", "neg", "sqrt", "tril", "triu", "addcmul", "index_copy",
          "index_add", "scatter", "scatter_add", "copy", "fill", "zero", "clip", "log", "sigmoid", "tanh", "relu"}


def swapped(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``x.amax(-1) -> x.amin(-1)``, ``torch.zeros -> torch.ones``"""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SWAPS:
        yield changed(node, func=changed(node.func, attr=_SWAPS[node.func.attr]))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("max", "min", "any", "all"):
        yield changed(node, func=ast.Name(_SWAPS[node.func.id], ast.Load()))


def dtype(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``torch.float32 -> torch.float64``, ``x.double() -> x.float()``"""
    if isinstance(node, ast.Attribute) and node.attr in _DTYPES:
        named = isinstance(node.value, ast.Name) and node.value.id in ("torch", "np")
        if named or isinstance(place.parent, ast.Call) and place.parent.func is node:
            yield changed(node, attr=_DTYPES[node.attr])


def left_out(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``x.detach() -> x``, ``x.masked_fill(...) -> x``, ``torch.exp(x) -> x``, ``x.mT -> x``"""
    if isinstance(node, ast.Attribute) and node.attr in ("mT", "T", "real", "data"):
        yield node.value
    elif isinstance(node, ast.Call):
        f = node.func
        if isinstance(f, ast.Attribute) and f.attr in _SHAPE_KEEPING:
            if not _library(f.value):
                yield f.value
            elif node.args:
                yield node.args[0]
        elif isinstance(f, ast.Name) and f.id in _SHAPE_KEEPING and len(node.args) == 1:
            yield node.args[0]


def gradient(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``x -> x.detach()`` for each side of a product: part of the gradient is lost, no value is"""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and not place.untracked:
        for side in ("left", "right"):
            value = getattr(node, side)
            yield changed(node, **{side: ast.Call(ast.Attribute(value, "detach", ast.Load()), [], [])})


def in_place(node: ast.AST, place: Place) -> Iterator[ast.AST]:
    """``x.add_(y) -> x.add(y)`` and back, ``x = x + y -> x += y``"""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name.endswith("_") and not name.endswith("__") and not name.startswith("_"):
            yield changed(node, func=changed(node.func, attr=name[:-1]))
        elif name in _TWINS and _kept(node.func.value, place.function):
            yield changed(node, func=changed(node.func, attr=f"{name}_"))
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
        if ast.dump(target).replace("Store", "Load") == ast.dump(value.left) and not isinstance(value.right, ast.Constant):
            yield ast.AugAssign(target, value.op, value.right)


def _library(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "np", "F", "math")


def _kept(node: ast.AST, function: ast.FunctionDef | None) -> bool:
    """Whether somebody may look at a value again: an argument, a part of an object, a name that is read elsewhere too.
    A passing result may be overwritten, and nobody can tell."""
    if isinstance(node, ast.Attribute | ast.Subscript):
        return True
    if not isinstance(node, ast.Name) or _library(node) or function is None:
        return False
    names = [n for n in ast.walk(function) if isinstance(n, ast.Name | ast.arg)]
    read = [n for n in names if isinstance(n, ast.Name) and n.id == node.id and isinstance(n.ctx, ast.Load)]
    return len(read) > 1 or any(isinstance(n, ast.arg) and n.arg == node.id for n in names)


TENSOR_OPERATORS: dict[str, Operator] = {
    "swapped function": swapped, "dtype": dtype, "call left out": left_out, "detached": gradient, "in place": in_place,
}
