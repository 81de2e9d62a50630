"""In logarithms."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(x: Tensor) -> Tensor:
    if x.ndim < 1:
        raise ValueError(f"shape {tuple(x.shape)} has no dimension")
    return (x - torch.logsumexp(x, -1, keepdim=True)).exp()


def mix(scores: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("nk,kd->nd", softmax(scores), values)
