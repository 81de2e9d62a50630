"""Grading on a cluster: Dask ``distributed`` carries submissions to workers, each of which grades as ``kata grade`` does.

``client`` runs in the command, ``service`` in Dask's workers (``distributed`` is imported in these two and ``local``),
``helper`` in a process of its own beside each worker: it holds torch, the graders and the templates, and forks.
"""
