"""Where the gradebook of a run lies: beside its records, or in the database that ``KATA_GRADEBOOK`` names.

The variable and not an option: the URL may hold a password, which is nobody's business in a list of processes or a shell's
history.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from llmkata.places import GRADEBOOK

from .book import Gradebook
from .schema import GradebookError

VARIABLE = "KATA_GRADEBOOK"
#: What people call the database -> the driver that is tested with it.
_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}


def elsewhere() -> str:
    """The URL of the database that the gradebook lies in; empty where it lies beside the records."""
    return os.environ.get(VARIABLE, "").strip()


def exists(folder: Path) -> bool:
    """Whether there may be a gradebook of the run of ``folder``."""
    return bool(elsewhere()) or (folder / GRADEBOOK).is_file()


def open_gradebook(folder: Path) -> Gradebook:
    """The gradebook of the run of ``folder``.

    Raises :class:`GradebookError` where its database cannot be used: a URL that is none, a driver that is not installed,
    a server that does not let us in, the gradebook of another run.
    """
    given = elsewhere()
    if not given:
        return Gradebook.open(f"sqlite:///{folder / GRADEBOOK}")
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise GradebookError(f"{VARIABLE} is no URL of a database, such as postgresql://user@host/name") from error
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    try:
        # The text with the password in it: Gradebook.open does not show it.
        return Gradebook.open(url.render_as_string(hide_password=False), run=folder.resolve().as_posix())
    except NoSuchModuleError as error:
        raise GradebookError(f"{VARIABLE}: {error}") from error
    except ModuleNotFoundError as error:
        raise GradebookError(
            f'{VARIABLE} needs the module {error.name}: pip install "llmkata[postgresql]" brings that of PostgreSQL'
        ) from error
