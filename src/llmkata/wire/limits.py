"""Bounds that hold before anything is allocated for a value from the other side."""

from __future__ import annotations

from dataclasses import dataclass


class WireError(Exception):
    """A frame or value that does not follow the format, or exceeds a limit. The message names which."""


@dataclass(frozen=True)
class Limits:
    """Limits of one message. ``max_elements`` counts array elements of a *view*, so stride 0 cannot inflate it."""

    max_frame: int = 256 << 20
    max_depth: int = 48
    max_items: int = 4_000_000
    max_elements: int = 1 << 27
    max_dims: int = 16
    #: Python refuses to print integers of more than 4,300 digits (1,785 bytes).
    max_int_bytes: int = 1024
    #: Different keys of one dict or set that may share a hash value: many of them make each look-up a search.
    max_collisions: int = 16


#: For what comes from a process that ran learner code.
UNTRUSTED = Limits(max_frame=128 << 20, max_items=2_000_000)
#: For what the grader sends: deeper, so that what a learner's process answered can be handed in again.
TRUSTED = Limits(max_frame=1 << 30, max_depth=64)
