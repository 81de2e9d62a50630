"""Versions of the gradebook's tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, text

from llmkata.gradebook import Gradebook, GradebookError
from llmkata.gradebook.schema import VERSION, metadata, prepare


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return create_engine(f"sqlite:///{tmp_path / 'book.db'}")


def version_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("select version from schema_version")).scalar_one()


def test_an_empty_database_gets_all_tables(engine: Engine) -> None:
    with engine.begin() as connection:
        prepare(connection)
    assert set(inspect(engine).get_table_names()) == set(metadata.tables)
    assert version_of(engine) == VERSION
    with engine.begin() as connection:
        prepare(connection)
    assert version_of(engine) == VERSION


def test_migrations_run_in_order_and_once(engine: Engine) -> None:
    done: list[int] = []

    def step(number: int):
        def migrate(connection: Connection) -> None:
            done.append(number)
            connection.execute(text(f"alter table record add column extra{number} text"))

        return migrate

    steps = {VERSION: step(VERSION), VERSION + 1: step(VERSION + 1)}
    with engine.begin() as connection:
        prepare(connection)
    for _ in range(2):
        with engine.begin() as connection:
            prepare(connection, VERSION + 2, steps)
    assert done == [VERSION, VERSION + 1]
    assert version_of(engine) == VERSION + 2
    assert {f"extra{VERSION}", f"extra{VERSION + 1}"} <= {
        column["name"] for column in inspect(engine).get_columns("record")
    }


def test_a_missing_step_is_an_error_and_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        prepare(connection)
    with pytest.raises(GradebookError, match="rebuild it from the record files"), engine.begin() as connection:
        prepare(connection, VERSION + 1, {})
    assert version_of(engine) == VERSION


def test_a_newer_gradebook_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        prepare(connection, VERSION + 7)
    with pytest.raises(GradebookError, match=f"schema version {VERSION + 7}"):
        Gradebook.open(str(engine.url))


def test_a_place_that_cannot_be_opened_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(GradebookError, match="nowhere"):
        Gradebook.open(f"sqlite:///{tmp_path / 'nowhere' / 'book.db'}")


def test_a_gradebook_of_the_first_version_is_brought_up_to_date(engine: Engine) -> None:
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(text("alter table record drop column marked_late"))
        connection.execute(text("alter table schema_version drop column run"))
        connection.execute(text("insert into schema_version values (1)"))
        connection.execute(text(
            "insert into record (learner, exercise, standing, points, max_points, core_points, core_max_points, "
            "tasks_done, tasks, submitted_at, graded_at, cause, submission_sha, key, judged, current) "
            "values ('ada', 'module0/sums', 'passed', 1, 1, 1, 1, 1, 1, '', '', '', '', '', 1, 1)"
        ))  # fmt: skip
    with Gradebook.open(str(engine.url)) as book:
        assert book.entries()["ada"]["module0/sums"].marked_late is False
    assert version_of(engine) == VERSION
