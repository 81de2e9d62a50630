"""Scaled dot-product attention."""

from __future__ import annotations

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """q (..., n, d), k (..., m, d), v (..., m, e) -> (output (..., n, e), weights (..., n, m)).

    With ``causal`` query i sees keys 0 to i.
    """
    raise NotImplementedError("task 1: scores, mask, softmax, weighted sum")
