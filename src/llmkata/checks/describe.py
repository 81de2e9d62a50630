"""Values in the learner's words: shape and dtype first, then the numbers if they are few."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import numpy as np

from llmkata.outside.remote import Remote

_FEW = 24
_CAP = 600


def describe(v: Any, depth: int = 0) -> str:
    """A short text for any value that crosses the boundary; never evaluates anything of the learner's."""
    try:
        text = _describe(v, depth)
    except Exception as e:  # noqa: BLE001 - a value that cannot be shown must not decide anything
        text = f"a {type(v).__name__} that cannot be shown ({type(e).__name__})"
    return text if len(text) <= _CAP else text[:_CAP] + " ..."


def _describe(v: Any, depth: int) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(v, torch.Tensor):
        dtype = str(v.dtype).removeprefix("torch.")
        if v.device.type == "meta":
            return f"tensor {tuple(v.shape)} {dtype} on meta"
        head = f"tensor {tuple(v.shape)} {dtype}"
        if not 0 < v.numel() <= _FEW:  # asked first: a view of few bytes may have very many elements
            return head
        return f"{head} {_numbers(v.detach().to(torch.float64).numpy() if v.is_floating_point() else v.detach().numpy())}"
    if isinstance(v, np.ndarray):
        head = f"array {v.shape} {v.dtype.name}"
        return f"{head} {_numbers(v)}" if 0 < v.size <= _FEW else head
    if isinstance(v, Remote):
        return repr(v)
    if depth < 3 and isinstance(v, (tuple, list)):
        inner = ", ".join(_describe(x, depth + 1) for x in v[:8]) + (", ..." if len(v) > 8 else "")
        return f"({inner}{',' if len(v) == 1 else ''})" if isinstance(v, tuple) else f"[{inner}]"
    if depth < 3 and type(v) is dict:
        return "{" + ", ".join(f"{k!r}: {_describe(x, depth + 1)}" for k, x in list(v.items())[:8]) + (
            ", ..." if len(v) > 8 else "") + "}"
    if isinstance(v, float):
        return f"{v:.6g}"
    if callable(v) and not isinstance(v, type):
        return getattr(v, "__name__", "function")
    if isinstance(v, (str, bytes)):
        return repr(v[: _CAP + 1])
    if isinstance(v, (tuple, list, dict, set, frozenset)):
        return f"a {type(v).__name__} of {len(v)} items" if len(v) > _FEW or depth >= 3 else repr(v)
    return repr(v)


def _numbers(values: np.ndarray) -> str:
    return np.array2string(values, precision=4, separator=", ", max_line_width=100, threshold=_FEW)


def describe_call(what: str, args: tuple, kwargs: dict[str, Any]) -> str:
    """``attention(tensor (2, 3) float32, ..., is_causal=True)``; an argument to a line where one is shown in full."""
    parts = [describe(a) for a in args] + [f"{k}={describe(v)}" for k, v in kwargs.items()]
    if any("\n" in p for p in parts):
        text = f"{what}(\n" + ",\n".join(textwrap.indent(p, "  ") for p in parts) + ")"
    else:
        text = f"{what}({', '.join(parts)})"
    return text if len(text) <= 2 * _CAP else text[: 2 * _CAP] + " ..."
