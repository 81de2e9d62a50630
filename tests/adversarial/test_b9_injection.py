"""B9: markup, formulas and terminal codes in names, messages and outputs."""

import csv
import io
import json
import re

import pytest

from llmkata.gradebook import Gradebook
from llmkata.records import RecordFile
from llmkata.reports import pages
from llmkata.reports.site import write_report
from llmkata.reports.terminal import check_report, console

from ..reports.pagecheck import check_page
from ..toy.harness import COURSE, grade, solution_with

SHOWN = "</pre></style><script>alert('x')</script><img src=x onerror=alert(1)> \\x1b]8;;http://evil\\x07\\x1b[2J\\u202e"
HOSTILE = f'''
class Evil(ValueError): pass
Evil.__name__ = Evil.__qualname__ = "{SHOWN}"

def magic(n):
    print("=HYPERLINK(1)", "{SHOWN}")
    raise Evil("{SHOWN} [x](javascript:alert(1)) ![y](http://evil/y.png) | a | b |")

def project(x, w):
    return {{"{SHOWN}": "{SHOWN}"}}

class Ledger:
    __init__ = lambda self: None
    def add(self, name, value):
        return type("{SHOWN}", (), {{}})()
'''
NAMES = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "../../index", "\x1b[31mred", "-2+3", "@SUM(A1)", "{{ 7 * 7 }}"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The files of a class of hostile names who handed in hostile code."""
    folder = tmp_path_factory.mktemp("report")
    record = grade(solution_with(HOSTILE), file="=toy.py")
    records = []
    for name in NAMES:
        record.learner = name
        RecordFile(folder / "records.jsonl").append(record)
        records.append(record)
    book = Gradebook.open()
    book.rebuild([folder / "records.jsonl"])
    from llmkata.records import read_records
    write_report(folder / "out", COURSE, read_records([folder / "records.jsonl"]).records, book, feedback="counterexample")
    return folder / "out"


def test_it_was_all_there(report):
    """What the pages hold is what was handed in, as text."""
    card = next(report.glob("learners/*.json")).read_text("utf-8")
    assert "alert('x')" in json.loads(card)["exercises"][0]["tasks"][0]["checks"][-1]["cause"] or "alert('x')" in card


def test_pages_are_inert(report):
    found = list(report.rglob("*.html"))
    assert len(found) == len(NAMES) + 1
    for path in found:
        page = path.read_text("utf-8")
        check_page(page)
        assert "<img" not in page and "<script>alert" not in page


def test_markdown_has_no_markup_of_theirs(report):
    for path in report.rglob("*.md"):
        text = re.sub(r"^(`{3,})text\n.*?\n\1$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"`[^`\n]*`", "", text)
        assert "<script" not in text and "<img" not in text and "![y]" not in text
        assert not re.search(r"(?<!\\)\]\(", text)


def test_cells_are_no_formulas(report):
    rows = list(csv.reader(io.StringIO((report / "grades.csv").read_text("utf-8"))))
    assert len(rows) == len(NAMES) + 1
    assert not [cell for row in rows for cell in row if re.match(r"[=+\-@\t\r]", cell)]


def test_no_control_character_is_in_any_file(report):
    for path in (p for p in report.rglob("*") if p.is_file()):
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]", path.read_text("utf-8")), path


def test_files_stay_in_their_folder(report):
    assert {p.parent for p in report.rglob("*.json")} == {report / "learners"}
    assert not list(report.parent.glob("index*"))


def test_json_is_json(report):
    for path in report.rglob("*.json"):
        assert json.loads(path.read_text("utf-8"))["learner"]


def test_nothing_acts_on_a_terminal():
    said = io.StringIO()
    console(said, width=100).print(check_report(grade(solution_with(HOSTILE)), COURSE, feedback="counterexample"))
    assert "alert" in said.getvalue() and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said.getvalue())


def test_without_escaping_a_page_is_theirs(monkeypatch):
    from llmkata.reports.scorecard import to_html
    from llmkata.reports.view import scorecard

    monkeypatch.setattr(pages.html(), "autoescape", False)
    pages.html().cache.clear()
    record = grade(solution_with(HOSTILE), only="test_magic")
    page = to_html(scorecard("you", [record], COURSE, feedback="counterexample"))
    pages.html().cache.clear()
    assert "<script>alert" in page


def test_honest_work_makes_a_page(honest):
    from llmkata.reports.scorecard import to_html
    from llmkata.reports.view import scorecard

    assert "21" in check_page(to_html(scorecard("you", [honest], COURSE))).text()
