"""Changes by hand on a class: what they write, what they move, that they stay, and who did what."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkata.records import RecordFile, State

SUMS = "module0/sums"
LATER = "2026-02-01T00:00:00+00:00"


@pytest.fixture(autouse=True)
def _name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATA_USER", "Prof. Q")


@pytest.fixture
def run(toy: Path, make_record) -> Path:
    """The folder of a run: ada has 4 of 8 points, bob handed in nothing, cyd has 8 of 8."""
    folder = toy / "report"
    RecordFile(folder / "records.jsonl").append(
        make_record(SUMS, "pass 1", "fail 2 stretch", learner="ada", submission_sha="a"),
        make_record(SUMS, learner="bob", state=State.missing, cause="No sums.py was handed in."),
        make_record(SUMS, "pass 1", "pass 2 stretch", learner="cyd", submission_sha="c"),
    )
    return folder


@pytest.fixture
def again(run: Path, make_record) -> Callable[..., None]:
    """``again("ada", "pass 1", "pass 2 stretch")``: work that was graded again."""

    def grade(learner: str, *checks: str, sha: str = "a", graded_at: str = LATER) -> None:
        record = make_record(SUMS, *checks, learner=learner, submission_sha=sha, graded_at=graded_at)
        RecordFile(run / "records.jsonl").append(record)

    return grade


def rubric(toy: Path, text: str = "[{name: readability, points: 2, about: Names say what they hold.}, {name: tests, points: 4}]") -> None:
    """Declare a rubric for 0.1."""
    file = toy / "course.yaml"
    file.write_text(file.read_text().replace("mission: Add numbers.,", f"mission: Add numbers., rubric: {text},"))


def by_hand_release(toy: Path) -> None:
    file = toy / "course.yaml"
    file.write_text(file.read_text().replace("weights: {core: 1, stretch: 1}}", "weights: {core: 1, stretch: 1}, grading: {release: by_hand}}"))


def cells(run: Path, learner: str) -> dict[str, str]:
    """What grades.csv has of 0.1 for a learner."""
    with (run / "grades.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["learner"] == learner)
    return {name.removeprefix(f"{SUMS} "): cell for name, cell in row.items()}


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]


# -- points ----------------------------------------------------------------------------------------------------------


def test_points_by_hand_are_in_every_view(kata, run) -> None:
    done = kata("adjust", "ada", "0.1", "--points", "+2", "--reason", "The brief was wrong")
    assert done.status == 0, done.err
    assert "#1 adjust ada, 0.1: +2 points (The brief was wrong)" in done.out
    assert re.search(r"ada\s+0\.1\s+50 %\s+75 %\s+50 % → 75 %", done.out)
    assert "1 of 3 learners moves" in done.out
    table = kata("report", "report").out
    assert "75 % ±" in table and table.count("±") == 1
    assert (cells(run, "ada")["percent"], cells(run, "ada")["by_hand"]) == ("75.0", "2.0")
    assert cells(run, "ada")["by_hand_reason"] == "The brief was wrong" and cells(run, "cyd")["by_hand"] == ""
    card = (run / "learners" / "ada.html").read_text()
    assert "+2<small> by hand" in card and "The brief was wrong" in card and "75 % count" in card
    assert "Prof. Q" not in card, "who did it is for staff"
    page = (run / "index.html").read_text()
    assert "75 ±" in page and "Prof. Q" in page and "+2 points" in page
    assert "by hand" not in (run / "learners" / "cyd.html").read_text()
    kata("export", "csv", "report")
    rows = {row["learner"]: row for row in csv.DictReader((run / "export" / "results.csv").open(newline=""))}
    assert (rows["ada"]["score"], rows["ada"]["points"], rows["ada"]["by_hand"]) == ("6", "4", "2")
    assert rows["cyd"]["score"] == "8"


def test_points_by_hand_survive_regrading(kata, run, again) -> None:
    kata("adjust", "ada", "0.1", "--points", "+2", "--reason", "Oral exam")
    again("ada", "fail 1", "pass 2 stretch")
    again("ada", "fail 1", "fail 2 stretch", graded_at="2026-03-01T00:00:00+00:00")
    kata("report", "report")
    assert (cells(run, "ada")["points"], cells(run, "ada")["percent"]) == ("0.0", "25.0")


def test_points_for_one_who_handed_in_nothing(kata, run) -> None:
    kata("adjust", "bob", "0.1", "--points", "+4", "--reason", "Shown in class")
    kata("report", "report")
    assert (cells(run, "bob")["state"], cells(run, "bob")["percent"]) == ("missing", "50.0")
    assert "missing, 50 % ±" in kata("report", "report").out


def test_no_more_is_taken_than_there_is(kata, run) -> None:
    kata("adjust", "ada", "0.1", "--points", "-7.5", "--reason", "Copied")
    kata("report", "report")
    assert cells(run, "ada")["percent"] == "0.0"
    kata("adjust", "ada", "0.1", "--points", "+1", "--reason", "A little was own work")
    kata("report", "report")
    assert cells(run, "ada")["percent"] == "0.0", "they add up: 4 - 7.5 + 1"


def test_taken_back(kata, run) -> None:
    kata("adjust", "ada", "0.1", "--points", "+2", "--reason", "Wrong person")
    done = kata("undo", "1", "--reason", "it was bob")
    assert done.status == 0 and re.search(r"ada\s+0\.1\s+75 %\s+50 %", done.out)
    kata("report", "report")
    assert (cells(run, "ada")["percent"], cells(run, "ada")["by_hand"]) == ("50.0", "")
    assert [c["action"] for c in log(run)] == ["adjust", "undo"], "the log keeps both"
    assert "[taken back by #2]" in kata("log").out.replace("\n", " ")
    for number in ("1", "2", "9"):
        assert kata("undo", number).status == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eve", "0.1", "--points", "+2", "--reason", "x"), "'eve' is nobody there"),
        (("adaa", "0.1", "--points", "+2", "--reason", "x"), "did you mean ada?"),
        (("ada", "0.2", "--points", "+2", "--reason", "x"), "nobody began 0.2"),
        (("ada", "0.1", "--points", "2", "--reason", "x"), "with its sign"),
        (("ada", "0.1", "--points", "+0", "--reason", "x"), "with its sign"),
        (("ada", "0.1", "--points", "+2", "--reason", " "), "must say why"),
        (("ada", "0.1", "--points", "+2", "--reason", "x", "--in", "nowhere"), "holds no records.jsonl"),
    ],
)
def test_what_cannot_be_done_changes_nothing(kata, run, words, said) -> None:
    done = kata("adjust", *words)
    assert done.status == 2 and said in done.err
    assert not (run / "changes.jsonl").exists()


# -- marks and comments ----------------------------------------------------------------------------------------------


def test_marks_by_the_rubric(kata, toy, run, again) -> None:
    rubric(toy)
    done = kata("rubric", "0.1", "ada", "readability=1.5", "tests=0", "--comment", "Short names")
    assert done.status == 0, done.err
    assert re.search(r"ada\s+0\.1\s+50 %\s+39\.3 %", done.out), "(4 + 1.5 + 0) of (8 + 2 + 4)"
    kata("report", "report")
    assert cells(run, "ada")["points"] == "5.5" and cells(run, "ada")["max_points"] == "14.0"
    assert cells(run, "cyd")["percent"] == "100.0", "who is not marked yet is held to the checks alone"
    assert (cells(run, "ada")["state"], cells(run, "cyd")["state"]) == ("passed", "mastered"), "no mark is a failure"
    card = (run / "learners" / "ada.html").read_text()
    assert "1.5 / 2" in card and "0 / 4" in card and "Names say what they hold." in card and "Short names" in card
    assert "not marked" in (run / "learners" / "cyd.html").read_text()
    again("ada", "pass 1", "pass 2 stretch")
    kata("report", "report")
    assert cells(run, "ada")["points"] == "9.5", "a mark survives regrading"
    kata("rubric", "0.1", "ada", "readability=2")
    kata("report", "report")
    assert cells(run, "ada")["points"] == "10.0", "the last mark counts"
    assert re.search(r"ada\s+2\s+0\s+cyd\s+·\s+·", kata("rubric", "0.1").out)


def test_marks_of_many_from_a_table(kata, toy, run) -> None:
    rubric(toy)
    (toy / "marks.csv").write_text("id,readability,tests,comment\nada,1,2,ok\ncyd,2,,\n")
    done = kata("rubric", "0.1", "--from", "marks.csv")
    assert done.status == 0 and [c["action"] for c in log(run)] == ["rubric"] * 3 + ["comment"], done.err
    (toy / "marks.csv").write_text("id,readability,tests\nada,3,2\neve,2,\n")
    done = kata("rubric", "0.1", "--from", "marks.csv")
    assert done.status == 2 and len(log(run)) == 4
    first, second = done.err.replace("kata: ", "").splitlines()[:2]
    assert first.startswith("marks.csv:2:") and "from 0 to 2, not 3" in first
    assert second.startswith("marks.csv:3:") and "'eve' is nobody there" in second


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ada", "readability=3"), "from 0 to 2"),
        (("ada", "readability=-1"), "from 0 to 2"),
        (("ada", "readability=much"), "not much"),
        (("ada", "elegance=1"), "no criterion 'elegance'"),
        (("ada", "readability"), "NAME=POINTS"),
        (("ada",), "name what is marked"),
        (("bob", "readability=1"), "is missing, there is nothing to mark"),
    ],
)
def test_marks_that_cannot_be(kata, toy, run, words, said) -> None:
    rubric(toy)
    done = kata("rubric", "0.1", *words)
    assert done.status == 2 and said in done.err and not (run / "changes.jsonl").exists()


def test_an_exercise_without_a_rubric_says_how_to_declare_one(kata, run) -> None:
    done = kata("rubric", "0.1", "ada", "readability=1")
    assert done.status == 2 and "rubric: [{name: readability" in done.err


def test_comments(kata, toy, run) -> None:
    assert kata("comment", "ada", "0.1", "Nicely <b>short</b>.\n\nSee `add`.").status == 0
    assert kata("comment", "ada", "0.1", "Ask her about line 3", "--staff").status == 0
    (toy / "text.md").write_text("From a file.\n")
    assert kata("comment", "ada", "0.1", "--file", "text.md").status == 0
    kata("report", "report")
    card = (run / "learners" / "ada.html").read_text()
    assert "Nicely &lt;b&gt;short&lt;/b&gt;." in card and "<code>add</code>" in card and "From a file." in card
    page = (run / "index.html").read_text()
    assert "Ask her" in page
    kata("export", "feedback", "report")
    kata("export", "csv", "report")
    kata("export", "moodle", "report")
    handed_out = [*(run / "learners").iterdir(), *(run / "export").rglob("*.*")]
    assert all("Ask her" not in path.read_text() for path in handed_out)
    for path in ("feedback/ada/scorecard.md", "results.csv", "moodle.csv"):
        assert "From a file." in (run / "export" / path).read_text(), path
    assert kata("comment", "ada", "0.1").status == 2
    assert kata("comment", "ada", "0.1", " ").status == 2
    assert len(log(run)) == 3


# -- voided checks ---------------------------------------------------------------------------------------------------


def test_a_check_is_voided_only_when_it_is_said(kata, run) -> None:
    done = kata("void", "0.1", "test_1", "--drop")
    assert done.status == 0, done.err
    assert re.search(r"ada\s+0\.1\s+50 %\s+100 %\s+50 % → 100 %", done.out) and "cyd" not in done.out
    assert "Nothing is changed yet" in done.out and not (run / "changes.jsonl").exists()
    kata("report", "report")
    assert cells(run, "ada")["percent"] == "50.0"


def test_dropped_for_all_and_taken_back(kata, run, again) -> None:
    done = kata("void", "0.1", "test_1", "--drop", "--reason", "Asked for too much", "--yes")
    assert done.status == 0 and "1 of 3 learners moves" in done.out
    kata("report", "report")
    assert (cells(run, "ada")["percent"], cells(run, "ada")["max_points"]) == ("100.0", "4.0")
    assert (cells(run, "cyd")["percent"], cells(run, "ada")["state"]) == ("100.0", "mastered")
    card = (run / "learners" / "ada.html").read_text()
    assert "This check was found wrong. It counts for nobody: Asked for too much" in card and ">voided<" in card
    assert "test_1 voided: counts for nobody" in (run / "index.html").read_text()
    assert "Checks not judged" not in (run / "index.html").read_text()
    kata("export", "csv", "report")
    assert {row["max_points"] for row in csv.DictReader((run / "export" / "results.csv").open(newline=""))} == {"4"}
    again("ada", "pass 1", "fail 2 stretch", graded_at="2026-03-01T00:00:00+00:00")
    kata("report", "report")
    assert cells(run, "ada")["percent"] == "100.0", "it survives regrading"
    kata("undo", "1")
    kata("report", "report")
    assert cells(run, "ada")["percent"] == "50.0"


def test_points_to_all(kata, run) -> None:
    kata("void", "0.1", "test_correctness.py::test_1", "--full", "--reason", "Its input was wrong", "--yes")
    kata("report", "report")
    assert (cells(run, "ada")["percent"], cells(run, "ada")["max_points"]) == ("100.0", "8.0")
    assert cells(run, "bob")["percent"] == "0.0", "not to those who handed in nothing"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("test_1",), "--drop"),
        (("test_1", "--drop", "--full"), "--drop"),
        (("test_9", "--drop"), "has a check 'test_9'"),
        (("test_1", "--drop", "--yes"), "must say why"),
    ],
)
def test_checks_that_cannot_be_voided(kata, run, words, said) -> None:
    done = kata("void", "0.1", *words)
    assert done.status == 2 and said in done.err and not (run / "changes.jsonl").exists()


# -- frozen and released ---------------------------------------------------------------------------------------------


def test_frozen_grades_stay_and_what_waits_is_told(kata, run, again) -> None:
    assert kata("freeze").status == 0
    again("ada", "pass 1", "pass 2 stretch")
    done = kata("adjust", "cyd", "0.1", "--points", "-1", "--reason", "Late in class")
    assert "0.1 is frozen: this waits" in done.out and re.search(r"cyd\s+0\.1\s+100 %\s+87\.5 %", done.out)
    done = kata("report", "report")
    assert "2 grades wait, since they are frozen: ada 0.1 50 % → 100 %, cyd 0.1 100 % → 87.5 %" in done.out
    assert (cells(run, "ada")["percent"], cells(run, "cyd")["percent"]) == ("50.0", "100.0")
    assert "Late in class" not in (run / "learners" / "cyd.html").read_text()
    assert "1 change waits" in (run / "index.html").read_text()
    assert "[waits: frozen]" in kata("log").out
    done = kata("freeze")
    assert "Nothing is changed yet" in done.out and len(log(run)) == 2
    done = kata("freeze", "0.1", "--yes", "--reason", "second look")
    assert done.status == 0 and "frozen: 0.1" in done.out
    done = kata("report", "report")
    assert (cells(run, "ada")["percent"], cells(run, "cyd")["percent"]) == ("100.0", "87.5")
    assert "wait, since" not in done.out


def test_the_policy_moves_no_frozen_grade(kata, toy, run) -> None:
    kata("freeze")
    file = toy / "course.yaml"
    file.write_text(file.read_text().replace("stretch: 1}}", "stretch: 0}}"))
    done = kata("report", "report")
    assert cells(run, "ada")["percent"] == "50.0" and "ada 0.1 50 % → 100 %" in done.out
    kata("undo", "1")
    kata("report", "report")
    assert cells(run, "ada")["percent"] == "100.0"


def test_nothing_of_learners_before_it_is_released(kata, toy, run) -> None:
    kata("report", "report")
    assert (run / "learners" / "ada.html").is_file()
    by_hand_release(toy)
    done = kata("report", "report")
    assert "not released: 0.1" in done.out and "release-grades 0.1" in done.out
    assert not list((run / "learners").iterdir()), "cards of an earlier run go"
    staff = (run / "staff" / "ada.html").read_text()
    assert "Staff copy" in staff and 'href="staff/ada.html"' in (run / "index.html").read_text()
    done = kata("export", "csv", "report")
    assert done.status == 2 and "nothing is released" in done.err
    assert kata("export", "csv", "report", "--unreleased").status == 0
    done = kata("release-grades", "0.1")
    assert done.status == 0, done.err
    kata("report", "report")
    assert (run / "learners" / "ada.html").is_file() and (run / "staff" / "ada.html").is_file()
    assert kata("export", "csv", "report").status == 0


def test_released_grades_change_by_another_release_alone(kata, toy, run, again) -> None:
    by_hand_release(toy)
    kata("release-grades")
    again("ada", "pass 1", "pass 2 stretch")
    done = kata("report", "report")
    assert "1 grade waits" in done.out and "release-grades 0.1" in done.out
    assert '"percent": 50' in (run / "learners" / "ada.json").read_text()
    assert kata("freeze").status == 2, "a freeze would put it into force in silence"
    assert "ada" in kata("release-grades", "--yes").out
    kata("report", "report")
    assert '"percent": 100' in (run / "learners" / "ada.json").read_text()
    kata("undo", "2")
    kata("undo", "1")
    kata("report", "report")
    assert not (run / "learners" / "ada.html").exists(), "a release can be taken back"


def test_release_needs_a_course_that_releases_by_hand(kata, run) -> None:
    done = kata("release-grades")
    assert done.status == 2 and "policy.grading.release" in done.err


# -- the log ---------------------------------------------------------------------------------------------------------


def test_grades_that_moved_by_grading_are_logged_once(kata, run, again) -> None:
    kata("report", "report")
    again("ada", "pass 1", "pass 2 stretch")
    again("cyd", "pass 1", "pass 2 stretch", sha="c")
    again("bob", "pass 1", "pass 2 stretch", sha="b")
    done = kata("report", "report")
    assert "1 grade moved" in done.out and "ada 0.1 50 % → 100 %" in done.out
    kata("report", "report")
    (line,) = log(run)
    assert (line["action"], line["learner"], line["before"], line["after"]) == ("regrade", "ada", 50, 100)
    assert line["text"] == "the same file, graded again" and line["by"] == "Prof. Q"
    assert kata("undo", "1").status == 2


def test_the_log_and_its_filters(kata, toy, run, monkeypatch) -> None:
    assert "nothing was changed" in kata("log").out
    kata("adjust", "ada", "0.1", "--points", "+2", "--reason", "one")
    monkeypatch.setenv("KATA_USER", "Tutor")
    kata("comment", "cyd", "0.1", "two")
    kata("void", "0.1", "test_1", "--drop", "--reason", "three", "--yes")

    def numbers(*words: str) -> list[int]:
        return [json.loads(line)["number"] for line in kata("log", "--json", *words).out.splitlines()]

    assert numbers() == [1, 2, 3]
    assert numbers("--learner", "ada") == [1, 3], "what is about the exercise is about her"
    assert numbers("--by", "tutor") == [2, 3]
    assert numbers("--action", "void", "--action", "adjust") == [1, 3]
    assert numbers("--exercise", "0.1") == [1, 2, 3] and numbers("--exercise", "0.2") == []
    assert numbers("--since", "2020-01-01") == [1, 2, 3] and numbers("--since", "2999-01-01") == []
    out = kata("log").out
    assert "Prof. Q" in out and "Tutor" in out and "+2 points (one)" in out and "2 points" in out
    assert kata("log", "--action", "nonsense").status == 2 and kata("log", "--since", "soon").status == 2


def test_learners_by_the_names_of_the_roster(kata, run) -> None:
    (run / "roster.csv").write_text("id,name,email\nada,Ada Berg,a@x.org\nbob,Bo Berg,\ncyd,Cy Roe,\n")
    done = kata("comment", "cy roe", "0.1", "Good")
    assert done.status == 0 and "#1 comment cyd" in done.out, done.err
    done = kata("comment", "berg", "0.1", "Good")
    assert done.status == 2 and "did you mean ada (Ada Berg) or bob (Bo Berg)?" in done.err
    assert "comment cyd" in kata("log", "--learner", "Cy Roe").out
    assert "none of the 1 changes" in kata("log", "--learner", "a@x.org").out
    done = kata("log", "--learner", "Nobody")
    assert done.status == 2 and "'Nobody' is nobody there" in done.err, "what is about all would look like an answer"


def test_a_move_that_one_digit_does_not_show(kata, run) -> None:
    done = kata("adjust", "ada", "0.1", "--points", "+0.002", "--reason", "Rounding")
    assert re.search(r"ada\s+0\.1\s+50\.00 %\s+50\.02 %\s+50\.00 % → 50\.02 %", done.out), done.out


def test_a_log_that_cannot_be_read_stops_everything(kata, run) -> None:
    kata("adjust", "ada", "0.1", "--points", "+2", "--reason", "one")
    kata("adjust", "ada", "0.1", "--points", "+1", "--reason", "two")
    text = (run / "changes.jsonl").read_text()
    (run / "changes.jsonl").write_text(text.replace('"number":1', '"number":"x"'))
    for words in (("report", "report"), ("export", "csv", "report"), ("log",), ("adjust", "ada", "0.1", "--points", "+1", "--reason", "x")):
        done = kata(*words)
        assert done.status == 2 and "changes.jsonl:1" in done.err, words
    (run / "changes.jsonl").write_text(text[:-5])
    assert kata("report", "report").status == 0
    assert cells(run, "ada")["by_hand"] == "2.0", "what was cut off was never in force"
    kata("adjust", "ada", "0.1", "--points", "+3", "--reason", "three")
    assert [c["number"] for c in log(run)] == [1, 2]
