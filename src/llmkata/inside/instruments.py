"""Instruments that only the learner's own process can hold: traced bytes and interpreter steps. Self-reported."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Collection
from typing import Any


def traced_peak(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run and return (result, peak traced bytes above the level at entry). Sees Python and NumPy, not torch."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start(1)
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = run()
        if not tracemalloc.is_tracing():
            raise RuntimeError("tracemalloc was stopped during the measured call")
        return result, max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        if not was_tracing:
            tracemalloc.stop()


def counted_steps(run: Callable[[], Any], filenames: Collection[str]) -> tuple[Any, int]:
    """Run and return (result, bytecode instructions executed in frames of these files)."""
    steps = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename not in filenames:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            steps += 1
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        result = run()
    finally:
        sys.settrace(previous)
    return result, steps
