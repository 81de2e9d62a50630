"""Tables of times: one's own, and Moodle's grading worksheet."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llmkata.course import Course, Grading
from llmkata.grading.csvfile import TableError
from llmkata.grading.roster import Roster, read_roster
from llmkata.grading.submission import Submission
from llmkata.grading.times import Times, read_times

from ..reports.factory import KV_CACHE, SELF_ATTENTION, course

MADE = course()
OSLO: Course = msgspec.structs.replace(MADE, policy=msgspec.structs.replace(MADE.policy, grading=Grading("Europe/Oslo")))

WORKSHEET = """\
Identifier,Full name,Email address,Status,Grade,Maximum grade,Grade can be changed,Last modified (submission),Last modified (grade),Feedback comments
Participant 501,Anna Berg,a@x.org,Submitted for grading,,100.00,Yes,"Monday, 5 October 2026, 11:58 PM",-,
Participant 502,Bob Smith,b@x.org,No submission,,100.00,Yes,-,-,
"""


def times(tmp_path: Path, text: str) -> Times:
    (tmp_path / "times.csv").write_text(text)
    return read_times(tmp_path / "times.csv", OSLO)


def roster(tmp_path: Path) -> Roster:
    (tmp_path / "roster.csv").write_text("id,name,also\nu1,Anna Berg,Participant 777\nu2,Bob Smith,\nu3,Bob Smith,\n")
    return read_roster(tmp_path / "roster.csv")


def stamp(got: Times, submission: Submission, roster: Roster | None = None) -> str:
    (stamped,) = got.stamped([submission], roster)
    return stamped.submitted_at


def handed_in(learner: str, exercise: str = SELF_ATTENTION, **more: object) -> Submission:
    return Submission(learner, exercise, b"x", file="f.py", **more)


def test_ones_own_table(tmp_path: Path) -> None:
    got = times(tmp_path, "id,exercise,submitted at\nada,,2026-10-05 23:58\nada,6.1,2026-10-06T01:00Z\nbob,,\n")
    assert stamp(got, handed_in("ada")) == "2026-10-05T23:58:00+02:00"
    assert stamp(got, handed_in("ada", KV_CACHE)) == "2026-10-06T03:00:00+02:00"
    for other in (handed_in("bob"), handed_in("eve"), Submission("ada", SELF_ATTENTION)):
        assert got.stamped([other], None) == [other]


def test_moodles_worksheet_by_any_name(tmp_path: Path) -> None:
    got = times(tmp_path, WORKSHEET)
    for learner in ("Anna Berg", "Participant 501", "a@x.org"):
        assert stamp(got, handed_in(learner)) == "2026-10-05T23:58:00+02:00"
    assert stamp(got, handed_in("u1"), roster(tmp_path)) == "2026-10-05T23:58:00+02:00"
    assert stamp(got, handed_in("u2"), roster(tmp_path)) == "", "two are called so"
    assert stamp(got, handed_in("u9", mates=("u1",)), roster(tmp_path)) == "2026-10-05T23:58:00+02:00"


def test_a_name_of_two_people_stands_for_neither(tmp_path: Path) -> None:
    got = times(tmp_path, WORKSHEET.replace("Bob Smith,b@x.org,No submission", "Anna Berg,b@x.org,Submitted").replace(
        '-,-,', '"Tuesday, 6 October 2026, 11:58 PM",-,'))
    assert stamp(got, handed_in("Anna Berg")) == ""
    assert stamp(got, handed_in("Participant 502")) == "2026-10-06T23:58:00+02:00"


def test_a_time_of_staff_comes_before_any_other(tmp_path: Path) -> None:
    got = times(tmp_path, "id,submitted at\nada,2026-10-05 23:58\n")
    assert stamp(got, handed_in("ada", submitted_at="2026-01-01T00:00:00Z")).startswith("2026-10-05")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,time\nada,2026-10-05\n", ":1: no column submitted at"),
        ("who,submitted at\nada,2026-10-05 10:00\n", ":1: no column id"),
        ("id,submitted at\nada,this morning\n", ":2: submitted at: 'this morning' is no time; write it as 2026-10-05 23:59"),
        ("id,submitted at\nada,2026-10-05\n", ":2: submitted at: '2026-10-05' has no time of day"),
        ("id,exercise,submitted at\nada,9.9,2026-10-05 10:00\n", ':2: exercise: no exercise "9.9"'),
        ("id,submitted at\nada,2026-10-05 10:00,x\n", ":2: 3 cells for 2 columns"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TableError) as caught:
        times(tmp_path, text)
    assert f"times.csv{said}" in str(caught.value)
