"""Many submissions judged by checks that were collected once: each as if it were alone."""

from __future__ import annotations

import os
import sys

import msgspec
import pytest

from llmkata.course import load_course
from llmkata.grading import executor
from llmkata.grading.executor import grade_many
from llmkata.grading.runner import grade_one, with_collected
from llmkata.grading.submission import Submission
from llmkata.records import ExerciseRecord, Outcome, RecordFile, State

from ..toy.harness import COURSE, SOLUTION, TOY, solution_with
from .test_kept import plain
from .two import RIGHT, WRONG, write_course

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gradings are forked on Linux")

#: A grader that would notice another submission's being judged in the same process.
STATE = '''\
import os, random
import numpy as np
import torch
from llmkata.checks import check, points, same, task

seen = []

@task(1)
@points(1)
def test_alone(submission):
    """Nothing of another submission is there."""
    seen.append(submission.work(3))
    check(len(seen) == 1, f"{len(seen)} were judged here")

@task(1)
@points(1)
def test_state(submission, rng):
    """What a check finds: told, to be compared."""
    submission.work(1)
    check(False, f"{torch.rand(1).item()} {np.random.rand()} {random.random()} {rng.random()} {len(os.listdir('/proc/self/fd'))} {os.getcwd()}")
'''


def counted(records: list[ExerciseRecord]) -> list[ExerciseRecord]:
    """Records without what was weighed, not counted: it differs a little from run to run."""
    return [msgspec.structs.replace(r, checks=[
        msgspec.structs.replace(c, measures=[], headroom=None) if c.id.endswith("test_row_sums_peak") else c for c in r.checks])
        for r in records]


def handed_in(*sources: str, exercise: str = "module1/double") -> list[Submission]:
    return [Submission(f"l{n}", exercise, source.encode(), "double.py") for n, source in enumerate(sources)]


@pytest.fixture
def two(tmp_path):
    """A course whose first exercise looks for what others left."""
    root = write_course(tmp_path)
    (root / "graders/module1/double/test_correctness.py").write_text(STATE)
    return load_course(root)


def test_no_submission_meets_another(two, tmp_path):
    sources = [f"{RIGHT['double']}# {n}\n" for n in range(3)]
    records = grade_many(two, handed_in(*sources), out=tmp_path / "out", isolation="process")
    assert [r.checks[0].outcome for r in records] == [Outcome.passed] * 3
    assert len({r.checks[1].cause for r in records}) == 1, [r.checks[1].cause for r in records]


def test_a_second_submission_in_one_process_would_be_noticed(two):
    """The control of the test above: the checks are collected once, so what they keep is kept."""
    exercise, records = two.exercise("double"), []

    def judge(collected):
        for _ in range(2):
            records.append(grade_one(two, exercise, RIGHT["double"].encode(), isolation="process", collected=collected))

    assert not with_collected(exercise, judge)
    assert [r.checks[0].outcome for r in records] == [Outcome.passed, Outcome.failed]


def test_collected_checks_are_run_as_they_are_asked_for():
    """Visible ones alone, slow ones last, each told when it is judged: as when pytest is started for one submission."""
    runs = {}

    def judge(collected):
        for name, more in {"all": {}, "visible": {"visible_only": True},
                           "last": {"visible_only": True, "last": ["test_toy.py::test_two_numbers"]}}.items():
            told = []
            record = grade_one(COURSE, TOY, SOLUTION.encode(), transport="loopback", collected=collected,
                               on_check=lambda check, told=told: told.append(check.id), **more)
            assert [c.id for c in record.checks] == told
            runs[name] = told

    assert not with_collected(TOY, judge)
    alone = grade_one(COURSE, TOY, SOLUTION.encode(), transport="loopback", visible_only=True)
    assert runs["visible"] == [c.id for c in alone.checks] == runs["all"][:2] and len(runs["all"]) > 2
    assert runs["last"] == runs["visible"][::-1]


def test_records_are_those_of_one_graded_alone(tmp_path):
    wrong = (
        solution_with("def softmax(x):\n    return x.exp() / x.exp().sum(0, keepdim=True)"),
        solution_with("def project(x, w):\n    return (x @ w + x @ w) / 2"),
        solution_with("def magic(n):\n    raise KeyError(n)"),
        "def (:\n",
    )
    given = [Submission(f"l{n}", TOY.id, s.encode(), "toy.py") for n, s in enumerate((SOLUTION, *wrong))]
    many = grade_many(COURSE, given, out=tmp_path, workers=2, seed=5)
    alone = [s.signed(grade_one(COURSE, TOY, s.source, learner=s.learner, file=s.file, seed=5)) for s in given]
    for one, other in zip(plain(counted(many)), plain(counted(alone)), strict=True):
        assert msgspec.json.decode(one) == msgspec.json.decode(other)
    assert len({tuple(c.outcome for c in r.checks) for r in many}) > 2


def test_checks_that_cannot_be_collected_are_told_in_each_record(two, tmp_path):
    (two.root / "graders/module1/double/test_correctness.py").write_text("import nothing_of_that_name\n")
    given = [*handed_in(RIGHT["double"], WRONG), *handed_in(RIGHT["square"], exercise="module1/square")]
    records = grade_many(two, given, out=tmp_path / "out", isolation="process")
    assert [r.state for r in records] == [State.infrastructure, State.infrastructure, State.graded]
    assert all("nothing_of_that_name" in r.cause for r in records[:2])


def test_two_submissions_of_one_learner_have_a_record_each(two, tmp_path):
    one, other = handed_in(RIGHT["double"], WRONG)
    other = Submission(one.learner, other.exercise_id, other.source, other.file)
    records = grade_many(two, [one, other], out=tmp_path / "out", isolation="process")
    assert len({r.submission_sha for r in records}) == 2


def test_what_is_printed_meanwhile_is_not_lost_and_what_is_raised_arrives(two, capsys):
    assert not with_collected(two.exercise("double"), lambda collected: print("to whoever started it"))
    assert "to whoever started it" in capsys.readouterr().out

    def interrupt(collected):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_collected(two.exercise("double"), interrupt)


def test_no_descriptor_is_left(two, tmp_path):
    grade_many(two, handed_in(RIGHT["double"]), out=tmp_path / "out", isolation="process")
    before = len(os.listdir("/proc/self/fd"))
    grade_many(two, handed_in(*[f"{RIGHT['double']}# {n}\n" for n in range(4)]), out=tmp_path / "out", isolation="process")
    assert len(os.listdir("/proc/self/fd")) == before


# Records on their way to the file


@pytest.fixture
def appended(monkeypatch):
    """How many records were written at a time."""
    sizes, append = [], RecordFile.append
    monkeypatch.setattr(RecordFile, "append", lambda file, *records: (sizes.append(len(records)), append(file, *records))[1])
    return sizes


def test_records_are_written_some_at_a_time(tmp_path, appended):
    sources = [f"{RIGHT['double']}# {n}\n" for n in range(40)]
    records = grade_many(load_course(write_course(tmp_path)), handed_in(*sources), out=tmp_path / "out", isolation="process")
    assert [r.learner for r in records] == [f"l{n}" for n in range(40)]
    assert sum(appended) == 40 and len(appended) < 20, appended
    assert sorted(r.learner for r in RecordFile(tmp_path / "out/records.jsonl").read().records) == sorted(r.learner for r in records)


def test_no_record_waits_for_the_next_submission(tmp_path, appended, monkeypatch):
    """Each is on the disk while the next one is graded, where that takes its time."""
    course = load_course(write_course(tmp_path))
    monkeypatch.setattr(executor, "_SHARED", 100)
    slow = f"import time\ntime.sleep(1.5)\n{RIGHT['double']}"
    known = []
    grade_many(course, handed_in(RIGHT["double"], slow, slow + "\n"), out=tmp_path / "out", isolation="process",
               progress=lambda record: known.append(len(appended)))
    assert known == [0, 1, 2] and appended == [1, 1, 1]


def test_what_is_broken_off_keeps_what_was_graded(tmp_path):
    def stop(record):
        raise KeyboardInterrupt

    sources = [f"{RIGHT['double']}# {n}\n" for n in range(3)]
    with pytest.raises(KeyboardInterrupt):
        grade_many(load_course(write_course(tmp_path)), handed_in(*sources), out=tmp_path / "out", isolation="process",
                   progress=stop)
    assert len(RecordFile(tmp_path / "out/records.jsonl").read().records) == 1


def test_what_can_be_done_meanwhile_comes_before_anything_is_written(tmp_path):
    out, order = tmp_path / "out", []
    grade_many(load_course(write_course(tmp_path)), handed_in(RIGHT["double"]), out=out, isolation="process",
               meanwhile=lambda: order.append(("meanwhile", out.exists())), sure=lambda: order.append(("sure", out.exists())),
               progress=lambda record: order.append(("graded", out.exists())))
    assert order == [("meanwhile", False), ("sure", False), ("graded", True)]
