"""Tables of the gradebook and how an older one is brought up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)

#: Raised by one with every change of a table; the step from the version before goes into ``MIGRATIONS``.
VERSION = 3

Migration = Callable[[Connection], None]


def _late_marks(connection: Connection) -> None:
    # Nobody was marked late before; the next rebuild reads the marks from the records.
    connection.execute(text("ALTER TABLE record ADD COLUMN marked_late BOOLEAN NOT NULL DEFAULT FALSE"))


def _whose(connection: Connection) -> None:
    # Nobody's until a run claims it.
    connection.execute(text("ALTER TABLE schema_version ADD COLUMN run TEXT NOT NULL DEFAULT ''"))


#: ``MIGRATIONS[n]`` brings tables of version n to version n + 1.
MIGRATIONS: Mapping[int, Migration] = {1: _late_marks, 2: _whose}
#: Locked while a database of many users gets its tables: two that create them at once are one too many.
_TABLES_LOCK = 0x6B617461


class GradebookError(RuntimeError):
    """A gradebook this version of llmkata cannot use; the message says what to do."""


metadata = MetaData()

schema_version = Table(
    "schema_version", metadata,
    Column("version", Integer, nullable=False),
    # Whose gradebook it is; empty where the database lies in the folder of its run.
    Column("run", Text, nullable=False),
)

record = Table(
    "record", metadata,
    Column("id", Integer, primary_key=True),
    Column("learner", Text, nullable=False),
    Column("exercise", Text, nullable=False),
    Column("standing", String(32), nullable=False),
    Column("points", Float, nullable=False),
    Column("max_points", Float, nullable=False),
    Column("core_points", Float, nullable=False),
    Column("core_max_points", Float, nullable=False),
    Column("tasks_done", Integer, nullable=False),
    Column("tasks", Integer, nullable=False),
    Column("submitted_at", Text, nullable=False),
    Column("graded_at", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("marked_late", Boolean, nullable=False),
    Column("submission_sha", Text, nullable=False),
    Column("key", Text, nullable=False),
    # The two parts of records.rank: which record of a (learner, exercise) stands. No stamp: null.
    Column("judged", Boolean, nullable=False),
    Column("graded_seconds", Float),
    Column("current", Boolean, nullable=False),
    Index("record_current", "current", "learner", "exercise"),
    Index("record_pair", "learner", "exercise"),
)

check = Table(
    "check_result", metadata,
    Column("id", Integer, primary_key=True),
    Column("record_id", ForeignKey("record.id"), nullable=False, index=True),
    Column("check_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("task", Integer, nullable=False),
    Column("tier", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("visibility", String(16), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("points", Float, nullable=False),
    Column("max_points", Float, nullable=False),
    Column("cause", Text, nullable=False),
    Column("misconception", Text, nullable=False),
    Column("feedback", Text, nullable=False),
    Column("flags", Text, nullable=False),
    Column("staff_output", Text, nullable=False),
)

measure = Table(
    "measure", metadata,
    Column("id", Integer, primary_key=True),
    Column("record_id", ForeignKey("record.id"), nullable=False, index=True),
    Column("check_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Float, nullable=False),
    Column("unit", Text, nullable=False),
    Column("at_most", Float),
    Column("at_least", Float),
    Column("reference", Float),
    Column("trust", String(16), nullable=False),
    Column("ok", Boolean, nullable=False),
)


def prepare(connection: Connection, version: int = VERSION, migrations: Mapping[int, Migration] = MIGRATIONS) -> None:
    """Create the tables of an empty database, or bring those of an older version up to ``version``.

    Raises :class:`GradebookError` where the tables are newer than this program or a step is missing.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_TABLES_LOCK)))
    if not inspect(connection).has_table(schema_version.name):
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=version, run=""))
        return
    found = connection.execute(select(schema_version.c.version)).scalar_one()
    if found > version:
        raise GradebookError(
            f"gradebook has schema version {found}, this llmkata knows up to {version}: update llmkata, "
            f"or delete the gradebook and rebuild it from the record files"
        )
    for step in range(found, version):
        if step not in migrations:
            raise GradebookError(f"no way from gradebook schema {step} to {step + 1}: rebuild it from the record files")
        migrations[step](connection)
        connection.execute(update(schema_version).values(version=step + 1))


def claim(connection: Connection, run: str) -> str:
    """Make the gradebook that of ``run`` where it is nobody's yet. Returns whose it is."""
    connection.execute(update(schema_version).where(schema_version.c.run == "").values(run=run))
    return connection.execute(select(schema_version.c.run)).scalar_one()


def take_turn(connection: Connection) -> None:
    """Wait until nobody else writes, and keep others from it until the transaction ends.

    One that indexes everything anew while another does would leave both their rows; with SQLite a transaction that reads
    before it writes can lose its turn for good.
    """
    connection.execute(update(schema_version).values(version=schema_version.c.version))
