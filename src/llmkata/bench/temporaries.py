"""Memory that operators allocate and free inside themselves, read from the events of torch's allocator.

A sum over storages does not see the workspace of fused attention or the copies a product makes of expanded operands.
torch's profiler reports every allocation; marks of an otherwise unlikely size, allocated and freed at once, tell which
of them belong to which operator.
"""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Self

import torch
from torch.autograd import profiler


class Temporaries:
    """Use as a context around a whole replay, with :meth:`mark` before and after each operator; then :meth:`highs`."""

    def __init__(self) -> None:
        self._mark = (1 << 20) + 2 * secrets.randbelow(1 << 20) + 1
        self._profile = profiler.profile(use_cpu=True, profile_memory=True)

    def __enter__(self) -> Self:
        self._profile.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._profile.__exit__(kind, error, trace)

    def mark(self) -> None:
        """Separates what comes before from what comes after."""
        torch.empty(self._mark, dtype=torch.uint8)

    def highs(self) -> list[int]:
        """For each operator, the highest level in bytes above that at which it began (after the context's end)."""
        changes = [event.nbytes() for event in self._profile.kineto_results.events() if event.name() == "[memory]"]
        highs, inside, level, position = [], False, 0, 0
        while position < len(changes):
            if changes[position] == self._mark and changes[position + 1 : position + 2] == [-self._mark]:
                inside = not inside
                if inside:
                    highs.append(0)
                level, position = 0, position + 2
                continue
            level += changes[position]
            if inside:
                highs[-1] = max(highs[-1], level)
            position += 1
        return highs
