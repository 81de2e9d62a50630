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
    raise NotImplementedError("task 1: softmax over the last dimension")


def magic(n: int) -> int:
    """The number after ``n``: 48271 n + 11 modulo 2147483647."""
    raise NotImplementedError("task 1: one multiplication")


def project(x: Tensor, w: Tensor) -> Tensor:
    """(n, k) times (k, m) -> (n, m)."""
    raise NotImplementedError("task 2: one product")


def stats(x: Tensor) -> Stats:
    """Mean and largest entry."""
    raise NotImplementedError("task 2: mean and largest entry")


class Ledger:
    """Named numbers, in the order in which the names first came."""

    def __init__(self) -> None:
        self.entries: dict[str, float] = {}

    def add(self, name: str, value: float) -> float:
        """Add ``value`` to the entry ``name`` and return its new value."""
        raise NotImplementedError("task 3: add to the entry")

    @property
    def total(self) -> float:
        """The sum of all entries."""
        raise NotImplementedError("task 3: the sum of all entries")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __getitem__(self, name: str) -> float:
        return self.entries[name]


def repeated(f: Callable[[Tensor], Tensor], x: Tensor, times: int) -> Tensor:
    """``f`` applied ``times`` times."""
    raise NotImplementedError("task 3: apply the function")


def row_sums(a: np.ndarray, b: np.ndarray, block: int = 64) -> np.ndarray:
    """Sums over the rows of ``a * b`` (n, m), made ``block`` rows at a time -> (n,)."""
    raise NotImplementedError("task 4: sums of blocks of rows")
