"""The check that is running: its link, seed and comparisons. One at a time in a process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkata.outside.link import Link
    from llmkata.records import Measure


@dataclass
class CheckContext:
    """State of the running check that ``same`` and the budgets write to."""

    link: Link | None
    seed: int
    #: Largest error/tolerance of the comparisons that passed.
    headroom: float = 0.0
    compared: int = 0
    measures: list[Measure] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    #: Links to further workers of the submission that this check asked (budgets).
    fresh: list[Link] = field(default_factory=list)

    @property
    def links(self) -> list[Link]:
        """All links to the submission that this check asked, the latest first."""
        return [*reversed(self.fresh), *([self.link] if self.link is not None else [])]


_current = CheckContext(None, 0)


def current() -> CheckContext:
    """The running check (a nameless one outside of checks)."""
    return _current


def enter(context: CheckContext) -> CheckContext:
    """Make ``context`` the running check."""
    global _current
    _current = context
    return context


def seed_for(seed: int, check: str) -> int:
    """The seed of a check: stable over runs, machines and Python's hash randomisation; 63 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{check}".encode(), digest_size=8).digest(), "little") >> 1
