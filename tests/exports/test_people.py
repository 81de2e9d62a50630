"""Lists of people: whom a system calls what."""

from __future__ import annotations

import pytest

from llmkata.exports.people import read_people
from llmkata.grading.csvfile import TableError

from .exporting import listed


def test_a_learner_is_found_in_any_column_that_tells_people_apart(tmp_path):
    people = listed(tmp_path, "Name,Email address,ID number,Section\nAnn Lee,ann@x.edu,007,A\n\nBob,b.o@x.edu,8,B\n")
    assert [people.of(name).line for name in ("Ann Lee", "ANN@x.edu", "007", "ann", " ann lee ")] == [2] * 5
    assert people.of("b.o").line == 4
    assert people.of("A") is None, "a section is nobody"
    assert people.of("an") is None


def test_semicolons_tabs_and_a_byte_order_mark(tmp_path):
    for text in ("\ufeffid;name\n1;Ann\n", "id\tname\n1\tAnn\n"):
        assert listed(tmp_path, text).of("ann").get("id") == "1"


def test_a_quoted_cell_may_span_lines(tmp_path):
    people = listed(tmp_path, 'id,note\n1,"two\nlines"\n2,x\n')
    assert [row.line for row in people.rows] == [2, 4]


def test_a_name_kept_from_spreadsheets_is_still_the_name(tmp_path):
    assert listed(tmp_path, "id\n'=1+1\n").of("=1+1").line == 2


def test_nobody_is_guessed(tmp_path):
    people = listed(tmp_path, "id,name\n1,Ann\n2,Ann\n")
    with pytest.raises(TableError, match=r"people\.csv: lines 2, 3 all answer to 'ann'"):
        people.of("ann")
    people = listed(tmp_path, "id,name\nann,Ann Lee\n")
    with pytest.raises(TableError, match=r"people\.csv:2: both 'ann' and 'Ann Lee'"):
        people.matched(["ann", "Ann Lee"])
    assert set(people.matched(["ann", "bob"])) == {"ann"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"colour,size\nred,1\n", ":1: no column tells people apart"),
        (b"id\n\xff\xfe\n", "is not UTF-8"),
        (b'id\n"open\n', ":2: is not CSV"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, said):
    path = tmp_path / "people.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=said):
        read_people(path)
    with pytest.raises(TableError, match="No such file"):
        read_people(tmp_path / "none.csv")
