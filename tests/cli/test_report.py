"""``kata report``: the pages of a run, from its records."""

from __future__ import annotations

import pytest

from llmkata.records import RecordFile, State


@pytest.fixture
def run(toy, make_record):
    """The folder of a run with two learners."""
    folder = toy / "report"
    file = RecordFile(folder / "records.jsonl")
    file.append(make_record("module0/sums", "pass 1", "fail 2 stretch", learner="ada"))
    file.append(make_record("module0/sums", learner="bob", state=State.missing, cause="No sums.py was handed in."))
    return folder


def test_pages_table_and_places(kata, run) -> None:
    done = kata("report", "report")
    assert done.status == 0, done.err
    assert "ada" in done.out and "bob" in done.out and "2 learners" in done.out
    for line in ("class page: report/index.html", "grades:     report/grades.csv", "records:    report/records.jsonl"):
        assert line in done.out
    assert (run / "learners" / "ada.html").is_file() and "ada" in (run / "grades.csv").read_text()
    assert (run / "gradebook.db").is_file()


def test_exercises_that_nobody_handed_in_are_left_out(kata, run, make_record) -> None:
    file = RecordFile(run / "records.jsonl")
    for who in ("ada", "bob"):
        file.append(make_record("module0/products", learner=who, state=State.missing))
    done = kata("report", "report")
    assert "nobody handed in 0.2" in done.out and "products" not in done.out
    assert "module0/products" not in (run / "grades.csv").read_text()
    assert "Products" not in (run / "learners" / "ada.html").read_text()
    file.append(make_record("module0/products", "pass 1", learner="bob"))
    done = kata("report", "report")
    assert "nobody" not in done.out and "module0/products" in (run / "grades.csv").read_text()


def test_a_torn_line_is_told_and_costs_nothing_else(kata, run) -> None:
    with (run / "records.jsonl").open("a") as file:
        file.write('{"learner": "eve"')
    done = kata("report", "report")
    assert done.status == 0 and "records.jsonl:3: torn" in done.err and "2 learners" in done.out


def test_records_that_cannot_be_read(kata, run) -> None:
    (run / "records.jsonl").write_text("nothing\n")
    done = kata("report", "report")
    assert done.status == 2 and "holds no record that can be read" in done.err
    assert not (run / "index.html").exists()
