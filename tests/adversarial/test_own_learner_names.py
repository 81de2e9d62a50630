"""Names of learners become names of files."""

from pathlib import Path

import pytest

from llmkata.gradebook import Gradebook
from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission
from llmkata.records import read_records
from llmkata.reports.site import write_report

from ..toy.harness import COURSE, STUB, TOY

NAMES = ["../../escape", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "con", "CON.txt", "Ann", "ann", "ANN", "zoe\u0308", "zo\xeb",
         "x" * 300, "x" * 301, "tab\there", "line\nbreak", "nul\0", "-rf", "~root", "$HOME", "`id`", "index", "\ud800".encode(
             "utf-8", "surrogatepass").decode("utf-8", "backslashreplace"), "ann.html", ".hidden", "a" * 60 + "-0123456789"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "in" / "run"
    given = [Submission(name, TOY.id, STUB.encode(), "toy.py") for name in NAMES]
    records = grade_many(COURSE, given, out=folder)
    assert [r.learner for r in records] == NAMES
    book = Gradebook.open()
    book.rebuild([folder / "records.jsonl"])
    return folder, write_report(folder / "report", COURSE, read_records([folder / "records.jsonl"]).records, book)


def test_every_learner_has_a_card_of_their_own(out):
    _, report = out
    assert set(report.cards) == set(NAMES)
    paths = [str(p).casefold() for p in report.cards.values()]
    assert len(set(paths)) == len(NAMES)


def test_nothing_is_written_elsewhere(out):
    folder, report = out
    written = {p for p in folder.parents[1].rglob("*") if p.is_file()}
    expected = {folder / "records.jsonl", folder / "records.jsonl.lock", report.index, report.grades}
    cards = {p.with_suffix(s) for p in report.cards.values() for s in (".html", ".md", ".json")}
    assert written == expected | cards
    assert all(p.parent == folder / "report" / "learners" and len(p.name) < 100 for p in cards)


def test_taken_as_they_are_they_would_be(tmp_path):
    inside = tmp_path / "report" / "learners"
    escaped = [n for n in NAMES if "\0" not in n and not (inside / f"{n}.html").resolve().is_relative_to(inside)]
    assert {"../../escape", "/etc/passwd"} <= set(escaped) and Path("/etc/passwd.html") == inside / "/etc/passwd.html"
