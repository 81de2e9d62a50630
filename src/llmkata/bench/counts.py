"""The books of a replay: what each operator cost, by segment and by the learner's line, and what memory was live."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmkata.bench.prices import Cost

#: Where a cost arose: (line of the submission, 0 where unknown; operator's name without overload).
Spot = tuple[int, str]

_NAMES = ("flops", "matmul_calls", "pointwise", "bytes_moved", "allocated_bytes")


@dataclass
class Counts:
    """What a program or a segment of it took."""

    #: Per spot: FLOPs, matmul calls, elements, bytes moved, bytes allocated.
    spent: dict[Spot, list[int]] = field(default_factory=dict)
    #: Peak of live memory beyond the inputs, and its level when the segment was first entered.
    peak_bytes: int = 0
    entry_bytes: int = 0
    #: When and in which operator the peak was reached.
    peak_at: int = 0
    peak_spot: Spot = (0, "")

    def add(self, spot: Spot, amounts: tuple[int, ...]) -> None:
        """Charges an operator."""
        sums = self.spent.setdefault(spot, [0] * len(_NAMES))
        for place, amount in enumerate(amounts):
            sums[place] += amount

    def see(self, live: int, at: int, spot: Spot) -> None:
        """Notes the level of live memory."""
        if live > self.peak_bytes:
            self.peak_bytes, self.peak_at, self.peak_spot = live, at, spot


@dataclass(slots=True)
class _Lifetime:
    nbytes: int
    spot: Spot
    born: int
    freed: int | None = None


class Ledger:
    """Keeps :class:`Counts` of the whole and of every segment while a program runs."""

    def __init__(self) -> None:
        self.total = Counts()
        self.segments: dict[str, Counts] = {}
        self._open: list[Counts] = [self.total]
        self._live = 0
        self._clock = 0
        self._lifetimes: dict[int, _Lifetime] = {}
        #: Per operator: when it began, the level then, its spot, the open counts.
        self._began: list[tuple[int, int, Spot, tuple[Counts, ...]]] = []

    def begin(self, segment: str) -> None:
        """Opens a segment."""
        self._clock += 1
        counts = self.segments.get(segment)
        if counts is None:
            counts = self.segments[segment] = Counts(entry_bytes=self._live)
        counts.see(self._live, self._clock, (0, ""))
        self._open.append(counts)

    def end(self) -> None:
        """Closes the innermost segment."""
        self._open.pop()

    def start(self, spot: Spot) -> None:
        """An operator begins."""
        self._clock += 1
        self._began.append((self._clock, self._live, spot, tuple(self._open)))

    def finish(self, spot: Spot, cost: Cost, allocated: int) -> None:
        """The operator ended; what it allocated has been :meth:`born`."""
        for counts in self._open:
            counts.add(spot, (*cost, allocated))
            counts.see(self._live, self._clock, spot)

    def born(self, storage: int, nbytes: int, spot: Spot) -> None:
        """A storage that is no input came to be."""
        self._lifetimes[storage] = _Lifetime(nbytes, spot, self._clock)
        self._live += nbytes

    def constant(self, storage: int, nbytes: int, line: int) -> None:
        """A storage of unknown origin is first touched."""
        self._clock += 1
        self.born(storage, nbytes, (line, "constant"))
        for counts in self._open:
            counts.see(self._live, self._clock, (line, "constant"))

    def freed(self, storage: int) -> None:
        """Nothing refers to a storage any more."""
        lifetime = self._lifetimes[storage]
        lifetime.freed = self._clock + 1
        self._live -= lifetime.nbytes

    def add_temporaries(self, highs: list[int]) -> None:
        """Raises the peaks by what operators held inside: ``highs`` has the highest level above its start of each."""
        for (at, live, spot, open_), high in zip(self._began, highs, strict=True):
            for counts in open_:
                counts.see(live + high, at, spot)

    def plain(self, counts: Counts) -> dict[str, Any]:
        """Plain data; spots in order of line and operator, with the bytes that each held at the peak."""
        held: dict[Spot, int] = {}
        for life in self._lifetimes.values():
            if life.born <= counts.peak_at and (life.freed is None or counts.peak_at < life.freed):
                held[life.spot] = held.get(life.spot, 0) + life.nbytes
        inside = counts.peak_bytes - sum(held.values())
        if inside > 0:
            held[counts.peak_spot] = held.get(counts.peak_spot, 0) + inside
        spots = {spot: dict(zip(_NAMES, counts.spent.get(spot, [0] * len(_NAMES)), strict=True))
                 for spot in sorted(counts.spent.keys() | held.keys())}
        return {
            **{name: sum(spent[name] for spent in spots.values()) for name in _NAMES},
            "peak_bytes": counts.peak_bytes, "entry_bytes": counts.entry_bytes,
            "spots": [{"line": line, "op": name, **spent, "peak_bytes": held.get((line, name), 0)}
                      for (line, name), spent in spots.items()],
        }
