"""Fresh values for the inputs of a replay."""

from __future__ import annotations

import torch
from torch import Tensor


def fresh(tensor: Tensor, generator: torch.Generator, memo: dict[int, torch.UntypedStorage] | None = None) -> Tensor:
    """A tensor of the same dtype, shape, strides and offset over a storage of its own, with other values.

    Floating and complex values are drawn anew with the mean and standard deviation of those of the whole storage:
    normal, or log-normal with the sign kept where all of them have one sign (variances, probabilities, temperatures).
    Exact zeros and non-finite values stay where they are (padding, additive masks). Other dtypes (ids, masks,
    lengths) are copied unchanged.

    Args:
        tensor: any strided CPU tensor, expanded and overlapping ones included.
        generator: source of the draws.
        memo: give the same dict for all inputs of a scenario, so that views of one storage stay views of one storage.
    """
    memo = {} if memo is None else memo
    storage = tensor.untyped_storage()
    if storage._cdata not in memo:
        memo[storage._cdata] = storage.clone()
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            whole = storage.nbytes() // tensor.element_size()
            flat = torch.empty(0, dtype=tensor.dtype).set_(memo[storage._cdata], 0, (whole,), (1,))
            _redraw(torch.view_as_real(flat) if tensor.dtype.is_complex else flat, generator)
    copy = torch.empty(0, dtype=tensor.dtype).set_(
        memo[storage._cdata], tensor.storage_offset(), tensor.shape, tensor.stride())
    return copy.requires_grad_(tensor.requires_grad)


def _redraw(values: Tensor, generator: torch.Generator) -> None:
    wide = values.to(torch.float64)
    drawn = wide.isfinite() & (wide != 0)
    old = wide[drawn]
    if old.numel() == 0:
        return
    noise = torch.randn(old.shape, generator=generator, dtype=torch.float64)
    mean, std = old.mean(), old.std(correction=0)
    if (old > 0).all() or (old < 0).all():
        spread = torch.log1p((std / mean) ** 2)
        new = mean * torch.exp(noise * spread.sqrt() - spread / 2)
    else:
        new = mean + std * noise
    wide[drawn] = new
    values.copy_(wide.to(values.dtype))
