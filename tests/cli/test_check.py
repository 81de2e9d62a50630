"""``kata check``: exit statuses, what is recorded, what is printed."""

from __future__ import annotations

import json

import pytest

from llmkata.cli.check import status_of
from llmkata.cli.own import own_records
from llmkata.course import load_course
from llmkata.records import State, decode


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        (["pass 1", "pass 2 stretch"], 0),
        (["pass 1", "fail 2 stretch"], 1),
        (["fail 1", "none 1"], 1),
        (["pass 1", "none 1"], 2),
        ([], 2),
    ],
)
def test_status_of_graded_work(make_record, checks, status) -> None:
    assert status_of(make_record("module0/sums", *checks)) == status


def test_a_check_that_costs_nothing_and_cannot_run_here_does_not_count(make_record) -> None:
    record = make_record("module0/sums", "pass 1", "none 1")
    record.checks[1].max_points = 0
    assert status_of(record) == 0


@pytest.mark.parametrize(
    ("state", "status"), [(State.not_started, 1), (State.missing, 1), (State.unreadable, 1), (State.infrastructure, 2)]
)
def test_status_of_other_states(make_record, state, status) -> None:
    assert status_of(make_record("module0/sums", "pass 1", state=state)) == status


def test_a_syntax_error_is_recorded_and_printed_as_json(toy, kata) -> None:
    (toy / "exercises/module0/sums/sums.py").write_text("def add(x:\n")
    done = kata("check", "0.1", "--json")
    shown = json.loads(done.out)
    assert done.status == 1
    assert decode(done.out.encode()).exercise == "module0/sums"
    assert (shown["state"], shown["learner"], shown["schema"]) == ("unreadable", "you", "llmkata/record/v1")
    assert "'(' was never closed" in shown["cause"] and shown["evidence"]["got"] == "def add(x:\n       ^"
    assert own_records(load_course(toy))["module0/sums"].state is State.unreadable


def test_somebody_elses_file_is_not_recorded(toy, kata) -> None:
    (toy / "other.py").write_bytes(b"x = '\xe9'\n")
    done = kata("check", "0.1", "--submission", "other.py", "--json")
    assert done.status == 1 and "Save the file as UTF-8" in json.loads(done.out)["cause"]
    assert not (toy / ".kata").exists()


def test_a_report_for_people(toy, kata) -> None:
    (toy / "exercises/module0/sums/sums.py").write_text("def add(x:\n")
    done = kata("check", "0.1")
    assert done.status == 1
    assert "0.1 Sums" in done.out and "unreadable" in done.out and "'(' was never closed" in done.out
