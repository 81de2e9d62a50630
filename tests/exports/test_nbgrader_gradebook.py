"""The gradebook of nbgrader, read back by nbgrader: its API and its command ``export``."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from llmkata.exports.nbgrader import write
from llmkata.records import Outcome, State

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, SELF_ATTENTION, check, course, mastered, record
from .exporting import exported, listed, view


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nbgrader")
    people = listed(folder, "learner,name,email\nann,Ann van Lee,ann@x.edu\n")
    path = folder / "gradebook.db"
    path.write_bytes(exported("nbgrader", view(), people)["gradebook.db"])
    return path


@pytest.fixture
def book(database):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{database}") as opened:
        yield opened


def test_nbgraders_api_reads_it(book):
    assert [(a.name, a.max_score) for a in book.assignments] == [
        ("kv_cache", 20), ("matrix_calculus", 20), ("self_attention", 43),
    ]  # fmt: skip
    ann = book.find_student("ann")
    assert (ann.first_name, ann.last_name, ann.email) == ("Ann van", "Lee", "ann@x.edu")
    grades = {g.name: (g.score, g.max_score) for g in book.find_submission("self_attention", "ann").notebooks[0].grades}
    assert grades == {"task-1": (3, 9), "task-2": (7, 12), "task-3": (6, 6), "task-4": (4, 4), "task-5": (0, 6), "task-6": (0, 6)}
    assert str(book.find_submission("self_attention", "ann").timestamp) == "2026-03-03 22:58:00"
    assert not book.find_submission("self_attention", "ann").needs_manual_grade


def test_the_comment_says_what_the_card_says(book):
    remark = book.find_comment("feedback", "self_attention", "self_attention", "ann").comment
    assert remark.startswith("2.1 Self-Attention Mechanism: in progress, 20 of 43 points")
    assert "sqrt(d)" in remark and "debug: q.shape" not in remark
    assert "syntax error" in book.find_comment("feedback", "kv_cache", "kv_cache", "ann").comment


def test_where_the_grader_failed_a_person_must_grade(book):
    submission = book.find_submission("matrix_calculus", "eve")
    assert submission.needs_manual_grade
    assert [grade.auto_score for grade in submission.notebooks[0].grades] == [None] * 3


def test_what_was_not_handed_in_is_no_submission(book):
    from nbgrader.api import MissingEntry

    with pytest.raises(MissingEntry):
        book.find_submission("self_attention", "=1+1")


def test_nbgrader_export_reads_it(database):
    environment = os.environ | {"PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "nbgrader", "export", "--db", f"sqlite:///{database}", "--to", "out.csv"]
    done = subprocess.run(command, cwd=database.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (database.parent / "out.csv").open() as file:
        told = {(row["assignment"], row["student_id"]): row for row in csv.DictReader(file)}
    assert len(told) == 3 * 4
    expected = {"matrix_calculus": "20.0", "self_attention": "20.0", "kv_cache": "0.0"}
    assert {name: told[name, "ann"]["score"] for name in expected} == expected
    assert told["kv_cache", "bob"]["score"] == "20.0"


@pytest.mark.parametrize(("weight", "score"), [(3.0, 5.0), (1 / 3, 15.0)])
def test_what_counts_less_or_more_than_the_points(tmp_path, weight, score):
    """10 of 20 points, all of core tasks: where stretch tasks weigh more it counts less, and the other way round."""
    from nbgrader.api import Gradebook

    from llmkata.exports.results import results

    checks = [check("test_a", 1, points=10), check("test_b", 6, Outcome.failed, 10, tier="stretch")]
    of = results(course(stretch=weight).narrowed({SELF_ATTENTION}), [record("ann", checks=checks)])
    write(f"sqlite:///{tmp_path}/g.db", of)
    with Gradebook(f"sqlite:///{tmp_path}/g.db") as book:
        submission = book.find_submission("self_attention", "ann")
        assert submission.score - submission.late_submission_penalty == pytest.approx(score)


def test_an_exercise_nobody_was_graded_on(tmp_path):
    from nbgrader.api import Gradebook

    of = view([record("ann", KV_CACHE, State.unreadable, cause="x"), mastered("ann")], maxima={KV_CACHE: 30.0})
    write(f"sqlite:///{tmp_path}/g.db", of)
    with Gradebook(f"sqlite:///{tmp_path}/g.db") as book:
        assert book.find_assignment("kv_cache").max_score == 30
        assert book.find_submission("kv_cache", "ann").score == 0
        assert book.find_submission(MATRIX_CALCULUS.rpartition("/")[2], "ann").score == 20
