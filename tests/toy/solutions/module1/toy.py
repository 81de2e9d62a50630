"""A few small functions, each of which some test of the framework leans on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Stats(NamedTuple):
    """Mean and largest entry of a tensor."""

    mean: Tensor
    peak: Tensor


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension of ``x``, same shape and dtype. Raises ValueError for a tensor without dimensions."""
    # BEGIN SOLUTION task 1: softmax over the last dimension
    if x.dim() == 0:
        raise ValueError("softmax needs a dimension, not shape ()")
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)
    # END SOLUTION


def magic(n: int) -> int:
    """The number after ``n``: 48271 n + 11 modulo 2147483647."""
    # BEGIN SOLUTION task 1: one multiplication
    return (48271 * n + 11) % 2147483647
    # END SOLUTION


def project(x: Tensor, w: Tensor) -> Tensor:
    """(n, k) times (k, m) -> (n, m)."""
    # BEGIN SOLUTION task 2: one product
    return x @ w
    # END SOLUTION


def stats(x: Tensor) -> Stats:
    """Mean and largest entry."""
    # BEGIN SOLUTION task 2: mean and largest entry
    return Stats(x.mean(), x.max())
    # END SOLUTION


class Ledger:
    """Named numbers, in the order in which the names first came."""

    def __init__(self) -> None:
        self.entries: dict[str, float] = {}

    def add(self, name: str, value: float) -> float:
        """Add ``value`` to the entry ``name`` and return its new value."""
        # BEGIN SOLUTION task 3: add to the entry
        self.entries[name] = self.entries.get(name, 0.0) + value
        return self.entries[name]
        # END SOLUTION

    @property
    def total(self) -> float:
        """The sum of all entries."""
        # BEGIN SOLUTION task 3: the sum of all entries
        return float(sum(self.entries.values()))
        # END SOLUTION

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __getitem__(self, name: str) -> float:
        return self.entries[name]


def repeated(f: Callable[[Tensor], Tensor], x: Tensor, times: int) -> Tensor:
    """``f`` applied ``times`` times."""
    # BEGIN SOLUTION task 3: apply the function
    for _ in range(times):
        x = f(x)
    return x
    # END SOLUTION


def row_sums(a: np.ndarray, b: np.ndarray, block: int = 64) -> np.ndarray:
    """Sums over the rows of ``a * b`` (n, m), made ``block`` rows at a time -> (n,)."""
    # BEGIN SOLUTION task 4: sums of blocks of rows
    out = np.empty(len(a), a.dtype)
    for i in range(0, len(a), block):
        out[i : i + block] = (a[i : i + block] * b[i : i + block]).sum(-1)
    return out
    # END SOLUTION
