"""``kata report``: the pages of a run, from its records."""

from __future__ import annotations

import hashlib

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


def test_exercises_that_nobody_began_are_left_out(kata, run, make_record) -> None:
    file = RecordFile(run / "records.jsonl")
    for who, state in (("ada", State.not_started), ("bob", State.missing)):
        file.append(make_record("module0/products", learner=who, state=state))
    done = kata("report", "report")
    assert "nobody began 0.2" in done.out and "products" not in done.out
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


ANSWER = "def add(x):\n" + "".join(
    f"    if x > {n} and x % {n + 2} == {n % 2}:\n        x = (x - {n}) * {n + 3} // (x + {n})\n" for n in range(12)
) + "    return x\n"


def test_submissions_that_are_alike(kata, toy, run, make_record) -> None:
    pytest.importorskip("copydetect")
    file = RecordFile(run / "records.jsonl")
    for learner, text in {"ada": ANSWER, "bob": ANSWER.replace("x", "value"), "cyd": "def add(x):\n    return 1\n"}.items():
        (toy / "submissions" / learner / "module0").mkdir(parents=True)
        (toy / "submissions" / learner / "module0" / "sums.py").write_text(text)
        sha = hashlib.sha256(text.encode()).hexdigest()
        file.append(make_record("module0/sums", "pass 1", learner=learner, submission_sha=sha,
                                graded_at="2026-02-01T00:00:00+00:00"))  # fmt: skip
    done = kata("report", "report", "--similarity", "submissions")
    assert done.status == 0, done.err
    assert "1 pair of submissions suspiciously alike" in done.out
    assert "Similar submissions" in (run / "index.html").read_text()
    kata("report", "report")
    assert "ada</bdi>" in (run / "index.html").read_text().partition("Similar submissions")[2], "pairs are kept"
    (toy / "groups.csv").write_text("id,group\nada,g1\nbob,g1\ncyd,\n")
    done = kata("report", "report", "--similarity", "submissions", "--groups", "groups.csv")
    assert "no two submissions suspiciously alike" in done.out


def test_what_similarity_needs(kata, toy, run) -> None:
    done = kata("report", "report", "--groups", "groups.csv")
    assert done.status == 2 and "--similarity" in done.err
    done = kata("report", "report", "--similarity", "nowhere")
    assert done.status == 2 and "nowhere" in done.err
    (toy / "submissions" / "ada" / "module0").mkdir(parents=True)
    (toy / "groups.csv").write_text("name\nada\n")
    done = kata("report", "report", "--similarity", "submissions", "--groups", "groups.csv")
    assert done.status == 2 and "groups.csv:1: no column id; the columns are name\n" in done.err and ":1: no column group;" in done.err
