"""Weights from scores, and a weighted sum."""

from __future__ import annotations

from torch import Tensor


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension of ``x`` (..., n), same shape and dtype.

    Raises ValueError for a tensor without dimensions, naming its shape.
    """
    # BEGIN SOLUTION task 1: exponentials of the shifted scores, normalised
    if x.dim() == 0:
        raise ValueError(f"softmax needs a dimension, not shape {tuple(x.shape)}")
    e = (x - x.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)
    # END SOLUTION


def mix(scores: Tensor, values: Tensor) -> Tensor:
    """``softmax(scores) @ values``: scores (n, k), values (k, d) -> (n, d)."""
    # BEGIN SOLUTION task 2: one product
    return softmax(scores) @ values
    # END SOLUTION
