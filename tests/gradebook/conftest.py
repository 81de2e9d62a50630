"""A PostgreSQL server of the tests' own, where one can be had."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a server that has nothing else to do; skips where none is installed for this Python."""
    pgserver = pytest.importorskip("pgserver", reason="no PostgreSQL server is installed for this Python")
    # Not below pytest's folder: root's server runs as another user, who may not enter that, and a socket's path has room
    # for 100 characters.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        with pgserver.get_server(folder) as running:
            yield running.get_uri()


@pytest.fixture(scope="session")
def postgresql(server: str) -> Callable[[], str]:
    """Makes URLs, each of an empty place on the server."""
    numbers = count()
    engine = create_engine(make_url(server).set(drivername="postgresql+psycopg"))

    def new() -> str:
        name = f"run{next(numbers)}"
        with engine.begin() as connection:
            connection.execute(text(f"create schema {name}"))
        return f"{server}&options={quote(f'-csearch_path={name}')}"

    return new
