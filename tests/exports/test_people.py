"""Lists of people: whom a system calls what."""

from __future__ import annotations

import pytest

from llmkata.exports.people import read_people
from llmkata.grading.csvfile import TableError
from llmkata.grading.roster import read_roster

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


ROSTER = """id,name,email,canvas id,also
u1,Ann Lee,ann@x.edu,340,
u2,Bo Ek,,,bo-ek;Participant 12
u3,Ann Lee,lee2@x.edu,341,
"""


def by_roster(tmp_path, text: str) -> dict[str, int]:
    (tmp_path / "roster.csv").write_text(ROSTER)
    listed(tmp_path, text)
    people = read_people(tmp_path / "people.csv", read_roster(tmp_path / "roster.csv"))
    return {name: row.line for name, row in people.matched(["u1", "u2", "u3", "u9"]).items()}


def test_the_roster_of_the_class_knows_their_other_names(tmp_path):
    moodle = "Identifier,Full name,Email address\nParticipant 11,Ann Lee,ann@x.edu\nParticipant 12,B. Ek,\n"
    assert by_roster(tmp_path, moodle) == {"u1": 2, "u2": 3}
    assert by_roster(tmp_path, "Student,ID\n\"Lee, Ann\",341\n\"Ek, Bo\",7\n") == {"u3": 2, "u2": 3}, "Canvas's numbers"
    assert by_roster(tmp_path, "name\nAnn Lee\nbo ek\n") == {"u2": 3}, "two are called so: neither is meant"
    assert by_roster(tmp_path, "id,name\nu1,Bo Ek\n") == {"u1": 2}, "an id comes before a name"
    assert listed(tmp_path, moodle).matched(["u1", "u2"]) == {}, "without the roster nobody is known"
    with pytest.raises(TableError, match=r"lines 2, 3 all answer to 'u1'"):
        by_roster(tmp_path, "email\nann@x.edu\nANN@x.edu\n")


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
