"""What the C library does with memory that was freed. Kept, it need not be cleared by the kernel to be used again: that is
a twentieth of what grading 2.1 costs. Given back, what the process holds is what its program holds, and can be read from
outside. Linux with glibc; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Bytes kept at most at the end of the heap, and size from which a block has pages of its own, which go back at once.
_KEPT, _OWN_PAGES = 64 << 20, 8 << 20
_AT_ONCE = 64 << 10


def keep() -> None:
    """Small and middling blocks stay with this process, and with its forks, once they are freed."""
    _set(_KEPT, _OWN_PAGES)


def give_back() -> None:
    """What is free goes back to the system, and so does every block from now on."""
    if (libc := _set(_AT_ONCE, _AT_ONCE)) is not None:
        libc.malloc_trim(0)


def _set(kept: int, own_pages: int) -> Any | None:
    """The C library, where it has been told."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl
        return None
    libc.mallopt(_M_TRIM_THRESHOLD, kept)
    libc.mallopt(_M_MMAP_THRESHOLD, own_pages)
    return libc
