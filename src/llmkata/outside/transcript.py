"""What was asked and answered during a check: enough to ask a wrong implementation the very same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmkata.wire import Kind

#: Bytes of requests and answers kept; beyond it nothing more is kept and the check cannot be diagnosed by replay.
_CAP = 64 << 20


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as bytes."""

    request: bytes
    kind: Kind
    answer: bytes


@dataclass(slots=True)
class Call:
    """A call of learner code, for the evidence."""

    what: str
    args: tuple
    kwargs: dict[str, Any]


class Transcript:
    """Exchanges of the running check. With Hypothesis: those before the first example and those of the last one."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self._example_start: int | None = None
        self._bytes = 0
        self.complete = True
        #: The last call of learner code that was asked for, answered or not.
        self.last_call: Call | None = None

    def add(self, exchange: Exchange) -> None:
        """Keep one exchange."""
        self._bytes += len(exchange.request) + len(exchange.answer)
        if self._bytes > _CAP:
            self.complete = False
            return
        self.exchanges.append(exchange)

    def begin_example(self) -> None:
        """A new example starts: forget the one before."""
        if self._example_start is None:
            self._example_start = len(self.exchanges)
        del self.exchanges[self._example_start:]
        self._bytes = sum(len(e.request) + len(e.answer) for e in self.exchanges)
        self.complete = True
