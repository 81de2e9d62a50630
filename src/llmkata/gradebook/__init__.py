"""The gradebook: what every learner reached, as an index rebuilt from record files.

:mod:`.standing` says what a record comes to, :mod:`.attempts` which of several counts, both without a database; :mod:`.book` is the database.
"""

from .attempts import counting
from .standing import MARKED_LATE, Entry, Standing, Total, entry, grade, standing, task_done, total

__all__ = [
    "MARKED_LATE", "Entry", "Gradebook", "GradebookError", "Standing", "Total", "counting", "entry", "grade", "standing",
    "task_done", "total",
]


def __getattr__(name: str) -> object:
    # The board needs standings on every start; SQLAlchemy costs it 0.2 s, and only reports ask the database.
    if name in ("Gradebook", "GradebookError"):
        from . import book

        return getattr(book, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
