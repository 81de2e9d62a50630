"""One thread everywhere and reproducible Hypothesis, however the suite is started."""

from __future__ import annotations

import os

# Before anything imports torch or NumPy: their thread pools are sized once. Processes the tests start inherit it.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import HealthCheck, settings

settings.register_profile(
    "llmkata", derandomize=True, database=None, deadline=None, print_blob=False,
    # Machines that run the suite are shared: a slow draw is no fault.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("llmkata")
