"""A cluster on this machine, to try one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import LocalCluster


@contextmanager
def local_cluster(workers: int, *, threads: int = 1) -> Iterator[LocalCluster]:
    """A scheduler that only this machine can reach, and so many worker processes; all end with the block.

    Ctrl-C is for this process alone: workers that it would reach, too, end in the middle of something.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by what is started now
    try:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            # What takes memory are the helpers, which Dask does not see.
            memory_limit=0,
            silence_logs=50,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield cluster
    finally:
        cluster.close(timeout=20)
