"""What was changed by hand, and what lateness costs, is in every format: each gives the percent of grades.csv."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

import msgspec
import pytest

from llmkata.course import Course, Extension, Grading, Late
from llmkata.course.by_hand import Criterion
from llmkata.exports.formats import FORMATS
from llmkata.exports.nbgrader import write
from llmkata.exports.results import Results, results
from llmkata.gradebook import counting
from llmkata.gradebook.changes import Change
from llmkata.gradebook.in_force import with_changes
from llmkata.gradebook.standing import entry
from llmkata.records import ExerciseRecord, Outcome, State
from llmkata.reports.grades import to_csv

from ..gradebook.by_hand import change, numbered
from ..reports.factory import MATRIX_CALCULUS, check, course, record
from .exporting import documents, exported, listed

#: Records of the factory were handed in a day and two minutes later.
DUE = datetime(2026, 3, 2, 22, 56, tzinfo=UTC)
EXTENDED = {name: Extension(9) for name in ("bob", "dee", "fay", "gil")}
RUBRIC = (Criterion("style", 5.0, "Names say what they hold."), Criterion("tests", 5.0))


def work(learner: str, *passed: bool) -> ExerciseRecord:
    """20 points in four checks of 8, 4, 4 (stretch) and 4 (found wrong)."""
    rows = (("test_a", 1, 8.0, "core"), ("test_b", 2, 4.0, "core"), ("test_c", 3, 4.0, "stretch"), ("test_wrong", 2, 4.0, "core"))
    checks = [
        check(name, task, Outcome.passed if ok else Outcome.failed, most, tier=tier)
        for (name, task, most, tier), ok in zip(rows, passed, strict=True)
    ]
    return record(learner, MATRIX_CALCULUS, checks=checks)


RECORDS = [
    work("ann", True, True, True, False),  # marked, given points, late
    work("bob", True, True, False, True),  # marked, in time
    record("cyd", MATRIX_CALCULUS, State.missing, cause="No matrix_calculus.py was handed in."),  # an oral exam
    work("dee", True, False, False, False),  # more is taken than is there
    record("eve", MATRIX_CALCULUS, State.infrastructure, cause="The grading child was killed."),
    work("fay", True, True, True, True),  # above 100 %
    work("gil", False, False, False, True),
    work("hal", False, False, False, True),  # late, and nothing left to deduct
]
CHANGES = [
    change("void", check="test_correctness.py::test_wrong", way="drop", text="Its limit was wrong"),
    change("adjust", "ann", points=1.5, of=16.0, text="Typo in the brief"),
    change("adjust", "ann", points=-0.5, of=16.0, text="Late in class"),
    change("rubric", "ann", points=3.0, of=5.0, criterion="style"),
    change("rubric", "ann", points=2.0, of=5.0, criterion="tests"),
    change("rubric", "bob", points=5.0, of=5.0, criterion="style"),
    # Of 20 points, as it was when that was decided.
    change("adjust", "cyd", points=5.0, of=20.0, text="Oral exam"),
    change("adjust", "dee", points=-30.0, of=16.0, text="Copied"),
    change("adjust", "fay", points=2.0, of=16.0, text="A bug found"),
    change("comment", "ann", text="The masking is elegant."),
    change("comment", "ann", text="Ask her about line 3", staff=True),
]


def a_course(changes: list[Change], **grading: object) -> Course:
    made = course().narrowed({MATRIX_CALCULUS})
    modules = tuple(
        msgspec.structs.replace(
            m, exercises=tuple(msgspec.structs.replace(e, rubric=RUBRIC) for e in m.exercises)
        )
        for m in made.modules
    )  # fmt: skip
    policy = msgspec.structs.replace(made.policy, grading=Grading(**grading))
    made = msgspec.structs.replace(made, modules=modules, policy=policy)
    return with_changes(made, numbered(*changes))


def late_course(changes: list[Change] = CHANGES) -> Course:
    return a_course(changes, timezone="UTC", deadlines={0: DUE}, late=Late(10), extensions=EXTENDED)


def view(of: Course | None = None) -> Results:
    return results(of or late_course(), RECORDS)


def grades(of: Course | None = None) -> dict[str, float]:
    """Percent of grades.csv by learner; who has none is not there."""
    made = of or late_course()
    entries = {r.learner: {r.exercise: entry(r)} for r in counting(RECORDS, made).values()}
    rows = csv.DictReader(io.StringIO(to_csv(made, entries)))
    cells = {row["learner"]: row[f"{MATRIX_CALCULUS} percent"] for row in rows}
    return {learner: float(cell) for learner, cell in cells.items() if cell}


def test_the_grades_themselves() -> None:
    assert grades() == pytest.approx({
        "ann": 100 * (8 + 4 + 4 + 3 + 2) / 26 - 20 + 100 * 1 / 26,
        "bob": 100 * (8 + 4 + 5) / 21, "cyd": 25, "dee": 0, "fay": 100 * 18 / 16, "gil": 0, "hal": 0,
    }, abs=0.005)  # fmt: skip
    assert grades(late_course([]))["ann"] == pytest.approx(60), "16 of 20, less a fifth"


def rows(name: str, of: Results, people=None) -> list[dict[str, str]]:
    [content] = exported(name, of, people).values()
    return list(csv.DictReader(io.StringIO(content.decode())))


def in_csv(of: Results) -> dict[str, float]:
    return {r["learner"]: 100 * float(r["score"]) / float(r["max_points"]) for r in rows("csv", of) if r["score"]}


def in_canvas(of: Results) -> dict[str, float]:
    most, *learners = rows("canvas", of)
    assert most["Student"] == "Points Possible"
    column = list(most)[-1]
    return {r["Student"]: 100 * float(r[column]) / float(most[column]) for r in learners if r[column]}


def in_moodle(of: Results) -> dict[str, float]:
    column = f"0.1 {of.exercises[0].title}"
    return {r["Username"]: 100 * float(r[column]) / of.maxima[MATRIX_CALCULUS] for r in rows("moodle", of) if r[column]}


def in_json(of: Results) -> dict[str, float]:
    (document,) = documents("json", of).values()
    return _of_cards(document["scorecards"])


def in_feedback(of: Results) -> dict[str, float]:
    return _of_cards(documents("feedback", of).values())


def _of_cards(cards) -> dict[str, float]:
    found = {card["learner"]: card["exercises"][0]["percent"] for card in cards}
    assert found == {card["learner"]: card["total"]["percent"] for card in cards}
    return {learner: percent for learner, percent in found.items() if percent is not None}


def in_gradescope(of: Results) -> dict[str, float]:
    made = {path.split("/")[0]: document for path, document in documents("gradescope", of).items()}
    most = of.maxima[MATRIX_CALCULUS]
    return {learner: 100 * d["score"] / most for learner, d in made.items() if d["tests"]}


def in_tests_of_gradescope(of: Results) -> dict[str, float]:
    made = {path.split("/")[0]: document["tests"] for path, document in documents("gradescope", of).items()}
    return {n: _share((t["score"], t["max_score"]) for t in tests) for n, tests in made.items() if tests}


def in_github(of: Results) -> dict[str, float]:
    found = {}
    for path, d in documents("github", of).items():
        if d["max_score"]:
            found[path.split("/")[0]] = 100 * sum(t["score"] for t in d["tests"]) / d["max_score"]
    return found


def in_classroom50(of: Results) -> dict[str, float]:
    from llmkata.exports.classroom50 import Submission, result_document

    made = {name: result_document(of.lines(name), Submission("c", "a", "t", "x", "y", "z")) for name in of.cards}
    return {name: 100 * d["score"] / d["max-score"] for name, d in made.items() if d["max-score"]}


def in_prairielearn(of: Results) -> dict[str, float]:
    made = {path.split("/")[0]: d for path, d in documents("prairielearn", of).items()}
    return {name: 100 * d["score"] if d["gradable"] else 0.0 for name, d in made.items() if name != "eve"}


def in_tests_of_prairielearn(of: Results) -> dict[str, float]:
    made = {path.split("/")[0]: d for path, d in documents("prairielearn", of).items()}
    return {n: _share((t["points"], t["max_points"]) for t in d["tests"]) for n, d in made.items() if d["gradable"] and n != "cyd"}


def in_junit(of: Results) -> dict[str, float]:
    found = {}
    for path, content in exported("junit", of).items():
        read = [{p.get("name"): p.get("value") for p in case.iter("property")} for case in ET.fromstring(content).iter("testcase")]
        if any(float(p["max_points"]) for p in read):
            # Points there are for people, with a proper minus.
            found[path.split("/")[0]] = _share((float(p["points"].replace("−", "-")), float(p["max_points"])) for p in read)
    return found


def _share(parts) -> float:
    parts = list(parts)
    return 100 * sum(score for score, _ in parts) / sum(most for _, most in parts)


HELD: dict[Callable, float] = {
    in_csv: 0.01, in_canvas: 0.01, in_moodle: 0.01, in_json: 0.01, in_feedback: 0.01, in_gradescope: 0.01,
    in_tests_of_gradescope: 0.01, in_github: 0.01, in_classroom50: 0.01, in_prairielearn: 0.01,
    in_tests_of_prairielearn: 0.01, in_junit: 0.3,
}  # fmt: skip


@pytest.mark.parametrize("read", HELD, ids=lambda read: read.__name__)
@pytest.mark.parametrize("changes", [CHANGES, []], ids=["by hand", "as graded"])
def test_every_format_gives_the_percent_of_grades_csv(read, changes) -> None:
    made = late_course(changes)
    want = grades(made)
    if read is in_prairielearn:  # which knows no more than all
        want = {learner: min(percent, 100) for learner, percent in want.items()}
    if read is in_tests_of_prairielearn:  # without work there is no test that is out of anything
        del want["cyd"]
    assert read(view(made)) == pytest.approx(want, abs=HELD[read])


def test_nbgraders_own_gradebook(tmp_path) -> None:
    from nbgrader.api import Gradebook

    write(f"sqlite:///{tmp_path}/g.db", view())
    with Gradebook(f"sqlite:///{tmp_path}/g.db") as book:
        most = book.find_assignment("matrix_calculus").max_score
        found = {}
        for submission in book.assignment_submissions("matrix_calculus"):
            found[submission.student.id] = 100 * (submission.score - submission.late_submission_penalty) / most
    assert most == view().maxima[MATRIX_CALCULUS] == 26
    assert found.pop("eve") == 0, "needs manual grading"
    assert found == pytest.approx(grades(), abs=0.01)


def test_moodles_worksheet_and_feedback(tmp_path) -> None:
    header = "Identifier,Full name,Email address,Grade,Maximum Grade,Last modified (grade),Feedback comments\n"
    names = sorted({r.learner for r in RECORDS})
    people = listed(tmp_path, header + "".join(f"Participant {i},{n.title()},{n}@x.edu,,50,,\n" for i, n in enumerate(names)))
    found = {r["Email address"][:3]: r for r in rows("moodle", view(), people)}
    percents = {name: 2 * float(row["Grade"]) for name, row in found.items() if row["Grade"]}
    want = {name: min(percent, 100) for name, percent in grades().items()}
    assert percents == pytest.approx(want, abs=0.02) and grades()["fay"] > 100, "Moodle takes no more than the maximum"
    assert "112.5 %" in found["fay"]["Feedback comments"]
    assert "The masking is elegant." in found["ann"]["Feedback comments"] and "Oral exam" in found["cyd"]["Feedback comments"]
    [content] = exported("moodle-feedback", view(), people).values()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {
            f"{n.title()}_{i}_assignsubmission_file" for i, n in enumerate(names)
        }
        html = archive.read("Ann_0_assignsubmission_file/scorecard.html").decode()
    for text in ("The masking is elegant.", "Typo in the brief", "Names say what they hold.", "Its limit was wrong"):
        assert text in html, text


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("classroom50", "moodle-feedback")])
def test_staffs_comments_are_in_no_format(name: str) -> None:
    assert b"Ask her about line 3" not in b"\n".join(exported(name, view()).values())


TELL_COMMENTS = ["csv", "json", "moodle", "feedback", "gradescope", "prairielearn", "nbgrader"]


@pytest.mark.parametrize("name", TELL_COMMENTS)
def test_comments_reach_the_learner(name: str) -> None:
    assert b"The masking is elegant." in b"\n".join(exported(name, view()).values())


@pytest.mark.parametrize("name", ["gradescope", "github", "prairielearn", "junit"])
def test_lists_of_tests_say_why(name: str) -> None:
    text = "\n".join(json.dumps(c.decode(), ensure_ascii=False) for p, c in exported(name, view()).items() if p.startswith("ann"))
    for part in ("by hand: style", "by hand: +1.5", "Typo in the brief", "Late in class", "20 % deducted"):
        assert part in text, part
    text = "\n".join(json.dumps(c.decode(), ensure_ascii=False) for p, c in exported(name, view()).items() if p.startswith("bob"))
    assert "deducted" not in text and "by hand: style" in text and "Typo" not in text


def test_what_people_gave_fails_no_run() -> None:
    from llmkata.exports.items import verdict

    lines = view().lines("fay")
    assert verdict(lines, "any") == "pass" and any("by hand" in line.name for line in lines)
    assert verdict(view().lines("dee"), "core") == "fail", "what the checks found still does"
