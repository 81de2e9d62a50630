"""The log of changes: numbers, several processes, lines that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from filelock import FileLock

from llmkata.course.by_hand import Pin
from llmkata.gradebook import changes
from llmkata.gradebook.changes import Change, ChangeError, ChangeLog, now, taken_back, who

from .by_hand import change, numbered, undo

PLUS = change("adjust", "ada", points=2.0, of=10.0, text="Typo in the brief")
PINS = {"ada": Pin("2026-03-01T00:00:00Z", "sha", 0.5, deduction=0.1, adjustment=0.05, days_late=1, why="1 day late")}


@pytest.fixture
def log(tmp_path: Path) -> ChangeLog:
    return ChangeLog(tmp_path / "changes.jsonl")


def test_changes_get_their_numbers_when_they_are_written(log: ChangeLog) -> None:
    assert log.read() == [] and not log.path.exists()
    assert [c.number for c in log.append(PLUS, change("comment", "ada", text="Good"))] == [1, 2]
    assert [c.number for c in log.append(undo(1))] == [3]
    assert [c.number for c in log.append()] == []
    assert [(c.number, c.action, c.undoes) for c in log.read()] == [(1, "adjust", 0), (2, "comment", 0), (3, "undo", 1)]


def test_every_field_comes_back(log: ChangeLog) -> None:
    made = [
        PLUS,
        change("rubric", "ada", points=1.5, of=2.0, criterion="readability"),
        change("comment", "Zoë Müller", text="Zwei\nZeilen \u2028 und \x1b[31m", staff=True),
        change("void", check="test_correctness.py::test_a", way="full", text="Wrong"),
        change("freeze", pins=PINS),
        change("regrade", "ada", before=50.0, after=None),
    ]
    assert log.append(*made) == numbered(*made) == log.read()
    assert len(log.path.read_bytes().splitlines()) == len(made), "a line each, whatever their texts hold"


def test_several_processes_share_the_numbers(log: ChangeLog) -> None:
    code = (
        "import sys; from llmkata.gradebook.changes import *\n"
        "for n in range(10): ChangeLog(sys.argv[1]).append(Change(0, now(), 'x', Action.comment, 'e', text=str(n)))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(log.path)]) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert [c.number for c in log.read()] == list(range(1, 31))


def test_who_finds_the_log_locked_is_told(log: ChangeLog) -> None:
    log.append(PLUS)
    held = ChangeLog(log.path, lock_seconds=0.05)
    with FileLock(str(log._lock.lock_file)), pytest.raises(ChangeError, match="locked by another command"):
        held.append(PLUS)
    assert len(held.append(PLUS)) == 1 and len(log.read()) == 2


def test_a_line_cut_short_was_never_in_force(log: ChangeLog) -> None:
    log.append(PLUS)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[: len(whole) // 2])
    assert [c.number for c in log.read()] == [1]
    assert [c.number for c in log.append(change("comment", "bob", text="Next"))] == [2]
    assert [c.number for c in log.read()] == [1, 2], "the torn line is gone"


def test_a_last_line_that_lacks_its_end_alone_counts(log: ChangeLog) -> None:
    log.append(PLUS)
    log.path.write_bytes(log.path.read_bytes().rstrip(b"\n"))
    assert [c.number for c in log.read()] == [1]
    assert [c.number for c in log.append(PLUS)] == [2]
    assert [c.number for c in log.read()] == [1, 2]


@pytest.mark.parametrize(
    "line", ["{}", "nonsense", '{"number": 2, "at": "x", "by": "y", "action": "steal", "exercise": "e"}', "\xff"]
)
def test_a_line_that_is_no_change_is_named(log: ChangeLog, line: str) -> None:
    log.append(PLUS)
    before = log.path.read_bytes() + line.encode("latin-1") + b"\n"
    log.path.write_bytes(before)
    with pytest.raises(ChangeError, match=r"changes\.jsonl:2: not a change"):
        log.read()
    with pytest.raises(ChangeError):
        log.append(PLUS)
    assert log.path.read_bytes() == before, "nothing is written behind what cannot be read"


def test_what_was_taken_back() -> None:
    assert taken_back(numbered(PLUS, PLUS, undo(1), change("comment", "ada", text="x"))) == {1: 3}
    assert taken_back([]) == {}


def test_under_which_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(changes.WHO, "  Prof. Q ")
    assert who() == "Prof. Q"
    monkeypatch.setenv(changes.WHO, " ")
    monkeypatch.setattr(changes.getpass, "getuser", lambda: "account")
    assert who() == "account"

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(changes.getpass, "getuser", nobody)
    assert who() == "unknown"


def test_the_stamp_has_an_offset() -> None:
    assert datetime.fromisoformat(now()).tzinfo is not None


def test_a_line_holds_what_it_needs_and_no_more() -> None:
    assert set(msgspec.json.decode(msgspec.json.encode(numbered(undo(7))[0]))) == {
        "number",
        "at",
        "by",
        "action",
        "exercise",
        "undoes",
    }
    assert isinstance(PLUS, Change)
