"""The total of a learner: the weighted mean of what counts, the lowest dropped, extra credit on top."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Part(msgspec.Struct, frozen=True):
    """What one exercise gives to a total."""

    #: The share that counts (:attr:`.share.Grade.counted`); None: not judged.
    share: float | None
    #: Above 0.
    weight: float = 1.0
    #: Whether it comes on top.
    extra: bool = False


class Sum(msgspec.Struct, frozen=True):
    """What parts come to."""

    #: 100 for all points; None where nothing was judged that does not come on top.
    percent: float | None
    #: What ``percent`` was divided by.
    weight: float
    #: Sum of the weights of parts that were not judged, those on top aside.
    pending: float
    #: Places (in the sequence) of the parts left out.
    dropped: tuple[int, ...]


def combine(parts: Sequence[Part], drop: int = 0, cap: float | None = None) -> Sum:
    """The total of ``parts``, without the ``drop`` of them that cost it most; at least one part stays.

    Which those are hangs on the weights: not always the lowest shares. Parts that come on top are never dropped. ``cap``:
    percent that the total does not exceed.
    """
    judged = [place for place, part in enumerate(parts) if part.share is not None and not part.extra]
    pending = sum(part.weight for part in parts if part.share is None and not part.extra)
    if not judged:
        return Sum(None, 0.0, pending, ())
    bonus = sum(part.weight * part.share for part in parts if part.extra and part.share is not None)
    kept = _best(parts, judged, max(1, len(judged) - drop), bonus)
    weight = sum(parts[place].weight for place in kept)
    percent = 100 * _mean(parts, kept, bonus)
    dropped = tuple(place for place in judged if place not in kept)
    return Sum(percent if cap is None else min(percent, cap), weight, pending, dropped)


def _mean(parts: Sequence[Part], places: Sequence[int], bonus: float) -> float:
    # Multiplied and summed in one order, so that a class that reached the same has the same total to the last bit.
    earned = sum(parts[place].weight * (parts[place].share or 0.0) for place in places)
    return (earned + bonus) / sum(parts[place].weight for place in places)


def _best(parts: Sequence[Part], places: list[int], keep: int, bonus: float) -> list[int]:
    """The ``keep`` places whose mean is the greatest. Of a guess q, those that lift the sum of weight * (share - q) most
    have a mean of at least q, which is the next guess (Dinkelbach, 1967; Kane and Kane, 2006, on dropped grades).
    """
    chosen = places if keep == len(places) else sorted(places, key=lambda p: -(parts[p].share or 0.0))[:keep]
    chosen = sorted(chosen)
    while True:
        guess = _mean(parts, chosen, bonus)

        def lift(place: int, guess: float = guess) -> float:
            return parts[place].weight * ((parts[place].share or 0.0) - guess)

        better = sorted(sorted(places, key=lift, reverse=True)[:keep])
        if better == chosen or _mean(parts, better, bonus) <= guess:
            return chosen
        chosen = better
