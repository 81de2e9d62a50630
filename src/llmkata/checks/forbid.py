"""What an exercise bans, as data that travels to the learner's process."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Forbid:
    """Banned functions that torch dispatches (dotted names), operators (patterns of torch names, ``*`` allowed) and
    modules, or what else is imported or reached by its dotted name (``torch.compile``), each with the sentence that
    teaches. ``allow_in``: given functions of the stub that may use a banned module."""

    functions: dict[str, str] = field(default_factory=dict)
    operators: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    allow_in: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Plain data for the wire."""
        return asdict(self)
