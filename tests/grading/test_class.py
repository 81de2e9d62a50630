"""A class as it comes: bulk downloads of Canvas and Moodle, nbgrader's tree, rosters, groups."""

from __future__ import annotations

import io
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llmkata.course import Course, load_course
from llmkata.grading.intake import Intake, IntakeError, read_class
from llmkata.grading.roster import Roster, read_roster
from llmkata.grading.submission import Submission
from llmkata.records import ExerciseRecord, State

ROOT = Path(__file__).parents[2]
ATTENTION, CALCULUS = "module2/self_attention", "module0/matrix_calculus"
CODE, OTHER = b"x = 1\n", b"x = 2\n"


@pytest.fixture(scope="module")
def course() -> Course:
    return load_course(ROOT)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def roster_of(tmp_path: Path, text: str) -> Roster:
    (tmp_path / "roster.csv").write_text(text)
    return read_roster(tmp_path / "roster.csv")


def of(got: Intake, exercise: str = ATTENTION) -> dict[str, Submission]:
    return {s.learner: s for s in got.submissions if s.exercise_id == exercise}


CANVAS = {
    "berganna_340_901_self_attention.py": OTHER,
    "berganna_LATE_340_905_self_attention-1.py": CODE,
    "smithbob_341_902_work.zip": zipped({"work/module2/self_attention.py": CODE, "work/module0/matrix_calculus.py": OTHER}),
    "smithbob_341_903_notes.pdf": b"%PDF",
    "smitheve_342_text.html": b"<p>see attached</p>",
    "LATE_anon_aB3dE_904_self_attention.ipynb": b"{",
}


def test_canvas_unpacked_and_as_it_came(tmp_path: Path, course: Course) -> None:
    write(tmp_path / "all", CANVAS)
    (tmp_path / "all.zip").write_bytes(zipped(CANVAS))
    (tmp_path / "inner.zip").write_bytes(zipped({f"submissions/{name}": data for name, data in CANVAS.items()}))
    for place in ("all", "all.zip", "inner.zip"):
        got = of(read_class(tmp_path / place, course))
        assert set(got) == {"berganna_340", "smithbob_341", "smitheve_342", "anon_aB3dE"}
        anna = got["berganna_340"]
        assert (anna.source, anna.marked_late, anna.file) == (CODE, True, "self_attention.py")
        assert anna.notes == ["self_attention.py: attempt 2"]
        assert "berganna_340_901_self_attention.py (a later attempt is there)" in anna.ignored
        bob = got["smithbob_341"]
        assert (bob.source, bob.marked_late, bob.file) == (CODE, False, "work/work/module2/self_attention.py")
        assert "notes.pdf" in bob.ignored
        assert of(read_class(tmp_path / place, course), CALCULUS)["smithbob_341"].source == OTHER
        eve = got["smitheve_342"]
        assert eve.state is State.missing
        assert "smitheve_342_text.html (typed into the page, not a file)" in eve.ignored
        assert got["anon_aB3dE"].state is State.unreadable


def test_a_late_mark_is_of_its_own_file(tmp_path: Path, course: Course) -> None:
    files = {"berganna_340_1_self_attention.py": CODE, "berganna_LATE_340_2_matrix_calculus.py": CODE}
    got = read_class(write(tmp_path / "c", files), course)
    assert not of(got)["berganna_340"].marked_late
    late = of(got, CALCULUS)["berganna_340"]
    assert late.marked_late
    record = late.signed(ExerciseRecord("", CALCULUS, State.graded))
    assert "marked late where it was handed in" in record.notes


MOODLE = {
    "Anna Berg_501_assignsubmission_file/self_attention.py": CODE,
    "Anna Berg_501_assignsubmission_onlinetext/onlinetext.html": b"<p>hello",
    "Bob Smith_502_assignsubmission_file_/sub/work.zip": b"not unpacked",
    "Bob Smith_502_assignsubmission_file_/work.zip": zipped({"self_attention.py": CODE}),
    "Eve Smith_503_assignsubmission_file_self_attention.py": CODE,
    "Participant_504_assignsubmission_file/self_attention.py": CODE,
    "Bob Jones_505_assignsubmission_file/self_attention.py": CODE,
    "Bob Jones_506_assignsubmission_file/self_attention.py": OTHER,
}


def test_moodle(tmp_path: Path, course: Course) -> None:
    write(tmp_path / "all", MOODLE)
    (tmp_path / "all.zip").write_bytes(zipped(MOODLE))
    for place in ("all", "all.zip"):
        got = of(read_class(tmp_path / place, course))
        assert {name: s.source for name, s in got.items()} == {
            "Anna Berg": CODE, "Bob Smith": CODE, "Eve Smith": CODE, "Participant 504": CODE, "Bob Jones 505": CODE,
            "Bob Jones 506": OTHER,
        }  # fmt: skip
        assert any("onlinetext" in name and "typed into the page" in name for name in got["Anna Berg"].ignored)
        assert got["Bob Smith"].ignored == ["sub/"]


def test_one_folder_of_moodle_in_an_archive_is_one_learner(tmp_path: Path, course: Course) -> None:
    (tmp_path / "all.zip").write_bytes(zipped({"Anna Berg_501_assignsubmission_file/self_attention.py": CODE}))
    assert of(read_class(tmp_path / "all.zip", course))["Anna Berg"].source == CODE


def test_names_within_a_learners_archive_hand_in_for_nobody_else(tmp_path: Path, course: Course) -> None:
    forged = zipped({"berganna_340_901_self_attention.py": CODE, "Bob Smith_502_assignsubmission_file/self_attention.py": CODE})
    write(tmp_path / "c", {"eve.zip": forged, "smitheve_342_903_work.zip": forged})
    assert set(of(read_class(tmp_path / "c", course))) == {"eve", "smitheve_342"}


def test_a_name_in_doubt_is_read_for_nobody(tmp_path: Path, course: Course) -> None:
    write(tmp_path / "c", {"smith_1_340_208_work.zip": zipped({"self_attention.py": CODE})})
    (got,) = of(read_class(tmp_path / "c", course)).values()
    assert got.state is State.missing
    assert "can be read in two ways" in got.ignored[0]


def test_one_broken_archive_of_several_files_costs_only_what_it_held(tmp_path: Path, course: Course) -> None:
    write(tmp_path / "c", {"a_3_4_self_attention.py": CODE, "a_3_5_work.zip": b"PK broken", "b_6_7_self_attention.py": CODE})
    got = read_class(tmp_path / "c", course)
    assert of(got)["a_3"].source == CODE
    assert of(got)["b_6"].source == CODE
    broken = of(got, CALCULUS)["a_3"]
    assert broken.state is State.unreadable
    assert broken.cause.startswith("a_3_5_work.zip: the archive is damaged")


def test_a_folder_that_may_not_be_looked_into_stops_nobody(tmp_path: Path, course: Course, monkeypatch) -> None:
    write(tmp_path / "all", {name: CODE for name in MOODLE if name.startswith(("Anna", "Bob Smith"))})
    scandir = os.scandir

    def refused(path):
        if "Anna Berg" in str(path):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    got = of(read_class(tmp_path / "all", course))
    assert got["Anna Berg"].state is State.unreadable
    assert "Permission denied" in got["Anna Berg"].cause
    assert got["Bob Smith"].state is State.unreadable, "whose archive is none here"
    assert "it is no archive" in got["Bob Smith"].cause


def test_an_archive_that_cannot_be_opened(tmp_path: Path, course: Course) -> None:
    (tmp_path / "all.zip").write_bytes(b"nothing")
    with pytest.raises(IntakeError, match=r"all\.zip: "):
        read_class(tmp_path / "all.zip", course)
    (tmp_path / "one.zip").write_bytes(zipped({"module2/self_attention.py": CODE}))
    with pytest.raises(IntakeError, match=r"one\.zip looks like the folder of one learner"):
        read_class(tmp_path / "one.zip", course)


# --- nbgrader -------------------------------------------------------------

STAMPS = [
    ("2026-10-05 21:59:00.123456 UTC", "2026-10-05T21:59:00.123456+00:00"),
    ("2026-10-05 23:59:00.5 Europe/Oslo", "2026-10-05T21:59:00.5+00:00"),
    ("2026-10-05 21:59:00 +0200", "2026-10-05T19:59:00+00:00"),
    ("2026-10-05 21:59:00", "2026-10-05T21:59:00+00:00"),
]


@pytest.mark.parametrize(("stamp", "expected"), STAMPS)
def test_nbgraders_tree_and_its_stamps(tmp_path: Path, course: Course, stamp: str, expected: str) -> None:
    files = {
        "submitted/ada/ps1/self_attention.py": CODE, "submitted/ada/ps1/timestamp.txt": stamp.encode() + b"\n",
        "submitted/ada/ps2/matrix_calculus.py": CODE, "submitted/bob/ps1/self_attention.py": CODE,
        "gradebook.db": b"", "source/ps1/self_attention.py": OTHER,
    }  # fmt: skip
    write(tmp_path, files)
    for place in (tmp_path, tmp_path / "submitted"):
        got = read_class(place, course)
        ada = of(got)["ada"]
        assert datetime.fromisoformat(ada.submitted_at).astimezone(UTC) == datetime.fromisoformat(expected)
        assert (ada.source, ada.ignored) == (CODE, [])
        assert of(got, CALCULUS)["ada"].submitted_at == ""
        assert of(got)["bob"].submitted_at == ""
    utils = pytest.importorskip("nbgrader.utils")
    if "+" not in stamp:  # nbgrader 0.9 takes +0200 for 200 seconds
        assert utils.parse_utc(stamp).replace(tzinfo=UTC) == datetime.fromisoformat(expected), "as nbgrader reads it"


def test_a_stamp_that_is_none_is_told(tmp_path: Path, course: Course) -> None:
    write(tmp_path / "submitted", {"ada/ps1/self_attention.py": CODE, "ada/ps1/timestamp.txt": b"soon\x1b[2J"})
    got = of(read_class(tmp_path / "submitted", course))["ada"]
    assert (got.source, got.submitted_at) == (CODE, "")
    assert "holds no time that can be read: 'soon" in got.notes[0] and "\x1b" not in got.notes[0]


@pytest.mark.parametrize("name", ["class/ada/ps1", "submitted/ada", "submitted/ada/ps1/deeper"])
def test_elsewhere_a_stamp_is_the_learners_word(tmp_path: Path, course: Course, name: str) -> None:
    write(tmp_path / name, {"self_attention.py": CODE, "timestamp.txt": b"2000-01-01 00:00:00 UTC"})
    assert of(read_class(tmp_path / name.split("/")[0], course))["ada"].submitted_at == ""


# --- rosters and groups ---------------------------------------------------


def test_who_handed_in_nothing_is_there_with_the_reason(tmp_path: Path, course: Course) -> None:
    roster = roster_of(tmp_path, "id,name,canvas id\nu1,Anna Berg,340\nu2,Bob Smith,\nu3,Cyd None,\n")
    files = CANVAS | {"strangerx_999_1_self_attention.py": CODE}
    got = read_class(write(tmp_path / "c", files), course, roster)
    assert set(of(got)) == {"u1", "u2", "u3", "smitheve_342", "anon_aB3dE", "strangerx_999"}
    assert (of(got)["u1"].source, of(got)["u2"].source) == (CODE, CODE)
    assert (of(got)["u3"].state, of(got)["u3"].cause) == (
        State.missing, "Nothing of this learner was among the submissions.",
    )  # fmt: skip
    assert got.strangers == ["anon_aB3dE", "smitheve_342", "strangerx_999"]
    assert len(got.submissions) == 6 * len(course.available)


def test_an_empty_folder_with_a_roster_is_a_class_of_nothing(tmp_path: Path, course: Course) -> None:
    (tmp_path / "c").mkdir()
    roster = roster_of(tmp_path, "id\nu1\n")
    assert of(read_class(tmp_path / "c", course, roster))["u1"].state is State.missing
    with pytest.raises(IntakeError, match="holds no folder"):
        read_class(tmp_path / "c", course)


def test_a_name_of_two_learners_is_a_stranger_with_the_reason(tmp_path: Path, course: Course) -> None:
    roster = roster_of(tmp_path, "id,name\nu1,Bob Smith\nu2,Bob Smith\n")
    got = read_class(write(tmp_path / "c", {"Bob Smith/self_attention.py": CODE}), course, roster)
    assert of(got)["u1"].state is of(got)["u2"].state is State.missing
    assert got.strangers == ["Bob Smith ('Bob Smith' may be any of the learners in lines 2, 3 of the roster)"]


def test_two_works_of_one_learner_are_nobodys_guess_unless_equal(tmp_path: Path, course: Course) -> None:
    roster = roster_of(tmp_path, "id,name\nu1,Anna Berg\n")
    folder = write(tmp_path / "c", {"u1/self_attention.py": CODE, "Anna Berg/self_attention.py": CODE})
    assert of(read_class(folder, course, roster))["u1"].source == CODE
    write(folder, {"u1/self_attention.py": OTHER})
    got = of(read_class(folder, course, roster))["u1"]
    assert got.state is State.unreadable and "More than one work" in got.cause


GROUPS = "id,name,group\nu1,Ann,Team 7\nu2,Bob,Team 7\nu3,Cyd,Team 7\nu4,Dan,\n"


@pytest.mark.parametrize("name", ["Team 7", "team7", "u2", "Bob", "team7_900_1_self_attention.py", "Team 7_12_assignsubmission_file"])
def test_a_groups_work_counts_for_every_member(tmp_path: Path, course: Course, name: str) -> None:
    file = name if name.endswith(".py") else f"{name}/self_attention.py"
    got = read_class(write(tmp_path / "c", {file: CODE}), course, roster_of(tmp_path, GROUPS))
    one = of(got)["u1"]
    assert (one.source, one.mates, set(of(got)), got.strangers) == (CODE, ("u2", "u3"), {"u1", "u4"}, [])
    assert "handed in for a group: u1, u2, u3" in one.notes
    records = one.shared(one.signed(ExerciseRecord("x", ATTENTION, State.graded)))
    assert [r.learner for r in records] == ["u1", "u2", "u3"]
    assert of(got)["u4"].state is State.missing


def test_members_who_hand_in_different_works(tmp_path: Path, course: Course) -> None:
    roster = roster_of(tmp_path, GROUPS)
    folder = tmp_path / "submitted"
    write(folder, {"u1/p/self_attention.py": CODE, "u2/p/self_attention.py": OTHER})
    got = of(read_class(folder, course, roster))["u1"]
    assert got.state is State.unreadable and got.mates == ("u2", "u3")
    write(folder, {"u1/p/timestamp.txt": b"2026-10-01 10:00:00 UTC", "u2/p/timestamp.txt": b"2026-10-02 10:00:00 UTC"})
    got = of(read_class(folder, course, roster))["u1"]
    assert (got.source, got.submitted_at) == (OTHER, "2026-10-02T10:00:00+00:00")
    assert any("handed in last, so not used" in note for note in got.notes)


def test_the_same_work_twice_was_there_from_the_first_time_on(tmp_path: Path, course: Course) -> None:
    folder = tmp_path / "submitted"
    write(folder, {"u1/p/self_attention.py": CODE, "u2/p/self_attention.py": CODE})
    write(folder, {"u1/p/timestamp.txt": b"2026-10-02 10:00:00 UTC", "u2/p/timestamp.txt": b"2026-10-01 10:00:00 UTC"})
    got = of(read_class(folder, course, roster_of(tmp_path, GROUPS)))["u1"]
    assert (got.source, got.submitted_at) == (CODE, "2026-10-01T10:00:00+00:00")


def test_a_group_with_nothing_is_missing_for_all(tmp_path: Path, course: Course) -> None:
    (tmp_path / "c").mkdir()
    got = of(read_class(tmp_path / "c", course, roster_of(tmp_path, GROUPS)))
    assert (got["u1"].state, got["u1"].mates) == (State.missing, ("u2", "u3"))
    assert [r.learner for r in got["u1"].shared(got["u1"].record())] == ["u1", "u2", "u3"]
