"""The loop of ``kata watch``: judge on save, show the first failing check, answer single keys."""
