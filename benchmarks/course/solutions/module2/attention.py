"""Scaled dot-product attention."""

from __future__ import annotations

# BEGIN HIDDEN
import math

import torch

# END HIDDEN
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """q (..., n, d), k (..., m, d), v (..., m, e) -> (output (..., n, e), weights (..., n, m)).

    With ``causal`` query i sees keys 0 to i.
    """
    # BEGIN SOLUTION task 1: scores, mask, softmax, weighted sum
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    weights = scores.softmax(-1)
    return weights @ v, weights
    # END SOLUTION
