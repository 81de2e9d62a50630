"""``kata export``: from a graded folder to files, and what it says on the way."""

from __future__ import annotations

import csv
import json

import pytest

from llmkata.records import CheckRecord, Outcome, RecordFile, State

SUMS, PRODUCTS = "module0/sums", "module0/products"


@pytest.fixture
def graded(toy, make_record):
    """ann has all of 0.1, bob none of it and a fault in 0.2; nobody handed in anything else."""
    records = RecordFile(toy / "report" / "records.jsonl")
    records.append(
        make_record(SUMS, "pass 1", "pass 2 stretch", learner="ann"), make_record(SUMS, "fail 1", learner="bob"),
    )  # fmt: skip
    return records


def test_without_a_format_the_formats_are_listed(toy, kata):
    done = kata("export")
    assert done.status == 0
    for name in ("canvas", "moodle-feedback", "nbgrader-course", "junit"):
        assert f"{name} " in done.out


def test_a_format_of_a_class_is_a_file(graded, toy, kata):
    done = kata("export", "csv", "report")
    assert (done.status, done.err) == (0, "")
    assert done.out == "report/export/results.csv: 2 learners, 1 exercise\n"
    rows = list(csv.DictReader((toy / "report/export/results.csv").open()))
    assert [(row["learner"], row["exercise"], row["score"], row["max_points"]) for row in rows] == [
        ("ann", SUMS, "8", "8"), ("bob", SUMS, "0", "8"),
    ]  # fmt: skip


def test_a_format_of_learners_is_a_folder(graded, toy, kata):
    assert kata("export", "gradescope", "report", "--out", "given", "--learner", "ann").status == 0
    assert [path.name for path in (toy / "given").iterdir()] == ["ann"]
    assert json.loads((toy / "given/ann/results.json").read_text())["score"] == 8


def test_the_default_folder_is_the_one_of_kata_grade(graded, toy, kata):
    assert kata("export", "json").status == 0
    assert (toy / "report/export/results.json").is_file()


def test_one_exercise(graded, make_record, toy, kata):
    graded.append(make_record(PRODUCTS, "pass 1", learner="ann"))
    assert kata("export", "canvas", "report", "--exercise", "0.2").status == 0
    header = (toy / "report/export/canvas.csv").read_text().splitlines()[0]
    assert header.endswith("Section,0.2 Products")


def test_what_could_not_be_judged_is_named(graded, make_record, kata):
    graded.append(make_record(PRODUCTS, learner="bob", state=State.infrastructure))
    done = kata("export", "canvas", "report")
    assert done.status == 1
    assert done.err == "not judged, so without a grade: bob: 0.2 Products\n"


def test_who_is_not_on_the_list_is_named(graded, toy, kata):
    (toy / "people.csv").write_text("id,name\nann,Ann Lee\n")
    done = kata("export", "canvas", "report", "--people", "people.csv")
    assert (done.status, done.err) == (1, "not in people.csv, left out: bob\n")
    assert "Ann Lee" in (toy / "report/export/canvas.csv").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["excel"], "unknown format 'excel': one of csv, json, canvas"),
        (["csv", "nowhere"], "nowhere holds no records.jsonl"),
        (["csv", "report", "--learner", "zed"], "report has no learner zed"),
        (["csv", "report", "--exercise", "0.3"], "is planned"),
        (["moodle-feedback", "report"], "grading worksheet"),
        (["canvas", "report", "--people", "none.csv"], "none.csv: No such file"),
        (["csv", "report", "--out", "report/records.jsonl/x"], "cannot write report/records.jsonl/x"),
        (["nbgrader-course"], "where to?"),
    ],
)
def test_wrong_usage_says_what_to_do(graded, kata, words, said):
    done = kata("export", *words)
    assert done.status == 2
    assert said in done.err and "\nNext: " in done.err


def test_torn_lines_are_told_and_empty_reports_refused(graded, toy, kata):
    path = toy / "report/records.jsonl"
    path.write_text(path.read_text() + '{"learner": "x')
    assert "records.jsonl:3: torn" in kata("export", "csv", "report").err
    path.write_text("nonsense\n")
    done = kata("export", "csv", "report")
    assert done.status == 2 and "no record that can be read" in done.err


def test_nothing_of_a_learner_acts_on_the_terminal(graded, make_record, kata):
    graded.append(make_record(SUMS, learner="\x1b[31mred", state=State.infrastructure))
    done = kata("export", "csv", "report")
    assert "red: 0.1 Sums" in done.err and "\x1b" not in done.err


def test_the_policy_of_the_course_is_kept(graded, make_record, toy, kata):
    """Hidden checks tell the diagnosis and no counterexample here."""
    hidden = make_record(SUMS, learner="cleo")
    hidden.checks = [CheckRecord("test_c.py::test_a", "T", 1, "core", 4, 0, Outcome.failed, cause="why", staff_output="inputs")]
    graded.append(hidden)
    for name in ("json", "junit", "gradescope"):
        assert kata("export", name, "report", "--out", f"o/{name}").status == 0
    told = "".join(path.read_text() for path in (toy / "o").rglob("*") if path.is_file())
    assert "why" in told and "inputs" not in told
