"""``same``: shape, then dtype, then values, with the worst element in the report."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from llmkata.outside.remote import Remote

from .context import current
from .describe import describe

#: (rtol, atol) by dtype. float32 and half as torch.testing has them, float64 for algorithms that reorder sums.
TOLERANCES = {
    "float64": (1e-9, 1e-10), "complex128": (1e-9, 1e-10),
    "float32": (1e-5, 1e-5), "complex64": (1e-5, 1e-5),
    "float16": (2e-3, 1e-3), "bfloat16": (1.6e-2, 1e-2),
}


_HALF = ("float16", "bfloat16")


class GraderFault(Exception):
    """The grader, not the learner, is wrong (an expected value that is NaN, say). The check is not judged."""


class Mismatch(AssertionError):
    """What was returned is not what was promised. ``ratio`` is error/tolerance, infinite where none applies; ``pair`` is
    (got, want) of the values compared, where there are two."""

    pair: tuple[Any, Any] | None = None

    def __init__(self, summary: str, *, expected: str = "", got: str = "", index: str = "",
                 ratio: float = math.inf) -> None:
        super().__init__(summary)
        self.summary, self.expected, self.got, self.index, self.ratio = summary, expected, got, index, ratio


def check(condition: Any, sentence: str, *, got: Any = None, want: Any = None) -> None:
    """A plain statement about an answer: fails with ``sentence`` (for the learner) unless ``condition`` is true.

    An object of the learner's is never true: asking it would be asking the learner.
    """
    current().compared += 1
    if isinstance(condition, Remote) or not bool(condition):
        raise Mismatch(sentence, got="" if got is None else describe(got),
                       expected="" if want is None else describe(want))


def same(got: Any, want: Any, *, atol: Any = None, rtol: float | None = None, dtype: Any = True,
         equal_nan: bool = False, what: str = "output") -> None:
    """Compare an answer with what is expected: type, shape, dtype, then |got - want| <= atol + rtol * |want|.

    ``dtype``: True compares with that of ``want``, None does not compare, else the dtype that is promised.
    Tolerances follow the dtype of ``got`` unless given; ``atol`` may be an array. Nested tuples, lists and dicts are
    compared item by item. Raises Mismatch; GraderFault when ``want`` itself holds NaN.
    """
    current().compared += 1
    try:
        _same(got, want, atol, rtol, dtype, equal_nan, what)
    except Mismatch as e:
        e.pair = (got, want)
        raise


def _same(got: Any, want: Any, atol: Any, rtol: float | None, dtype: Any, equal_nan: bool, what: str) -> None:
    if isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or isinstance(got, Remote):
            raise Mismatch(f"{what} must be a {type(want).__name__}, it is {kind(got)}.", expected=describe(want),
                           got=describe(got))
        if len(got) != len(want):
            raise Mismatch(f"{what} must have {len(want)} items, it has {len(got)}.", expected=describe(want),
                           got=describe(got))
        for i, (g, w) in enumerate(zip(got, want)):
            _same(g, w, atol, rtol, dtype, equal_nan, f"{what}[{i}]")
    elif isinstance(want, dict):
        if not isinstance(got, dict) or set(got) != set(want):
            raise Mismatch(f"{what} must be a dict with the keys {sorted(map(str, want))}.", expected=describe(want),
                           got=describe(got))
        for k, w in want.items():
            _same(got[k], w, atol, rtol, dtype, equal_nan, f"{what}[{k!r}]")
    elif isinstance(want, np.ndarray) and want.dtype.kind in "SU":
        _same_texts(got, want, what)
    elif is_array(want) or isinstance(want, (float, complex, np.floating, np.complexfloating)) or (
            type(want) is int and (atol is not None or rtol is not None)):
        _same_numbers(got, want, atol, rtol, dtype, equal_nan, what)
    else:
        plain = got.item() if isinstance(got, np.generic) else got
        expected = want.item() if isinstance(want, np.generic) else want
        if isinstance(plain, Remote) or type(plain) is not type(expected) or not bool(plain == expected):
            raise Mismatch(f"{what} is not what it should be.", expected=describe(want), got=describe(got))


def _same_texts(got: Any, want: np.ndarray, what: str) -> None:
    if not isinstance(got, np.ndarray) or got.dtype.kind != want.dtype.kind or got.shape != want.shape:
        raise Mismatch(f"{what} must be an array {want.shape} of text.", expected=describe(want), got=describe(got))
    bad = np.argwhere(got != want)
    if bad.size:
        raise Mismatch(f"{what} differs in {len(bad)} of {got.size} elements.", expected=describe(want), got=describe(got),
                       index=str(tuple(int(i) for i in bad[0])))


def _same_numbers(got: Any, want: Any, atol: Any, rtol: float | None, dtype: Any, equal_nan: bool, what: str) -> None:
    if is_array(want):
        if not is_array(got) and not (want.ndim == 0 and isinstance(got, np.generic)):
            raise Mismatch(f"{what} must be {kind(want)}, it is {kind(got)}.", expected=describe(want),
                           got=describe(got))
        if _is_tensor(want) != _is_tensor(got):
            raise Mismatch(f"{what} must be {kind(want)}, it is {kind(got)}.", expected=describe(want),
                           got=describe(got))
        if tuple(got.shape) != tuple(want.shape):
            raise Mismatch(f"{what} has shape {tuple(got.shape)}, it must have {tuple(want.shape)}.",
                           expected=describe(want), got=describe(got))
        promised = want.dtype if dtype is True else dtype
        if promised is not None and dtype_name(got.dtype) != dtype_name(promised):
            raise Mismatch(f"{what} has dtype {dtype_name(got.dtype)}, it must have {dtype_name(promised)}.",
                           expected=describe(want), got=describe(got))
        name = dtype_name(got.dtype)
        if dtype is None and name in _HALF and dtype_name(want.dtype) not in _HALF:
            name = "float32"  # half precision is not a licence where nobody asked for it
    else:
        if isinstance(got, bool) or not isinstance(got, (int, float, complex, np.number)) and not (
                is_array(got) and getattr(got, "ndim", 1) == 0):
            raise Mismatch(f"{what} must be a number, it is {kind(got)}.", expected=describe(want), got=describe(got))
        name = "float64"
    w = _wide(want)
    try:
        g = _wide(got)
    except GraderFault as e:  # the learner's, not ours
        raise Mismatch(f"{what} holds {e}.", expected=describe(want), got=describe(got)) from None
    _compare_wide(g, w, name, atol, rtol, equal_nan, what, got, want)


def _compare_wide(g: np.ndarray, w: np.ndarray, name: str, atol: Any, rtol: float | None, equal_nan: bool, what: str,
                  got: Any, want: Any) -> None:
    default_r, default_a = TOLERANCES.get(name, (0.0, 0.0))
    rtol = default_r if rtol is None and atol is None else (rtol or 0.0)
    atol = default_a if atol is None else _wide(atol)
    nan_w, nan_g = np.isnan(w), np.isnan(g)
    if nan_w.any() and not equal_nan and not nan_g.any():
        # Where the answer holds NaN too, what is expected may have been computed from it: that is a wrong answer.
        raise GraderFault(f"the expected value of {what} holds NaN")
    with np.errstate(invalid="ignore", over="ignore"):
        tolerance = np.broadcast_to(atol + rtol * np.abs(np.where(np.isfinite(w), w, 0)), w.shape)
        error = np.abs(g - w)
        error = np.where(g == w, 0.0, error)  # equal infinities
        error = np.where(nan_g & nan_w & equal_nan, 0.0, np.where(nan_g | nan_w, np.inf, error))
    bad = ~(error <= tolerance)
    if bad.any():
        ratio = np.where(error == 0, 0.0, error / np.maximum(tolerance, 1e-300))
        worst = np.unravel_index(int(np.argmax(np.where(bad, np.nan_to_num(ratio, nan=np.inf, posinf=1e308), -1))), w.shape)
        at = tuple(int(i) for i in worst)
        place = f" at index {at}" if at else ""
        if nan_g[worst]:
            summary = f"{what} is NaN{place} ({int(nan_g.sum())} of {g.size} elements are)."
        else:
            # The numbers stand in the evidence: a cause is read where hidden values must not be.
            summary = f"{what} differs in {int(bad.sum())} of {g.size} elements" + (f", most{place}." if at else ".")
        raise Mismatch(summary, expected=_one_of(w[worst], want, at), got=_one_of(g[worst], got, at),
                       index=str(at) if at else "",
                       ratio=float(min(ratio[worst], 1e308)) if np.isfinite(ratio[worst]) else math.inf)
    if error.size and (tolerance > 0).any():
        context = current()
        positive = tolerance > 0
        context.headroom = max(context.headroom, float((error[positive] / tolerance[positive]).max()))


def distance(a: Any, b: Any) -> float:
    """Largest error of ``a`` against ``b`` in units of the default tolerance of their dtype; infinite where shape,
    dtype or type differ (diagnosis: which answer is nearest)."""
    if isinstance(a, Remote) and isinstance(b, Remote):
        fields_a, fields_b = a.__dict__.get("_fields"), b.__dict__.get("_fields")
        if (fields_a is None) != (fields_b is None) or a._type != b._type:
            return math.inf
        return 0.0 if fields_a is None else distance(fields_a, fields_b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return math.inf if len(a) != len(b) else max(map(distance, a, b), default=0.0)
    if isinstance(a, dict) and isinstance(b, dict):
        return math.inf if set(a) != set(b) else max((distance(a[k], b[k]) for k in a), default=0.0)
    numeric = (int, float, complex, np.generic)
    if (is_array(a) and is_array(b)) or (isinstance(a, numeric) and isinstance(b, numeric)):
        return _numeric_distance(a, b)
    return 0.0 if type(a) is type(b) and bool(a == b) else math.inf


def _numeric_distance(a: Any, b: Any) -> float:
    if getattr(a, "shape", ()) != getattr(b, "shape", ()):
        return math.inf
    names = [dtype_name(v.dtype) for v in (a, b) if hasattr(v, "dtype")]
    if len(set(names)) > 1:
        return math.inf
    try:
        x, y = _wide(a), _wide(b)
    except (TypeError, ValueError, GraderFault):
        return 0.0 if bool(np.array_equal(a, b)) else math.inf
    rtol, atol = TOLERANCES.get(names[0] if names else "float64", (0.0, 1e-9))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y) / (atol + rtol * np.abs(y)))
    return float(np.nan_to_num(error, nan=np.inf).max()) if error.size else 0.0


def is_array(v: Any) -> bool:
    """Whether ``v`` is an ndarray or a tensor."""
    return isinstance(v, np.ndarray) or _is_tensor(v)


def _is_tensor(v: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(v, torch.Tensor)


def dtype_name(dtype: Any) -> str:
    """``float32`` for torch.float32, np.float32, np.dtype("<f4") and "float32"."""
    text = str(dtype)
    return text.removeprefix("torch.") if text.startswith("torch.") else np.dtype(dtype).name


def _wide(v: Any) -> np.ndarray:
    if _is_tensor(v):
        import torch

        v = v.detach()
        if v.is_floating_point() or v.is_complex():
            v = v.to(torch.complex128 if v.is_complex() else torch.float64)
        v = v.numpy()
    a = np.asarray(v)
    if type(v) is int and abs(v) > 2**53 or a.dtype.kind in "iu" and a.size and (np.abs(a.astype(np.float64)) > 2**53).any():
        raise GraderFault("integers beyond 2**53, which are compared as lists of numbers")
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def _one_of(worst: Any, whole: Any, at: tuple[int, ...]) -> str:
    return f"{_number(worst)} in {describe(whole)}" if at else describe(whole)


def _number(x: Any) -> str:
    return f"{complex(x):.6g}" if np.iscomplexobj(x) and x.imag else f"{float(np.real(x)):.6g}"


def kind(v: Any) -> str:
    """What a value is, in words: ``a torch tensor``, ``None``, ``a str``."""
    if _is_tensor(v):
        return "a torch tensor"
    if isinstance(v, np.ndarray):
        return "a NumPy array"
    if v is None:
        return "None"
    name = v._type if isinstance(v, Remote) else type(v).__name__
    return f"an object of type {name}" if isinstance(v, Remote) else f"a {name}"
