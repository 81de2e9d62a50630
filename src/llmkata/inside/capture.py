"""What the learner prints: kept apart from the channel, capped, with a mark where it was cut."""

from __future__ import annotations

import io


class Capture(io.TextIOBase):
    """A text stream that keeps the first ``cap`` characters and counts the rest."""

    def __init__(self, cap: int = 10_000) -> None:
        self.cap = cap
        self._parts: list[str] = []
        self._kept = self._dropped = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Keep what still fits."""
        text = str(text)
        room = self.cap - self._kept
        if room > 0:
            self._parts.append(text[:room])
            self._kept += min(len(text), room)
        self._dropped += max(0, len(text) - max(room, 0))
        return len(text)

    def take(self) -> str:
        """What was written since the last call."""
        out = "".join(self._parts)
        if self._dropped:
            out += f"\n[... {self._dropped} more characters were printed and are not kept]"
        self._parts, self._kept, self._dropped = [], 0, 0
        return out
