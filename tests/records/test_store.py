"""The record file: nothing is lost to a crash, a full disk or a second run, and what is not a record is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from llmkata.records import (
    CheckRecord,
    ExerciseRecord,
    Measure,
    Outcome,
    RecordError,
    RecordFile,
    State,
    latest,
    read_records,
    store,
)

from ..reports import factory


def record(
    learner: str = "ada", exercise: str = "module2/self_attention", state: State = State.graded, **fields
) -> ExerciseRecord:
    return ExerciseRecord(learner=learner, exercise=exercise, state=state, **fields)


@pytest.fixture
def file(tmp_path: Path) -> RecordFile:
    return RecordFile(tmp_path / "run" / "records.jsonl")


def test_what_was_appended_is_read_back_in_order(file: RecordFile) -> None:
    written = [*factory.showcase(), factory.hostile("\x1b[31m<b>"), record(state=State.missing, cause="a\nb\u2028c")]
    file.append(written[0])
    file.append(*written[1:])
    reading = file.read()
    assert reading.records == written
    assert reading.faults == []
    assert file.path.read_bytes().count(b"\n") == len(written)


def test_a_file_that_is_not_there_holds_nothing_but_cannot_be_listed(file: RecordFile) -> None:
    assert file.read().records == []
    with pytest.raises(FileNotFoundError):
        read_records([file.path])


def test_a_torn_last_line_is_reported_and_skipped_wherever_it_was_cut(file: RecordFile) -> None:
    first, second = record("ada"), record("bob")
    file.append(first, second)
    whole = file.path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        file.path.write_bytes(whole[:end])
        reading = file.read()
        assert reading.records == [first]
        assert [(fault.line, fault.torn) for fault in reading.faults] == [(2, True)]
        assert "torn" in str(reading.faults[0])


def test_a_last_line_that_lost_only_its_newline_is_complete(file: RecordFile) -> None:
    file.append(record("ada"), record("bob"))
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert [r.learner for r in file.read().records] == ["ada", "bob"]
    file.append(record("cyd"))
    reading = file.read()
    assert [r.learner for r in reading.records] == ["ada", "bob", "cyd"]
    assert reading.faults == []


def test_appending_after_a_torn_line_loses_only_the_torn_line(file: RecordFile) -> None:
    file.append(record("ada"), record("bob"))
    file.path.write_bytes(file.path.read_bytes()[:-9])
    file.append(record("cyd"))
    reading = file.read()
    assert [r.learner for r in reading.records] == ["ada", "cyd"]
    assert [fault.line for fault in reading.faults] == [2]


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[1]", b"\xff\xfe", b'{"learner": 3}', b"not json", b'{"learner":"a","exercise":"b","state":"won"}'],
)
def test_a_line_that_is_not_a_record_is_named_and_the_rest_is_read(file: RecordFile, line: bytes) -> None:
    file.append(record("ada"))
    with file.path.open("ab") as raw:
        raw.write(line + b"\n\n")
    file.append(record("bob"))
    reading = file.read()
    assert [r.learner for r in reading.records] == ["ada", "bob"]
    assert [(fault.line, fault.torn) for fault in reading.faults] == [(2, False)]
    assert str(reading.faults[0]).startswith(f"{file.path}:2: not a record")


def test_an_endless_line_is_skipped_without_being_read_whole(file: RecordFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_LINE_BYTES", 1000)
    file.append(record("ada"))
    with file.path.open("ab") as raw:
        raw.write(b"x" * 5000 + b"\n")
    file.append(record("bob"))
    reading = file.read()
    assert [r.learner for r in reading.records] == ["ada", "bob"]
    assert [(fault.line, "longer" in fault.reason) for fault in reading.faults] == [(2, True)]


def test_a_disk_that_refuses_leaves_the_file_as_it_was(file: RecordFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append(record("ada"))
    before = file.path.read_bytes()
    write, calls = os.write, []

    def full(fd: int, data: bytes) -> int:
        if calls:
            raise OSError(28, "No space left on device")
        calls.append(1)
        return write(fd, bytes(data)[:20])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.append(record("bob"))
    assert calls == [1]
    assert file.path.read_bytes() == before


def test_short_writes_are_completed(file: RecordFile, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:7]))
    file.append(record("ada"), record("bob"))
    monkeypatch.undo()
    assert [r.learner for r in file.read().records] == ["ada", "bob"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_that_could_not_be_read_back_is_refused(file: RecordFile, value: float) -> None:
    def with_measure(number: float) -> ExerciseRecord:
        return record(
            checks=[
                CheckRecord(
                    id="t.py::test_x",
                    title="t",
                    task=1,
                    tier="core",
                    max_points=1,
                    points=0,
                    outcome=Outcome.failed,
                    cause="c",
                    measures=[Measure("m", number, "FLOP")],
                )
            ]
        )

    with pytest.raises(RecordError, match="cannot be read back"):
        file.append(record("bob"), with_measure(value))
    assert not file.path.exists()
    file.append(with_measure(1.0))


def test_names_that_are_not_utf8_are_kept_apart(file: RecordFile) -> None:
    file.append(record("a\udcff"), record("a\udcfe"))
    names = [r.learner for r in file.read().records]
    assert len(set(names)) == 2
    assert all(name.isprintable() for name in names)


APPEND_MANY = """
import sys
from llmkata.records import ExerciseRecord, RecordFile, State
file = RecordFile(sys.argv[1])
for i in range(25):
    file.append(ExerciseRecord(sys.argv[2], f"module0/e{i}", State.missing, cause="x" * (i * 700)))
"""


def test_several_processes_append_at_once(file: RecordFile) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", APPEND_MANY, str(file.path), f"w{n}"]) for n in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    reading = file.read()
    assert reading.faults == []
    for n in range(3):
        assert [r.exercise for r in reading.records if r.learner == f"w{n}"] == [f"module0/e{i}" for i in range(25)]


def test_a_lock_that_is_not_given_back_is_an_error_that_says_so(file: RecordFile) -> None:
    impatient = RecordFile(file.path, lock_seconds=0.05)
    with FileLock(f"{file.path}.lock"), pytest.raises(RecordError, match="locked by another run"):
        impatient.append(record())
    impatient.append(record())
    assert len(file.read().records) == 1


def test_the_latest_grading_stands_whatever_the_order() -> None:
    old, new = record(graded_at="2026-03-04T10:00:00+00:00"), record(graded_at="2026-03-04T11:30:00+02:00")
    newer = record(graded_at="2026-03-04T10:00:01Z")
    assert list(latest([old, new]).values()) == [old], "11:30+02:00 is half an hour before 10:00 UTC"
    assert list(latest([newer, old]).values()) == [newer]
    assert list(latest([old, newer]).values()) == [newer]


def test_among_equals_the_later_line_stands() -> None:
    first, second = record(cause="first"), record(cause="second")
    assert latest([first, second])["ada", "module2/self_attention"].cause == "second"


def test_a_fault_of_the_grader_never_displaces_a_verdict() -> None:
    verdict = record(graded_at="2026-03-04T10:00:00Z")
    fault = record(state=State.infrastructure, graded_at="2026-03-05T10:00:00Z")
    assert list(latest([verdict, fault]).values()) == [verdict]
    assert list(latest([fault, verdict]).values()) == [verdict]
    assert list(latest([fault]).values()) == [fault]


def test_learners_and_exercises_are_told_apart() -> None:
    records = [record("ada"), record("bob"), record("ada", "module6/kv_cache")]
    assert list(latest(records)) == [
        ("ada", "module2/self_attention"),
        ("bob", "module2/self_attention"),
        ("ada", "module6/kv_cache"),
    ]
