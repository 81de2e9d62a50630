"""How long a worker takes to enter the sandbox: ``python benchmarks/sandbox_entry.py [ROUNDS]``.

A round forks one worker with all layers and one with none from the same warm template, in alternating order, and times
each from the request to its first word. Entry is the difference of the two: the fork of a process that holds torch is
paid by both. Medians and 90th percentiles in milliseconds: by the wall clock, which needs a machine with nothing else
to do, and of processor time, which does not.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from llmkata.inside.sandbox import LAYERS
from llmkata.outside.process import close_templates, start_process

#: close_range stays: a worker that keeps the template's descriptors is none.
NONE = {"isolation": "sandbox", "disable": [name for name in LAYERS if name != "close_range"]}
ALL = {"isolation": "sandbox"}


def timed(policy: dict) -> tuple[float, float, list[str]]:
    """-> (milliseconds until the worker said hello, those of processor time, the layers that stand)."""
    began = time.perf_counter()
    process = start_process("base", policy)
    took = (time.perf_counter() - began) * 1e3
    # With a pid namespace there are two processes: the one that was forked, and its child for the learner's code.
    spent = sum(time.clock_gettime(~pid << 3 | 2) for pid in {process.pid, process.inner_pid})
    process.kill()
    return took, spent * 1e3, process.layers


def main(rounds: int = 100) -> None:
    """Print the figures."""
    layers = timed(ALL)[2]
    full, bare = [], []
    for i in range(rounds):
        for policy, times in ((ALL, full), (NONE, bare)) if i % 2 else ((NONE, bare), (ALL, full)):
            times.append(timed(policy)[:2])
    print(f"{rounds} rounds, {len(layers)} layers: {', '.join(layers)}; load {os.getloadavg()[0]:.1f}")
    entry = [(f[0] - b[0], f[1] - b[1]) for f, b in zip(full, bare, strict=True)]
    for clock, name in enumerate(("wall clock", "processor time")):
        for what, times in (("worker with all layers", full), ("worker without", bare), ("entry (difference)", entry)):
            of_clock = [t[clock] for t in times]
            p90 = statistics.quantiles(of_clock, n=10)[-1]
            print(f"{name:15s} {what:23s} median {statistics.median(of_clock):7.2f} ms   p90 {p90:7.2f} ms")
    close_templates()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
