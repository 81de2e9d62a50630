"""Weights from scores, and a weighted sum."""

from __future__ import annotations

from torch import Tensor


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension of ``x`` (..., n), same shape and dtype.

    Raises ValueError for a tensor without dimensions, naming its shape.
    """
    raise NotImplementedError("task 1: exponentials of the shifted scores, normalised")


def mix(scores: Tensor, values: Tensor) -> Tensor:
    """``softmax(scores) @ values``: scores (n, k), values (k, d) -> (n, d)."""
    raise NotImplementedError("task 2: one product")
