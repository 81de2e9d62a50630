"""Exercises as notebooks: written by :mod:`.write`, worked on with the magics of :mod:`.magic` (``%load_ext llmkata``)."""
