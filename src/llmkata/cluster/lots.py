"""How submissions are dealt out: lots of some seconds, small ones towards the end, alone after something went wrong."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from llmkata.grading.submission import Submission

#: The first lots of an exercise are so many times what a worker grades at once: what it takes is not known yet.
_FIRST = 4
#: Seconds of a lot after them, at most and at least. A lost worker costs the one. The other is paid back: for each lot
#: checks are collected and forks made.
_MOST, _LEAST = 10.0, 1.0
#: A submission that was lost alone so many times is not tried again.
TRIES = 2


class Work(msgspec.Struct, array_like=True):
    """A lot as it travels: who handed in is nobody's business there."""

    seed: int | None
    #: Exercise and source of each.
    submissions: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Lot:
    """Numbers of submissions, all of one exercise."""

    numbers: tuple[int, ...]
    #: When it was dealt out, on the monotonic clock.
    since: float


class Lots:
    """Deals out ``submissions``, each until it is graded or has been lost too often."""

    def __init__(self, submissions: Sequence[Submission]) -> None:
        self._exercises = [s.exercise_id for s in submissions]
        places = {name: place for place, name in enumerate(dict.fromkeys(self._exercises))}
        # Of one exercise after the other: a worker imports the graders of each once, and not all at the beginning.
        self._fresh = deque(sorted(range(len(submissions)), key=lambda n: places[self._exercises[n]]))
        #: Seconds of a submission of an exercise, as the lot took that was graded last.
        self._pace: dict[str, float] = {}
        self._alone: deque[int] = deque()
        self._lost: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._fresh or self._alone)

    def deal(self, workers: int, at_once: int) -> Lot:
        """The next lot for one of so many workers, each of which grades ``at_once`` at a time."""
        if not self._fresh:
            return Lot((self._alone.popleft(),), time.monotonic())
        exercise = self._exercises[self._fresh[0]]
        size = self._size(exercise, workers, at_once)
        numbers = []
        while self._fresh and len(numbers) < size and self._exercises[self._fresh[0]] == exercise:
            numbers.append(self._fresh.popleft())
        return Lot(tuple(numbers), time.monotonic())

    def _size(self, exercise: str, workers: int, at_once: int) -> int:
        # Half of what would be each one's share: who is slow or late holds the others up by little.
        left = len(self._fresh)
        share, least, most = left // (2 * workers), at_once, _FIRST * at_once
        if pace := self._pace.get(exercise):
            most = max(at_once, int(_MOST / pace))
            least = max(at_once, min(int(_LEAST / pace), left // workers))
        return min(max(share, least), most)

    def graded(self, lot: Lot) -> None:
        """A lot is back: how long it took tells how large the next ones may be."""
        self._pace[self._exercises[lot.numbers[0]]] = (time.monotonic() - lot.since) / len(lot.numbers)

    def lost(self, lot: Lot) -> list[int]:
        """Take back a lot that was not graded: each of it is tried again by itself, so that the one at fault is found.
        Returns those given up.
        """
        if len(lot.numbers) > 1:
            self._alone.extend(lot.numbers)
            return []
        number = lot.numbers[0]
        self._lost[number] += 1
        if self._lost[number] >= TRIES:
            return [number]
        self._alone.append(number)
        return []
