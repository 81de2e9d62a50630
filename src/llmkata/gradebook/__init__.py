"""The gradebook: what every learner reached, as an index rebuilt from record files.

:mod:`.standing` says what a record comes to and needs no database; :mod:`.book` is the database.
"""

from .standing import Entry, Standing, Total, entry, standing, task_done, total

__all__ = ["Entry", "Gradebook", "GradebookError", "Standing", "Total", "entry", "standing", "task_done", "total"]


def __getattr__(name: str) -> object:
    # The board needs standings on every start; SQLAlchemy costs it 0.2 s, and only reports ask the database.
    if name in ("Gradebook", "GradebookError"):
        from . import book

        return getattr(book, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
