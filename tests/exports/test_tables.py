"""Tables: plain CSV, Canvas, Moodle."""

from __future__ import annotations

import csv
import io

import pytest

from llmkata.exports.formats import ExportError
from llmkata.exports.results import results
from llmkata.grading.csvfile import TableError
from llmkata.records import State

from ..reports.factory import course, record
from .exporting import exported, listed, view


def rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))


def table(name: str, people=None, of=None) -> list[list[str]]:
    [content] = exported(name, of or view(), people).values()
    assert b"\r\n" in content
    found = rows(content)
    assert len({len(row) for row in found}) == 1
    return found


def test_plain_csv_has_a_line_for_each_learner_and_exercise():
    header, *lines = table("csv")
    known = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in lines}
    assert len(known) == 4 * 3
    ann = known["ann", "module2/self_attention"]
    assert (ann["state"], ann["score"], ann["points"], ann["max_points"]) == ("in progress", "20", "20", "43")
    assert (ann["tasks_done"], ann["tasks"]) == ("2", "6")
    eve = known["eve", "module0/matrix_calculus"]
    assert (eve["state"], eve["score"], eve["points"], eve["percent"]) == ("not judged", "", "", "")
    assert known["'=1+1", "module2/self_attention"]["score"] == "0"


# Canvas: "Student, ID, SIS User ID, SIS Login ID, Section", then assignments; second line "Points Possible".

CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section,2.1 Self-Attention Mechanism (4711),Current Score
    Points Possible,,,,,48,(read only)
"Lee, Ann",101,s-1,ann,A,,
"Doe, Bob",102,s-2,bob@x.edu,A,,
"""


def test_canvas_without_a_list():
    header, possible, *lines = table("canvas")
    assert header[:5] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    assert header[5:] == ["0.1 Matrix Calculus", "2.1 Self-Attention Mechanism", "6.1 KV-Cache Implementation"]
    assert possible == ["Points Possible", "", "", "", "", "20", "43", "20"]
    assert ["ann", "", "", "ann", "", "20", "20", "0"] in lines
    assert ["eve", "", "", "eve", "", "", "0", "0"] in lines, "an empty cell changes nothing in Canvas"


def test_canvas_with_a_gradebook_exported_there(tmp_path):
    header, _, *lines = table("canvas", listed(tmp_path, CANVAS))
    assert header[6] == "2.1 Self-Attention Mechanism (4711)", "the very column: it goes to that assignment"
    assert lines == [
        ["Lee, Ann", "101", "s-1", "ann", "A", "20", "20", "0"],
        ["Doe, Bob", "102", "s-2", "bob@x.edu", "A", "20", "0", "20"],
    ]


def test_an_id_of_ones_own_is_not_canvass(tmp_path):
    """Canvas's ID is a number of its own; a roster's id must not be taken for it."""
    _, _, line = table("canvas", listed(tmp_path, "id,name,section\nann,Ann Lee,A\n"))
    assert line[:5] == ["Ann Lee", "", "", "", "A"]
    _, _, line = table("canvas", listed(tmp_path, "id,name,canvas id\nann,Ann Lee,101\n"))
    assert line[:5] == ["Ann Lee", "101", "", "", ""]


# Moodle


WORKSHEET = """\
Identifier,Full name,Email address,Status,Grade,Maximum Grade,Grade can be changed,Last modified (submission),Last modified (grade),Feedback comments
Participant 12345,Ann Lee,ann@x.edu,Submitted,,50.00,Yes,"Monday, 2 March 2026, 3:04 PM",-,
Participant 12346,Zed,zed@x.edu,No submission,,50.00,Yes,-,-,
Participant 12347,Eve,eve@x.edu,Submitted,7.00,50.00,Yes,-,-,by hand
"""


def test_moodles_worksheet_comes_back_filled_in(tmp_path):
    header, ann, zed, eve = table("moodle", listed(tmp_path, WORKSHEET))
    original = rows(WORKSHEET.encode())
    assert header == original[0]
    told = dict(zip(header, ann, strict=True))
    share = (1 + 20 / 43 + 2 * 0) / 4  # the last exercise has double weight
    assert told["Grade"] == f"{50 * share:.2f}"
    assert told["Last modified (submission)"] == "Monday, 2 March 2026, 3:04 PM"
    assert told["Feedback comments"].split("<br>")[1] == "0.1 Matrix Calculus: mastered, 20 of 20 points, 3 of 3 tasks."
    assert "sqrt(d)" in told["Feedback comments"]
    assert zed == original[2], "nobody we graded"
    assert eve[header.index("Grade")] == "0.00"


def test_where_nothing_could_be_judged_moodles_line_stays(tmp_path):
    lost = [record("eve", state=State.infrastructure, cause="x")]
    of = results(course().narrowed({"module2/self_attention"}), lost)
    *_, eve = table("moodle", listed(tmp_path, WORKSHEET), of)
    assert eve == rows(WORKSHEET.encode())[3]


def test_a_worksheet_without_numbers_is_refused(tmp_path):
    people = listed(tmp_path, WORKSHEET.replace("50.00,Yes,\"M", "much,Yes,\"M"))
    with pytest.raises(ExportError, match=r"people\.csv:2: Maximum grade is 'much'"):
        exported("moodle", view(), people)


def test_moodles_gradebook(tmp_path):
    header, *lines = table("moodle", listed(tmp_path, "Username,Email address,ID number\nann,ann@x.edu,9\n"))
    assert header[:5] == ["Username", "Email address", "ID number", "0.1 Matrix Calculus", "0.1 Matrix Calculus (feedback)"]
    assert [line[:4] for line in lines] == [["ann", "ann@x.edu", "9", "20"]]
    assert lines[0][8].startswith("6.1 KV-Cache Implementation: unreadable. The file has a syntax error in line 41")


def test_two_lines_for_one_learner_are_told(tmp_path):
    with pytest.raises(TableError, match="lines 2, 3"):
        exported("canvas", view(), listed(tmp_path, "id\nann\nann\n"))
