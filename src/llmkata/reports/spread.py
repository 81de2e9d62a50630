"""Work on many learners, spread over the cores: a large class has as many pages to write as learners."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import TypeVar

from llmkata.forks import CAN_FORK

T = TypeVar("T")

#: Learners from which forks pay.
MANY = 48
#: What each fork is given at a time.
_PART = 16

#: In a fork: what is done for a learner.
_work: Callable[[str], object] | None = None


def spread(work: Callable[[str], T], learners: Sequence[str]) -> list[T]:
    """``work`` of each learner, in their order. It runs in forks where there are many learners and several cores: what it
    returns must be picklable, and what it changes in memory is lost. Raises what ``work`` raises."""
    cores = len(os.sched_getaffinity(0)) if CAN_FORK and hasattr(os, "sched_getaffinity") else 1
    if cores == 1 or len(learners) < MANY:
        return [work(learner) for learner in learners]
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    forks = min(cores, -(-len(learners) // _PART))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(forks, mp_context=context, initializer=_begin, initargs=(work,)) as pool:
        return list(pool.map(_of, learners, chunksize=_PART))


def _begin(work: Callable[[str], object]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits is the one that is interrupted


def _of(learner: str) -> object:
    return _work(learner)
