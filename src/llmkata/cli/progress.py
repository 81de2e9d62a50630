"""Progress of a run: how many, rate, time left; one moving line on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Self

#: Seconds between two lines where nothing can move.
_QUIET_SECONDS = 10.0
#: How many must be done, of so many a share, before the time left is more than a guess.
_KNOWN, _KNOWN_SHARE = 5, 0.05


class Progress:
    """A callable to be called with each thing that is ready; a context manager that clears its line.

    Args:
        what: what is counted, as ``submissions graded``.
        total: how many are expected, None where that is not known.
        stream: where to write; default standard error, so that a command's output stays its own.
    """

    def __init__(self, what: str, total: int | None = None, stream=None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.stream = stream or sys.stderr
        self.moving = self.stream.isatty()
        self.began = self.said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __call__(self, *_: object) -> None:
        self.done += 1
        now = time.monotonic()
        if self.moving:
            self.stream.write(f"\r\x1b[K{self.line(now)}")
        elif now - self.said >= _QUIET_SECONDS:
            self.said = now
            self.stream.write(self.line(now) + "\n")
        self.stream.flush()

    def line(self, now: float) -> str:
        """``12 of 42 submissions graded, 3.1 a second, 10 s left``; the first few tell nothing of the others."""
        if self.total is None:
            return f"{self.done} {self.what}"
        if self.done < min(max(_KNOWN, _KNOWN_SHARE * self.total), self.total):
            return f"{self.done} of {self.total} {self.what}"
        rate = self.done / max(now - self.began, 1e-9)
        left = max(self.total - self.done, 0) / rate if rate else 0.0
        pace = f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.0f} a minute"
        return f"{self.done} of {self.total} {self.what}, {pace}, {_span(left)} left"

    def __exit__(self, *_: object) -> None:
        if self.moving:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
