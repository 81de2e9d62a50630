"""What a wrong answer looks like when it is no known mistake of the exercise: one sentence that helps, or none.

A sentence is said only of what is seen in the numbers (axes swapped, a constant factor, NaN by rows, digits of float32),
never of one element, where chance would do. It names no value: it may be read where hidden inputs must not be.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from .compare import is_array

#: Fewest elements of which a pattern is believed.
_ENOUGH = 4


def symptom(got: Any, want: Any) -> str:
    """A sentence on how ``got`` differs from ``want``, both arrays or tensors of plain numbers; "" where nothing is
    recognised. Never raises.
    """
    try:
        return _symptom(got, want)
    except Exception:  # noqa: BLE001 - a courtesy; its failure must not change a verdict
        return ""


def raised_symptom(message: str) -> str:
    """A sentence on an error that torch or NumPy raised in the learner's code, or ""."""
    for pattern, sentence in _MESSAGES:
        if re.search(pattern, message):
            return sentence
    return ""


def _symptom(got: Any, want: Any) -> str:
    if isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(want):
            return ""
        return next((said for g, w in zip(got, want) if (said := _symptom(g, w))), "")
    if not (is_array(got) and is_array(want)):  # anything else might be an object of the learner's, which is not asked
        return ""
    if _device(got) != _device(want):
        return (f"It lies on {_device(got)}, not on {_device(want)}: a tensor you create needs device=x.device, x an input.")
    if tuple(got.shape) != tuple(want.shape):
        return _shapes(tuple(got.shape), tuple(want.shape))
    if _dtype(got) != _dtype(want) and (said := _dtypes(_dtype(got), _dtype(want), hasattr(got, "detach"))):
        return said
    g, w = _wide(got), _wide(want)
    for look in _LOOKS:
        if said := look(g, w):
            return said
    return ""


# -- devices, dtypes, shapes ---------------------------------------------------------------------------------------


def _device(v: Any) -> str:
    device = getattr(v, "device", "cpu")
    return str(getattr(device, "type", device))


def _dtype(v: Any) -> str:
    return str(v.dtype).removeprefix("torch.")


_HALF = ("float16", "bfloat16")


def _dtypes(got: str, want: str, tensor: bool) -> str:
    if got == "float64" and want in ("float32", *_HALF):
        source = ("a float64 array or tensor takes part (torch.from_numpy, np.*, torch.float64)" if tensor else
                  "np.zeros, np.ones, np.arange and Python lists make float64, which promotes all it meets")
        return f"Expected {want}, got float64: {source}. Say dtype=x.dtype."
    if got == "float32" and want == "float64":
        return "Expected float64, got float32: a constant or buffer is made in the default dtype. Say dtype=x.dtype."
    if got == "float32" and want in _HALF:
        return f"Computed in float32, as it should be, and not rounded to the inputs' {want} at the end: .to(x.dtype)."
    if got in _HALF and want == "float32":
        return f"Expected float32, got {got}: an autocast or a cast back too early."
    if want.startswith(("float", "bfloat")) and got.startswith(("int", "uint", "bool")):
        return f"Expected {want}, got {got}: integers went in and nothing made them real numbers."
    if want == "bool":
        return f"Expected a boolean mask, got {got}: compare (==, <=), do not multiply."
    return ""


def _shapes(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    if len(got) == len(want):
        if sorted(got) == sorted(want):
            moved = [i for i, (a, b) in enumerate(zip(got, want)) if a != b]
            if len(moved) == 2:
                return f"Axes {moved[0]} and {moved[1]} are swapped: a transpose is missing, or one too many."
            return "The axes are in another order: a permute is missing, or in another order."
        different = [i for i, (a, b) in enumerate(zip(got, want)) if a != b]
        if len(different) == 1 and abs(got[different[0]] - want[different[0]]) == 1:
            word = "few" if got[different[0]] < want[different[0]] else "many"
            return f"One too {word} along axis {different[0]}: look at the ends of your slice or range."
        return ""
    if tuple(n for n in got if n != 1) == tuple(n for n in want if n != 1):
        return ("An axis of size 1 is missing: keepdim=True, or unsqueeze." if len(got) < len(want) else
                "An axis of size 1 is left over: no keepdim, or squeeze.")
    if len(got) == len(want) + 1 and got[-len(want):] == want and want and got[0] == want[0]:
        return "It was broadcast: (n, 1) against (n,) makes (n, n). Keep the dimensions of both alike."
    if len(got) < len(want) and want[-len(got):] == got:
        return "The leading (batch) axes are gone: name axes from the end (-1, -2), and sum over no others."
    return ""


# -- values --------------------------------------------------------------------------------------------------------


def _wide(v: Any) -> np.ndarray:
    if hasattr(v, "detach"):
        import torch

        v = v.detach()
        v = v.to(torch.float64).numpy() if v.is_floating_point() else v.numpy()
    return np.asarray(v).astype(np.float64)


def _equal(a: np.ndarray, b: np.ndarray, rtol: float = 1e-4) -> bool:
    if a.shape != b.shape:
        return False
    finite = b[np.isfinite(b)]
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    return bool(np.allclose(a, b, rtol=rtol, atol=rtol * scale, equal_nan=True))


def _telling(w: np.ndarray) -> bool:
    """Whether a pattern in ``w`` means something: several elements, and not all the same."""
    return w.size >= _ENOUGH and np.unique(w[np.isfinite(w)]).size > 2


def _nan(g: np.ndarray, w: np.ndarray) -> str:
    nan = np.isnan(g) & ~np.isnan(w)
    if not nan.any():
        return ""
    if nan.all():
        return "All of it is NaN: one 0/0, inf - inf or log of a negative number spread over everything."
    rows = nan.reshape(-1, nan.shape[-1]) if nan.ndim > 1 else nan.reshape(1, -1)
    first = int(np.argmax(rows.any(axis=1)))
    where = np.unravel_index(first, nan.shape[:-1]) if nan.ndim > 1 else ()
    if nan.ndim > 1 and (rows.any(axis=1) == rows.all(axis=1)).all():
        return (f"NaN first appears at row {_index(where)}, and fills it: a softmax over a row of -inf, which is 0/0? "
                "Treat a row that sees nothing apart.")
    at = f" at row {_index(where)}" if where else f" at index {int(np.argmax(nan))}"
    return f"NaN first appears{at}: 0/0, inf - inf, 0 * inf, or the log or root of a negative number."


def _infinite(g: np.ndarray, w: np.ndarray) -> str:
    if (np.isinf(g) & np.isfinite(w)).any():
        return "It holds infinities: exp of a large number overflows (subtract the maximum first), or a division by zero."
    return ""


def _masked(g: np.ndarray, w: np.ndarray) -> str:
    """Causal masks: the expected zeros (or -inf, or False) lie above a diagonal, the learner's above another one."""
    if w.ndim < 2 or min(w.shape[-2:]) < 2:
        return ""
    rows, columns = w.shape[-2:]
    block, seen = w.reshape(-1, rows, columns), g.reshape(-1, rows, columns)
    allowed = ~((block == 0) | np.isneginf(block))
    theirs = ~((seen == 0) | np.isneginf(seen))
    diagonal = columns - rows
    i, j = np.mgrid[:rows, :columns]
    if not all((a == (j <= i + diagonal)).all() for a in allowed):
        return ""
    for shift, sentence in (
        (1, "Each query sees one key too many, the next one: off by one, it may see key j only up to its own position."),
        (-1, "No query sees its own position: off by one, key j counts up to and including it."),
    ):
        if all((t == (j <= i + diagonal + shift)).all() for t in theirs):
            return sentence
    if diagonal and all((t == (j <= i)).all() for t in theirs):
        return ("The causal triangle hangs in the top left corner; with a past it belongs in the bottom right: "
                "j <= i + Tk - Tq (tril with diagonal=Tk - Tq).")
    if all((t == (j >= i + diagonal)).all() for t in theirs):
        return "The mask is the wrong way round: queries see what comes after, not what came before."
    if theirs.all() and not allowed.all():
        return "Nothing is masked: every query sees every key."
    return ""


def _swapped(g: np.ndarray, w: np.ndarray) -> str:
    if not _telling(w):
        return ""
    for a, b in sorted(combinations(range(w.ndim), 2), key=lambda pair: -pair[0]):
        if w.shape[a] == w.shape[b] and w.shape[a] > 1 and _equal(g, np.swapaxes(w, a, b)) and not _equal(w, np.swapaxes(w, a, b)):
            which = "the last two axes" if (a, b) == (w.ndim - 2, w.ndim - 1) else f"axes {a} and {b}"
            return f"Got equals expected with {which} swapped: a transpose is missing, or one too many."
    return ""


def _moved(g: np.ndarray, w: np.ndarray) -> str:
    if not _telling(w):
        return ""
    for axis in range(w.ndim):
        n = w.shape[axis]
        if n < 3:
            continue
        if _equal(g, np.flip(w, axis)):
            return f"Got equals expected read backwards along axis {axis}."
        part = lambda x, a, b, axis=axis: np.take(x, range(a, b), axis)
        if _equal(part(g, 1, n), part(w, 0, n - 1)) or _equal(part(g, 0, n - 1), part(w, 1, n)):
            return f"Got is expected, shifted by one along axis {axis}: off by one in an index."
    return ""


def _normalised(g: np.ndarray, w: np.ndarray) -> str:
    if w.ndim < 2 or (w < 0).any() or not np.isfinite(g).all() or w.shape[-1] < 2 or w.shape[-2] < 2:
        return ""
    one = lambda x, axis: _equal(x.sum(axis), np.ones_like(x.sum(axis)))
    if not one(w, -1) or one(g, -1):
        return ""
    for axis in range(-2, -w.ndim - 1, -1):
        if one(g, axis) and not one(w, axis):
            return f"It sums to 1 over axis {axis}, not over the last one: the softmax runs over the wrong axis."
    return ""


def _scaled(g: np.ndarray, w: np.ndarray) -> str:
    if not _telling(w) or not np.isfinite(g).all() or not np.isfinite(w).all():
        return ""
    if not g.any():
        return "It is zero everywhere: was the result written into a copy?"
    factor = float((g * w).sum() / (w * w).sum())
    if _equal(g, -w):
        return "Got is expected with the opposite sign."
    if factor > 0 and abs(factor - 1) > 1e-3 and _equal(g, factor * w):
        return f"Got is {factor:.4g} times expected, everywhere: a factor (a scale, a mean in place of a sum) is off."
    offset = float((g - w).mean())
    if abs(offset) > 1e-3 * float(np.abs(w).max()) and _equal(g - w, np.full_like(w, offset)):
        return "Got differs from expected by the same number everywhere: a constant term is off."
    return ""


def _rounded(g: np.ndarray, w: np.ndarray) -> str:
    if not _telling(w) or not np.isfinite(g).all() or not np.isfinite(w).all():
        return ""
    error = float(np.abs(g - w).max() / max(float(np.abs(w).max()), 1e-300))
    if 1e-9 < error < 5e-6:
        return "It agrees to about seven digits, which are those of float32: something on the way was computed in float32."
    if 5e-5 < error < 1e-2 and _is_half(g):
        return "It agrees to about three digits, which are those of half precision: something was rounded too early."
    return ""


def _is_half(g: np.ndarray) -> bool:
    """Whether every number fits into bfloat16 or float16 exactly: that is no accident."""
    bits = g.astype(np.float32).view(np.uint32)
    return bool(((bits & 0xFFFF) == 0).all() or (g.astype(np.float16).astype(np.float64) == g).all())


_LOOKS: tuple[Callable[[np.ndarray, np.ndarray], str], ...] = (
    _nan, _infinite, _masked, _swapped, _moved, _normalised, _scaled, _rounded)


def _index(where: tuple) -> str:
    return str(int(where[0])) if len(where) == 1 else str(tuple(int(i) for i in where))


_MESSAGES = (
    (r"Expected all tensors to be on the same device|found at least two devices",
     "A tensor you create stays on the CPU unless you say device=x.device, x an input."),
    (r"expected scalar type|same dtype|must have the same dtype|expected m1 and m2|promoteTypes",
     "Two dtypes meet in one product: make constants and buffers with dtype=x.dtype."),
    (r"mat1 and mat2 shapes cannot be multiplied|matmul: Input operand 1 has a mismatch|Expected size for first two dimensions",
     "The inner dimensions of a product must agree: (n, k) times (k, m). Is a transpose missing?"),
    (r"must match the size of tensor b|could not be broadcast together",
     "Shapes are matched from the right, and only sizes 1 stretch: an unsqueeze, or keepdim=True, is missing."),
    (r"does not require grad and does not have a grad_fn",
     "The graph was cut: .detach(), .item(), .data, NumPy or torch.no_grad() lies between the inputs and the result."),
    (r"modified by an inplace operation|leaf Variable that requires grad",
     "Something that the backward pass needs is overwritten: no +=, [...] = or _-function on it."),
    (r"Can't call numpy\(\) on Tensor that requires grad", "Use .detach() before .numpy(), and only where no gradient must flow."),
    (r"view size is not compatible|is not compatible with input tensor's size and stride",
     "After a transpose the memory is in another order: use reshape, or contiguous() before view."),
)
