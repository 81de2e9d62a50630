"""What the course's policy makes of points reaches every gradebook: lateness, attempts, extra credit, withheld checks."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import msgspec
import pytest

from llmkata.course import Course, Extension, ExtraCredit, Grading, Late
from llmkata.exports.nbgrader import write
from llmkata.exports.results import Results, results
from llmkata.records import ExerciseRecord, Outcome

from ..reports.factory import MATRIX_CALCULUS, check, course, in_progress, mastered, record
from .exporting import documents, exported

#: Records of the factory were handed in 2026-03-03 22:58 UTC: a day and two minutes later.
DUE = datetime(2026, 3, 2, 22, 56, tzinfo=UTC)
LATE = Grading("UTC", {0: DUE}, Late(10), extensions={"bob": Extension(2)})


def with_policy(grading: Grading, show_hidden: str = "always") -> Course:
    made = course().narrowed({MATRIX_CALCULUS})
    feedback = msgspec.structs.replace(made.policy.feedback, show_hidden=show_hidden)
    return msgspec.structs.replace(made, policy=msgspec.structs.replace(made.policy, grading=grading, feedback=feedback))


def late() -> Results:
    return results(with_policy(LATE), [mastered("ann"), mastered("bob")])


def table(name: str, of: Results) -> list[list[str]]:
    [content] = exported(name, of).values()
    return list(csv.reader(io.StringIO(content.decode())))


def test_lateness_costs_in_every_gradebook(tmp_path):
    of = late()
    assert [row[5] for row in table("canvas", of)[1:]] == ["20", "16", "20"], "bob has an extension"
    assert [row[3] for row in table("moodle", of)[1:]] == ["16", "20"]
    header, ann, bob = table("csv", of)
    assert dict(zip(header, ann, strict=True)).items() >= {"score": "16", "points": "20", "deduction": "20.0"}.items()
    assert dict(zip(header, bob, strict=True)).items() >= {"score": "20", "deduction": "0.0", "late": ""}.items()
    assert documents("gradescope", of)["ann/results.json"]["score"] == 16
    assert documents("prairielearn", of)[f"ann/{MATRIX_CALCULUS}/results.json"]["score"] == pytest.approx(0.8)
    from nbgrader.api import Gradebook

    write(f"sqlite:///{tmp_path}/g.db", of)
    with Gradebook(f"sqlite:///{tmp_path}/g.db") as book:
        submission = book.find_submission("matrix_calculus", "ann")
        assert (submission.score, submission.late_submission_penalty) == (20, pytest.approx(4))


def test_learners_are_told_why():
    of = late()
    told = documents("gradescope", of)
    output = told["ann/results.json"]["output"]
    assert "3 of 3 tasks. 80 % count: handed in" in output.lower() and output.endswith("20 % deducted (10 % a day).")
    assert "deducted" not in told["bob/results.json"]["output"]


@pytest.mark.parametrize(("attempts", "score"), [("best", "20"), ("last", "0")])
def test_the_attempt_that_counts(attempts, score):
    worse = record("ann", MATRIX_CALCULUS, checks=[check("test_a", 1, Outcome.failed, 20.0)], submission_sha="2",
                   submitted_at="2026-03-05T10:00:00+00:00")  # fmt: skip
    of = results(with_policy(Grading(attempts=attempts)), [mastered("ann"), worse])
    assert [row[5] for row in table("canvas", of)[2:]] == [score]


def test_stretch_tasks_on_top():
    """All 15 points of core tasks make 100 %; the 5 of a stretch task come on top."""
    of = results(with_policy(Grading(extra_credit=ExtraCredit(stretch=True))), [mastered("ann")])
    assert float(table("canvas", of)[2][5]) == pytest.approx(20 * 20 / 15)
    assert documents("prairielearn", of)[f"ann/{MATRIX_CALCULUS}/results.json"]["score"] == 1


def hidden(learner: str) -> ExerciseRecord:
    found = in_progress(learner)
    found.exercise = MATRIX_CALCULUS
    return found


@pytest.mark.parametrize(("show", "told"), [("always", True), ("never", False)])
def test_hidden_checks_that_are_withheld_are_withheld_here(show, told):
    of = results(with_policy(Grading(), show), [hidden("ann")])
    for name in ("gradescope", "exercism", "prairielearn", "junit", "json", "github", "feedback"):
        text = b"".join(exported(name, of).values()).decode()
        assert ("instead of `sqrt(d)`" in text.replace("<code>", "`").replace("</code>", "`")) is told, name
        assert ("test_attention_matches_reference" in text) is told, name
        assert "--only task_" not in text
    assert documents("gradescope", of)["ann/results.json"]["score"] == 20
