"""Vector-Jacobian products of the learner's functions: forward, then gradients for given cotangents.

The cotangents come from the grader and the comparison is made there: this file observes, it does not judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import graph

#: What ``torch.autograd.grad`` calls once it has checked its arguments; no name of torch's public interface.
_run_backward = getattr(graph, "_engine_run_backward", None)


def vjp(fn: Callable, args: Sequence[Any], kwargs: dict[str, Any], wrt: Sequence[int], cotangents: Any,
        module: torch.nn.Module | None) -> tuple[Any, list[Any], dict[str, Any]]:
    """-> (outputs, gradients of ``args[i]`` for i in wrt, gradients of the module's parameters by name).

    A gradient is None where the output does not depend on the argument. Cotangents are nested like the outputs,
    with None where nothing is to flow back.
    """
    args = list(args)
    leaves = []
    for i in wrt:
        args[i] = args[i].detach().requires_grad_(True)
        leaves.append(args[i])
    named = dict(module.named_parameters()) if module is not None else {}
    parameters = [p for p in named.values() if p.requires_grad]
    with torch.enable_grad():
        outputs = fn(*args, **kwargs)
        pairs = list(_pairs(outputs, cotangents))
        heads = [o for o, _ in pairs if o.requires_grad]
        seeds = [c.to(o.dtype) for o, c in pairs if o.requires_grad]
        wanted = leaves + parameters
        grads: Sequence[Any] = [None] * len(wanted)
        if heads and wanted:
            grads = _gradients(tuple(heads), tuple(wanted), tuple(seeds))
    by_name = {n: g for n, g in zip((n for n, p in named.items() if p.requires_grad), grads[len(leaves):])}
    return outputs, list(grads[: len(leaves)]), by_name


def _gradients(heads: tuple[Any, ...], wanted: tuple[Any, ...], seeds: tuple[Any, ...]) -> Sequence[Any]:
    """``torch.autograd.grad``; its check of shapes imports SymPy, 0.4 s in a learner's cold start, so where plain shapes
    and types agree what it calls next is called at once."""
    if _run_backward is not None and all(
            h.shape == s.shape and h.is_complex() == s.is_complex() and not h.is_nested for h, s in zip(heads, seeds)):
        return _run_backward(heads, seeds, False, False, wanted, True, accumulate_grad=False)
    return torch.autograd.grad(heads, wanted, seeds, allow_unused=True)


def _pairs(output: Any, cotangent: Any) -> Any:
    if cotangent is None:
        return
    if isinstance(output, torch.Tensor):
        yield output, cotangent
    elif isinstance(output, (tuple, list)):
        for o, c in zip(output, cotangent):
            yield from _pairs(o, c)
    elif isinstance(output, dict):
        for k, c in cotangent.items():
            yield from _pairs(output[k], c)
