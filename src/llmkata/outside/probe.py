"""Probes: self-contained functions of a grader that run beside the submission and return numbers, never verdicts."""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import textwrap
from collections.abc import Callable


class ProbeError(TypeError):
    """A probe that leans on its grader: it would not run where only its source is."""


def probe(fn: Callable) -> Callable:
    """Mark a function as a probe. Its first parameter is the learner's module. Raises ProbeError for one that uses
    names of the grader (closures or globals): the source travels alone, and nothing of a grader may travel with it.
    """
    source = textwrap.dedent(inspect.getsource(fn))
    tree = ast.parse(source).body[0]
    tree.decorator_list = []
    if fn.__code__.co_freevars:
        raise ProbeError(f"{_place(fn)}: the probe closes over {', '.join(fn.__code__.co_freevars)}; pass it as an argument")
    for argument in [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs, tree.args.vararg, tree.args.kwarg]:
        if argument is not None:
            argument.annotation = None
    tree.returns = None
    in_defaults = {n.id for d in (*tree.args.defaults, *tree.args.kw_defaults) if d is not None
                   for n in ast.walk(d) if isinstance(n, ast.Name)}
    foreign = sorted((_globals_used(fn.__code__) | in_defaults) - set(dir(builtins)))
    if foreign:
        raise ProbeError(f"{_place(fn)}: the probe uses {', '.join(foreign)} of the grader; import inside it or pass it")
    fn.__kata_probe__ = (fn.__name__, ast.unparse(tree))
    return fn


def probe_source(fn: Callable) -> tuple[str, str]:
    """-> (name, source) of a marked probe."""
    try:
        return fn.__kata_probe__
    except AttributeError:
        raise ProbeError(f"{getattr(fn, '__name__', fn)!r} is no probe: mark it with @probe") from None


def _place(fn: Callable) -> str:
    return f"{fn.__code__.co_filename}:{fn.__code__.co_firstlineno} {fn.__name__}"


def _globals_used(code: object) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for const in code.co_consts:
        if inspect.iscode(const):
            names |= _globals_used(const)
    return names
