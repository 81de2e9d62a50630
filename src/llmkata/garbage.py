"""The cycle collector, while a process that imports torch starts and when it ends."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Imports without the cycle collector: it would walk the growing heap again and again and find nothing to free, in
    torch's case for 0.3 s. What is there afterwards is set aside, so that no later collection walks it, and neither do
    those at the end of the process (another 0.2 s for memory that the system takes back anyway)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)
