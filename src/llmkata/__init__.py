"""llmkata: a test-driven, auto-graded course on large language models, and the framework that grades it."""

__version__ = "0.1.0"


def load_ipython_extension(shell: object) -> None:
    """``%load_ext llmkata``: the magics ``%kata check`` and ``%kata hint``, see ``notebook/magic.py``."""
    from llmkata.notebook.magic import load

    load(shell)
