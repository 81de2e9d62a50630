"""Memory that operators allocate and free inside themselves, read from the events of torch's allocator.

A sum over storages does not see the workspace of fused attention or the copies a product makes of expanded operands.
torch's profiler reports every allocation of this thread; marks of an otherwise unlikely size, allocated and freed at once, tell which
of them belong to which operator. The profiler is the one that older torch versions had: its successor starts a
thread, which a sandboxed process may not.
"""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Self

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import ProfilerConfig, ProfilerState, _disable_profiler_legacy, _enable_profiler_legacy


class Temporaries:
    """Use as a context around a whole replay, with :meth:`mark` before and after each operator; then :meth:`highs`."""

    def __init__(self) -> None:
        self._mark = (1 << 20) + 2 * secrets.randbelow(1 << 20) + 1
        self._changes: list[int] = []

    def __enter__(self) -> Self:
        shapes, memory, stack, flops, modules = False, True, False, False, False
        _enable_profiler_legacy(
            ProfilerConfig(ProfilerState.CPU, shapes, memory, stack, flops, modules, _ExperimentalConfig()))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._changes = [event.cpu_memory_usage() for thread in _disable_profiler_legacy() for event in thread
                         if event.kind() == "memory_alloc"]

    def mark(self) -> None:
        """Separates what comes before from what comes after."""
        torch.empty(self._mark, dtype=torch.uint8)

    def highs(self) -> list[int]:
        """For each operator, the highest level in bytes above that at which it began (after the context's end)."""
        changes, highs, inside, level, position = self._changes, [], False, 0, 0
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
