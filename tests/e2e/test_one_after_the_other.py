"""Right answers to every exercise earn every point whatever was judged before them in the same process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llmkata.course import load_course
from llmkata.grading import executor, judges
from llmkata.grading.executor import grade_many
from llmkata.grading.provenance import grader_hash
from llmkata.grading.submission import Submission
from llmkata.records import Outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gradings are forked on Linux")

COURSE = load_course(Path(__file__).parents[2])


@pytest.mark.parametrize("exercise", COURSE.available, ids=lambda e: e.id)
def test_what_is_right_stays_right(exercise, tmp_path, monkeypatch):
    solution = exercise.solution.read_bytes()
    wrong = exercise.stub.read_bytes() + b"\n# begun\n"
    another = min((exercise.graders_dir / "alternatives").glob("*.py")).read_bytes()
    given = [Submission(f"l{n}", exercise.id, source, f"{exercise.slug}.py")
             for n, source in enumerate((another, wrong, solution))]
    judged = judges._judged
    monkeypatch.setattr(judges, "_judged", lambda of, submission: _noting(judged(of, submission), tmp_path))
    monkeypatch.setattr(executor, "_may_share", {grader_hash(exercise)})
    first, begun, second = grade_many(COURSE, given, out=tmp_path / "out", workers=1)
    judged_in = (tmp_path / "pids").read_text().split()
    assert len(judged_in) == 3 and len(set(judged_in)) == 1, "one fork judged them all"
    for record in (first, second):
        lost = [(c.id, c.cause) for c in record.checks if c.outcome is not Outcome.passed and not c.excused]
        assert not lost and record.checks
    assert begun.points == 0


def _noting(record: bytes, folder: Path) -> bytes:
    with (folder / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return record
