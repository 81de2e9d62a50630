"""One thread for each process that grades."""

from __future__ import annotations

import os


def one_thread() -> None:
    """Have BLAS and OpenMP use one thread, where they are not loaded yet: a pool of threads does not survive a fork, small
    products gain nothing from one, and gradings side by side would fight for the processors."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
