"""The roster: its columns, its faults, and who is meant by a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkata.course import Extension
from llmkata.grading.csvfile import TableError
from llmkata.grading.roster import AmbiguousName, Roster, enrolled, read_roster

from ..reports.factory import course


@pytest.fixture
def roster(tmp_path: Path):
    def write(text: str, modules: set[int] | None = None) -> Roster:
        (tmp_path / "roster.csv").write_text(text, encoding="utf-8-sig")
        return read_roster(tmp_path / "roster.csv", modules)

    return write


def test_all_columns(roster) -> None:
    (ada,) = roster(
        "ID;Name;Email;Section;Group;Extension_Days;extension days module 3;canvas id;github;also;repository\n"
        "u1;Lovelace, Ada;ada@x.org;A;Team 7;2,5;;340;adal;Participant 12; o/r\n".replace("2,5", "2.5")
    ).people
    assert (ada.id, ada.line, ada.name, ada.email, ada.section, ada.group) == (
        "u1", 2, "Lovelace, Ada", "ada@x.org", "A", "Team 7",
    )  # fmt: skip
    assert (ada.extension, ada.canvas_id, ada.also) == (Extension(2.5), "340", ("adal", "Participant 12"))


def test_only_an_id_is_needed_and_empty_lines_are_nobody(roster) -> None:
    assert [p.id for p in roster("id\nu1\n\n  \nu2\n").people] == ["u1", "u2"]


def test_extensions_reach_the_policy_by_module(roster) -> None:
    got = enrolled(course(), roster("id,extension days,extension days 2\nu1,1,4\nu2,,\nu3,0,\n", {0, 2}))
    assert got.policy.grading.extensions == {"u1": Extension(1, {2: 4})}
    assert enrolled(course(), None).policy.grading.extensions == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": is empty"),
        ("name\nAda\n", ":1: no column id"),
        ("id,name,name\nu1,a,b\n", ":1: column 'name' stands there twice"),
        ("id,extention days\nu1,1\n", ":1: unknown column 'extention days'; did you mean 'extension days'?"),
        ("id,extension days 9\nu1,1\n", ":1: column 'extension days 9': the course has no module 9"),
        ("id,name\n,Ada\n", ":2: id: is missing"),
        ("id\nu1\n\nU1\n", ":4: id: 'U1' stands here twice (first in line 2)"),
        ("id,canvas id\nu1,3\nu2,3\n", ":3: canvas id: '3' stands here twice (first in line 2)"),
        ("id,extension days\nu1,two\n", ":2: extension days: 'two' is no number of days"),
        ("id,extension days\nu1,-1\n", ":2: extension days: must be between 0 and 1000"),
        ("id,extension days\nu1,nan\n", ":2: extension days: must be between 0 and 1000"),
        ("id,name\nu1,Lovelace, Ada\n", ":2: 3 cells for 2 columns"),
        ('id,name\nu1,"Ada\n', ": is not CSV"),
    ],
)
def test_faults_name_file_line_and_column(roster, text: str, said: str) -> None:
    with pytest.raises(TableError) as caught:
        roster(text, {0, 2})
    assert "roster.csv" in str(caught.value)
    assert said in str(caught.value)


def test_all_faults_are_told_at_once(roster) -> None:
    with pytest.raises(TableError) as caught:
        roster("id,extension days\nu1,x\n,1\nu1,y\n")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["2", "3", "4"]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="No such file"):
        read_roster(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("id\nzoé\n".encode("latin-1"))
    with pytest.raises(TableError, match="is not UTF-8"):
        read_roster(tmp_path / "latin.csv")


PEOPLE = """\
id,name,email,canvas id,also
u1,Ada Lovelace,ada@x.org,340,
u2,"Berg Hansen, Anna",ab@x.org,,Participant 12
u3,Bob Smith,bob@x.org,,
u4,Bob Smith,bob2@x.org,,
"""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("u1",), "u1"), (("U1",), "u1"), (("ada@x.org",), "u1"), (("ada",), "u1"), (("Ada Lovelace",), "u1"),
        (("Lovelace, Ada",), "u1"), (("lovelaceada",), "u1"), (("berghansenanna",), "u2"), (("Anna Berg Hansen",), "u2"),
        (("Participant 12",), "u2"), (("bob2",), "u4"), (("nobody", "ada"), "u1"), (("nobody",), None), (("",), None),
        (("hansen",), None), (("340",), None),
    ],
)  # fmt: skip
def test_who_is_meant(roster, names: tuple[str, ...], expected: str | None) -> None:
    found = roster(PEOPLE).find(*names)
    assert (found.id if found else None) == expected


def test_a_name_of_two_is_nobodys_guess(roster) -> None:
    with pytest.raises(AmbiguousName, match="lines 4, 5"):
        roster(PEOPLE).find("Bob Smith")


def test_canvas_knows_people_by_number(roster) -> None:
    people = roster(PEOPLE)
    assert people.find("whatever", canvas_id="340").id == "u1"
    assert people.find("lovelaceada", canvas_id="999") is None, "somebody else of that name"
    assert people.find("berghansenanna", canvas_id="999").id == "u2", "whose number is not on the roster"


def test_groups(roster) -> None:
    people = roster("id,group\nu1,Team 7\nu2,team7\nu3,\n")
    assert [p.id for p in people.group("Team 7")] == ["u1", "u2"]
    assert [p.id for p in people.mates("u2")] == ["u1", "u2"]
    assert [p.id for p in people.mates("u3")] == ["u3"]
    assert (people.group(""), people.mates("x")) == ((), ())
