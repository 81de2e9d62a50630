"""The gradebook: an index over record files in a database, for the questions class page and exports ask.

The record files stay the truth: the index can be deleted and rebuilt at any time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
from sqlalchemy import Connection, Engine, Row, and_, case, create_engine, delete, func, insert, not_, select, update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from llmkata.records import NOT_STARTED, ExerciseRecord, Fault, Outcome, latest, rank, read_records

from . import schema
from .answers import BudgetUse, CheckRate, Flag, Misconception, Unjudged
from .counted import VOIDED
from .schema import GradebookError
from .standing import Entry, Standing, Total, entry, total

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise

#: What tells a record of one (learner, exercise) from the others: when it was graded, and the hash of what was handed in.
Identity = tuple[str, str]
#: (learner, exercise id) -> the record that stands.
Standings = Mapping[tuple[str, str], ExerciseRecord]


class Gradebook:
    """An open gradebook; also a context manager. Use :meth:`open`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str = "sqlite://", run: str = "") -> Gradebook:
        """Open (and where needed create or migrate) the gradebook at an SQLAlchemy URL; the default is in memory.

        ``run``: whose gradebook it is, for a database that could hold another's.

        Raises :class:`GradebookError` where its schema is newer than this program, the database does not let us in, or
        it holds the gradebook of another run.
        """
        engine = create_engine(url)
        shown = engine.url.render_as_string()
        try:
            with engine.begin() as connection:
                schema.prepare(connection)
                if run and (holder := schema.claim(connection, run)) != run:
                    raise GradebookError(
                        f"the gradebook {shown} is that of {holder}: give {run} a database or a schema of its own, or "
                        f"drop the tables there (kata report makes them again from the records)"
                    )
        except (OperationalError, IntegrityError, ProgrammingError) as error:
            engine.dispose()
            raise GradebookError(f"cannot open the gradebook {shown}: {str(error.orig).strip()}") from error
        except GradebookError:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------------------------------

    def rebuild(
        self, record_files: Iterable[Path | str], choose: Callable[[list[ExerciseRecord]], Standings] = latest
    ) -> list[Fault]:
        """Forget everything and index these files anew. Returns the lines that were skipped.

        ``choose``: which record of a learner and exercise stands; by default the latest that was judged.
        """
        reading = read_records(record_files)
        self.index(reading.records, choose(reading.records).values())
        return reading.faults

    def index(self, records: Sequence[ExerciseRecord], standing: Iterable[ExerciseRecord]) -> None:
        """Forget everything and index these records, in one transaction. ``standing``: those of them that stand, the very
        objects, one for each learner and exercise.
        """
        current = {id(record) for record in standing}
        with self._engine.begin() as connection:
            schema.take_turn(connection)
            for table in (schema.measure, schema.check, schema.record):
                connection.execute(delete(table))
            _insert(connection, records, current)

    def add(self, record: ExerciseRecord) -> None:
        """Index one record; it becomes the standing one of its learner and exercise unless an older one outranks it."""
        table = schema.record.c
        pair = and_(table.learner == _text(record.learner), table.exercise == _text(record.exercise), table.current)
        with self._engine.begin() as connection:
            schema.take_turn(connection)
            (key,) = _insert(connection, [record], set())
            known = connection.execute(select(table.id, table.judged, table.graded_seconds).where(pair)).first()
            if known is not None:
                seconds = -math.inf if known.graded_seconds is None else known.graded_seconds
                if (known.judged, seconds) > rank(record):
                    return
                connection.execute(update(schema.record).where(table.id == known.id).values(current=False))
            connection.execute(update(schema.record).where(table.id == key).values(current=True))

    # -- reading ------------------------------------------------------------------------------------------------

    def entries(self) -> dict[str, dict[str, Entry]]:
        """What stands: learner -> exercise id -> :class:`Entry`, learners in alphabetical order."""
        table = schema.record.c
        columns = [table[name] for name in Entry.__struct_fields__]
        book: dict[str, dict[str, Entry]] = {}
        with self._rows(select(*columns).where(table.current).order_by(table.learner, table.exercise)) as rows:
            for row in rows:
                known = row._asdict()
                known["standing"] = Standing(known["standing"])
                book.setdefault(row.learner, {})[row.exercise] = Entry(**known)
        return dict(sorted(book.items(), key=lambda item: (item[0].casefold(), item[0])))

    def identities(self) -> dict[tuple[str, str], Identity]:
        """Which record stands: (learner, exercise id) -> its identity."""
        table = schema.record.c
        columns = [table[name] for name in ("learner", "exercise", "graded_at", "submission_sha")]
        with self._rows(select(*columns).where(table.current)) as rows:
            return {(row.learner, row.exercise): (row.graded_at, row.submission_sha) for row in rows}

    def totals(self, course: Course, exercises: Sequence[Exercise] | None = None) -> dict[str, Total]:
        """The total of each learner over ``exercises``; by default all of the course but planned ones."""
        return {learner: total(course, entries, exercises) for learner, entries in self.entries().items()}

    def check_rates(self) -> list[CheckRate]:
        """Every check that some submission was held against, hardest first (lowest pass rate, then most failures). Tasks
        that are still as they were given out count as neither.
        """
        table = schema.check.c
        untouched = and_(table.outcome == Outcome.failed.value, table.cause.startswith(NOT_STARTED, autoescape=True))
        tally = {
            outcome: func.sum(case((and_(table.outcome == outcome.value, not_(untouched)), 1), else_=0))
            for outcome in Outcome
        }
        query = (
            _standing(
                schema.record.c.exercise, table.check_id, func.min(table.title).label("title"),
                func.min(table.task).label("task"), func.min(table.tier).label("tier"),
                tally[Outcome.passed].label("passed"), tally[Outcome.failed].label("failed"),
                tally[Outcome.not_judged].label("not_judged"),
                func.sum(case((untouched, 1), else_=0)).label("not_started"), func.max(table.max_points).label("max_points"),
                of=schema.check,
            ).group_by(schema.record.c.exercise, table.check_id)
        )
        with self._rows(query) as rows:
            rates = [CheckRate(**row._asdict()) for row in rows]
        return sorted(rates, key=lambda r: (2.0 if r.rate is None else r.rate, -r.failed, r.exercise, r.check_id))

    def misconceptions(self) -> list[Misconception]:
        """Every named mistake somebody made, the most frequent first; a learner counts once per mistake."""
        table = schema.check.c
        query = _standing(
            schema.record.c.exercise, schema.record.c.learner, table.misconception, table.feedback, of=schema.check
        ).where(table.misconception != "").order_by(schema.record.c.learner, table.id)
        found: dict[tuple[str, str], Misconception] = {}
        with self._rows(query) as rows:
            for exercise, learner, name, feedback in rows:
                known = found.setdefault((exercise, name), Misconception(exercise, name, feedback, []))
                if learner not in known.learners:
                    known.learners.append(learner)
        return sorted(found.values(), key=lambda m: (-len(m.learners), m.exercise, m.name))

    def budgets(self) -> list[BudgetUse]:
        """Every budget with the values measured over the class, in order of exercise, check and name."""
        table = schema.measure.c
        identity = (schema.record.c.exercise, table.check_id, table.name, table.unit, table.trust,
                    table.at_most, table.at_least, table.reference)
        query = _standing(*identity, schema.record.c.learner, table.value, table.ok, of=schema.measure)
        found: dict[tuple[Any, ...], BudgetUse] = {}
        with self._rows(query.order_by(*identity[:3], schema.record.c.learner)) as rows:
            for *key, learner, value, ok in rows:
                found.setdefault(tuple(key), BudgetUse(*key, [])).values.append((learner, value, ok))
        return list(found.values())

    def unjudged(self) -> list[Unjudged]:
        """Faults of the grader and checks it could not judge, apart from every grade; no check that was voided.

        The last fault of a learner and exercise is listed until a later record of theirs was judged.
        """
        fault, stands = schema.record.alias(), schema.record.alias()
        query = select(fault.c.learner, fault.c.exercise, fault.c.cause).join_from(fault, stands, and_(
            stands.c.learner == fault.c.learner, stands.c.exercise == fault.c.exercise, stands.c.current,
        )).where(~fault.c.judged, fault.c.id >= stands.c.id).order_by(fault.c.learner, fault.c.exercise, fault.c.id)
        with self._rows(query) as rows:
            last = {(row.learner, row.exercise): Unjudged(row.learner, row.exercise, "", row.cause) for row in rows}
        faults = list(last.values())
        table = schema.check.c
        query = _standing(
            schema.record.c.learner, schema.record.c.exercise, table.check_id, table.cause, of=schema.check
        ).where(table.outcome == Outcome.not_judged.value, not_(table.cause.startswith(VOIDED)))
        with self._rows(query.order_by(schema.record.c.learner, schema.record.c.exercise, table.id)) as rows:
            faults += [Unjudged(*row) for row in rows]
        return faults

    def flags(self) -> list[Flag]:
        """Checks with a flag for staff."""
        table = schema.check.c
        query = _standing(
            schema.record.c.learner, schema.record.c.exercise, table.check_id, table.flags, table.staff_output,
            of=schema.check,
        ).where(table.flags != "[]")
        with self._rows(query.order_by(schema.record.c.learner, schema.record.c.exercise, table.id)) as rows:
            return [Flag(learner, exercise, check_id, json.loads(flags), output)
                    for learner, exercise, check_id, flags, output in rows]

    @contextmanager
    def _rows(self, query: Any) -> Iterator[Iterable[Row[Any]]]:
        with self._engine.connect() as connection:
            yield connection.execute(query)


def _standing(*columns: Any, of: Any) -> Any:
    """A query over the rows of a detail table whose record stands."""
    return select(*columns).join_from(of, schema.record, of.c.record_id == schema.record.c.id).where(
        schema.record.c.current
    )


def _insert(connection: Connection, records: Sequence[ExerciseRecord], current: set[int]) -> list[int]:
    """Insert records and their details; ``current`` holds the ``id()`` of those that stand. Returns the row ids."""
    if not records:
        return []
    keys = list(connection.execute(
        insert(schema.record).returning(schema.record.c.id, sort_by_parameter_order=True),
        [_storable(_record_row(record, id(record) in current)) for record in records],
    ).scalars())
    for table, rows_of in ((schema.check, _check_rows), (schema.measure, _measure_rows)):
        rows = [{"record_id": key} | row for key, record in zip(keys, records, strict=True) for row in rows_of(record)]
        if rows:
            connection.execute(insert(table), [_storable(row) for row in rows])
    return keys


def _text(text: str) -> str:
    """A text that a database takes: no NUL, and lone surrogates written out as the record file does."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _text(value) if isinstance(value, str) else value for name, value in row.items()}


def _record_row(record: ExerciseRecord, current: bool) -> dict[str, Any]:
    judged, seconds = rank(record)
    return msgspec.structs.asdict(entry(record)) | {
        "standing": entry(record).standing.value, "submission_sha": record.submission_sha, "key": record.key,
        "judged": judged, "graded_seconds": seconds if math.isfinite(seconds) else None, "current": current,
    }


def _check_rows(record: ExerciseRecord) -> Iterator[dict[str, Any]]:
    for c in record.checks:
        yield {
            "check_id": c.id, "title": c.title, "task": c.task, "tier": c.tier, "kind": c.kind,
            "visibility": c.visibility, "outcome": c.outcome.value, "points": c.points, "max_points": c.max_points,
            "cause": c.cause, "misconception": c.diagnosis.name if c.diagnosis else "",
            "feedback": c.diagnosis.feedback if c.diagnosis else "", "flags": json.dumps(c.flags),
            "staff_output": c.staff_output,
        }


def _measure_rows(record: ExerciseRecord) -> Iterator[dict[str, Any]]:
    for c in record.checks:
        for m in c.measures:
            yield {
                "check_id": c.id, "name": m.name, "value": m.value, "unit": m.unit, "at_most": m.at_most,
                "at_least": m.at_least, "reference": m.reference, "trust": m.trust.value, "ok": m.ok,
            }
