"""Where the gradebook of a run lies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url

from llmkata.gradebook import Gradebook, GradebookError
from llmkata.gradebook.place import VARIABLE, exists, open_gradebook

from ..reports.factory import class_of, mastered


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "report").mkdir()
    return tmp_path / "report"


@pytest.fixture
def url(folder: Path, postgresql: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The variable names an empty place on a PostgreSQL server."""
    made = postgresql()
    monkeypatch.setenv(VARIABLE, made)
    return made


def test_without_the_variable_it_lies_beside_the_records(folder: Path) -> None:
    assert not exists(folder)
    with open_gradebook(folder) as book:
        book.add(mastered("ada"))
    assert exists(folder)
    assert [path.name for path in folder.iterdir()] == ["gradebook.db"]


def test_with_it_nothing_is_written_into_the_folder(folder: Path, url: str) -> None:
    with open_gradebook(folder) as book:
        book.add(mastered("ada"))
    assert exists(folder)
    assert list(folder.iterdir()) == []
    with open_gradebook(folder) as book:
        assert list(book.entries()) == ["ada"]
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    assert "check_result" in inspect(engine).get_table_names()


def test_another_run_does_not_write_over_it(folder: Path, url: str) -> None:
    with open_gradebook(folder) as book:
        book.add(mastered("ada"))
    other = folder.parent / "other"
    other.mkdir()
    with pytest.raises(GradebookError, match=r"is that of .*/report: give .*/other a database"):
        open_gradebook(other)
    with open_gradebook(folder) as book:
        assert list(book.entries()) == ["ada"]


def test_reports_at_the_same_time_leave_the_rows_of_one(folder: Path, url: str) -> None:
    records = class_of(8)
    faults: list[BaseException] = []

    def report() -> None:
        try:
            for _ in range(5):
                with open_gradebook(folder) as book:
                    book.index(records, records)
        except BaseException as error:  # noqa: BLE001 - told by the test
            faults.append(error)

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with open_gradebook(folder) as book, Gradebook.open() as alone:
        alone.index(records, records)
        assert book.entries() == alone.entries()
        assert book.check_rates() == alone.check_rates()


@pytest.mark.parametrize(("given", "said"), [
    ("nonsense", "is no URL of a database"),
    ("oracle9000://host/name", "oracle9000"),
    ("postgresql+asyncnothing://host/name", "asyncnothing"),
    ("postgresql://nobody:secret@127.0.0.1:1/name?connect_timeout=2", "cannot open the gradebook"),
])  # fmt: skip
def test_a_database_that_cannot_be_used_is_told_without_its_password(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(GradebookError, match=said) as caught:
        open_gradebook(folder)
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named_with_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mysql+mysqldb_that_is_not_there://host/name")
    with pytest.raises(GradebookError, match="mysqldb_that_is_not_there"):
        open_gradebook(folder)
    monkeypatch.setenv(VARIABLE, "mysql://host/name")
    with pytest.raises(GradebookError, match="needs the module MySQLdb"):
        open_gradebook(folder)
