"""Forks that judge one submission after the other: none meets what another left, and none suffers for another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llmkata.course import load_course
from llmkata.grading import executor, judges
from llmkata.grading.executor import grade_many
from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State, read_records

from .test_executor import STATE, handed_in
from .two import RIGHT, write_course

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gradings are forked on Linux")

#: Tells what it finds, and leaves behind what checks are known to change.
LEAVES = '''\
import os, random, warnings
import numpy as np
import torch
from llmkata.checks import check, points, task

@task(1)
@points(1)
def test_found(submission, rng):
    """What a check finds: told, to be compared."""
    submission.work(1)
    found = (torch.rand(1).item(), np.random.rand(), random.random(), rng.random(), len(os.listdir("/proc/self/fd")), os.getcwd(),
             os.environ.get("LEFT"), torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()["divide"], len(warnings.filters))
    check(False, str(found))

@task(1)
@points(1)
def test_leaves(submission):
    """The number is right; and much is no longer as it was."""
    submission.work(1)
    os.chdir("/")
    os.environ["LEFT"] = "here"
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    np.seterr(divide="raise")
    warnings.simplefilter("ignore")
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    check(True, "")
'''
#: Does something to the process that judges when the answer asks for it.
BREAKS = '''\
import os, time
from llmkata.checks import check, points, task

@task(1)
@points(1)
def test_right(submission):
    """The number is right."""
    got = submission.work(3)
    if got == "die":
        os._exit(3)
    if got == "hang":
        time.sleep(1000)
    check(got == 6, "not right")
'''


class Class:
    """A course whose first exercise is graded by ``graders``; ``pids`` are the forks that judged, in order."""

    def __init__(self, root, monkeypatch) -> None:
        self.root, self.pids = write_course(root / "course"), []
        start = judges.start

        def counted(*args):
            judge = start(*args)
            self.pids.append(judge.pid)
            return judge

        monkeypatch.setattr(judges, "start", counted)
        monkeypatch.setattr(executor, "_may_share", set())

    def grade(self, graders: str, *answers: str, workers: int = 1) -> list[ExerciseRecord]:
        (self.root / "graders/module1/double/test_correctness.py").write_text(graders)
        sources = [f"{RIGHT['double'].replace('2 * n', answer)}# {n}\n" for n, answer in enumerate(answers)]
        return grade_many(load_course(self.root), handed_in(*sources), out=self.root.parent / "out", workers=workers,
                          isolation="process")


@pytest.fixture
def group(tmp_path, monkeypatch):
    return Class(tmp_path, monkeypatch)


@pytest.fixture
def trusting(monkeypatch):
    """What the first submissions show is ignored: any graders may judge several in one process."""
    monkeypatch.setattr(executor._Probe, "passed", property(lambda probe: True))
    monkeypatch.setattr(executor._Probe, "wanted", lambda probe: False)


def test_a_fork_judges_many(group):
    records = group.grade(BREAKS, *["2 * n"] * 12)
    assert len(group.pids) == 1 and [r.points for r in records] == [1] * 12


def test_a_small_class_has_a_fork_for_each(group):
    """Judging one twice would cost more than it saves."""
    group.grade(BREAKS, *["2 * n"] * (executor._SHARED - 1))
    assert len(group.pids) == executor._SHARED - 1


def test_no_fork_judges_more_than_so_many(group, monkeypatch):
    monkeypatch.setattr(judges, "MOST", 5)
    records = group.grade(BREAKS, *["2 * n"] * 12)
    assert len(group.pids) == 3 and [r.points for r in records] == [1] * 12


def test_what_checks_change_is_set_back(group):
    records = group.grade(LEAVES, *["2 * n"] * 12)
    assert len(group.pids) == 1
    assert len({r.checks[0].cause for r in records}) == 1, [r.checks[0].cause for r in records]


@pytest.mark.usefixtures("trusting")
def test_what_is_not_set_back_would_be_noticed(group, monkeypatch):
    monkeypatch.setattr(judges._Surroundings, "restore", lambda self: None)
    records = group.grade(LEAVES, *["2 * n"] * 8)
    assert len({r.checks[0].cause for r in records}) > 1


def test_graders_that_keep_something_have_a_fork_for_each(group):
    records = group.grade(STATE, *["2 * n"] * 12, workers=2)
    assert [r.checks[0].outcome for r in records] == [Outcome.passed] * 12
    assert len(group.pids) == 12


def test_graders_that_were_tried_are_not_tried_again(group):
    group.grade(BREAKS, *["2 * n"] * 8)
    records = group.grade(BREAKS, *["n + n"] * 3)
    assert len(group.pids) == 2 and [r.points for r in records] == [1] * 3


@pytest.mark.usefixtures("trusting")
def test_without_the_probe_they_would_be_found_out_too_late(group):
    records = group.grade(STATE, *["2 * n"] * 8)
    assert [r.checks[0].outcome for r in records] == [Outcome.passed] + [Outcome.failed] * 7


def test_a_submission_that_does_not_do_the_same_twice_says_nothing_of_the_graders(group):
    """The first differs; the second is asked, and from then on one fork will do."""
    records = group.grade(LEAVES.replace("submission.work(1)\n    found = (", "found = (submission.work(1), "),
                          "__import__('os').getpid()", *["2 * n"] * 11)
    assert len(group.pids) == 2
    assert len({r.checks[0].cause for r in records[1:]}) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fork_that_dies_takes_one_with_it(group, workers):
    records = group.grade(BREAKS, *["2 * n"] * 4, "'die'", *["2 * n"] * 7, workers=workers)
    assert [r.state for r in records].count(State.infrastructure) == 1 and records[4].state is State.infrastructure
    assert "ended without a result" in records[4].cause and "Grade it again" in records[4].cause
    assert [r.points for r in records if r is not records[4]] == [1] * 11


def test_a_fork_that_does_not_come_back_is_ended(group, monkeypatch):
    monkeypatch.setattr(executor, "_EXTRA_SECONDS", 5.0)
    monkeypatch.setattr(executor, "_GENEROSITY", 0.0)
    records = group.grade(BREAKS, *["2 * n"] * 4, "'hang'", *["2 * n"] * 4)
    assert records[4].state is State.infrastructure and "ended by signal 9" in records[4].cause
    assert [r.points for r in records if r is not records[4]] == [1] * 8


def test_a_fork_in_which_a_grader_failed_judges_no_other(group):
    records = group.grade(BREAKS.replace("got = submission.work(3)", "got = 1 / 0"), *["2 * n"] * 9)
    assert len(group.pids) == 9 and "The grader failed: ZeroDivisionError" in records[-1].checks[0].cause


def test_forks_of_one_exercise_do_not_judge_another(group):
    given = [*handed_in(*[f"{RIGHT['double']}# {n}\n" for n in range(9)]),
             *handed_in(*[f"{RIGHT['square']}# {n}\n" for n in range(9)], exercise="module1/square")]
    records = grade_many(load_course(group.root), given, out=group.root.parent / "out", workers=1, isolation="process")
    assert len(group.pids) == 2 and all(r.points == r.max_points for r in records)


#: Grades a class of which each takes a while; arguments: the course, where records go.
RUN = r"""
import sys
from pathlib import Path
from llmkata.course import load_course
from llmkata.grading.executor import grade_many
from llmkata.grading.submission import Submission
sources = ["import time\ndef work(n):\n    time.sleep(0.2)\n    return 2 * n\n# %d" % n for n in range(100)]
given = [Submission(f"l{n}", "module1/double", s.encode(), "double.py") for n, s in enumerate(sources)]
grade_many(load_course(Path(sys.argv[1])), given, out=Path(sys.argv[2]), workers=2, isolation="process")
"""


def test_forks_end_with_who_made_them(tmp_path):
    """However that ends, and whatever they are at."""
    write_course(tmp_path / "course")
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "course"), str(tmp_path / "out")])
    try:
        file = tmp_path / "out" / "records.jsonl"
        while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= 3):
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    assert len(started) >= 3, "a template and two forks at least"
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
    assert len(read_records([Path(file)]).records) >= 3


def record(state: State = State.graded, why: str = "", **check: object) -> ExerciseRecord:
    told = {"outcome": Outcome.passed, "visibility": "hidden", "kind": "correctness", "max_points": 1.0, "points": 0.0} | check
    return ExerciseRecord("ann", "module1/double", state, cause=why, checks=[
        CheckRecord(id="t.py::test_a", title="A", task=1, tier="core", **told)])


@pytest.mark.parametrize("met", [
    record(State.infrastructure), record(flags=["odd"]), record(outcome=Outcome.not_judged, cause="The grader failed: x"),
    record(State.unreadable, "Importing the file fails. The process of the submission broke the protocol: x.")])
def test_out_of_the_ordinary(met):
    assert not judges.uneventful(met)


@pytest.mark.parametrize("met", [
    record(), record(outcome=Outcome.failed, cause="wrong"), record(outcome=Outcome.not_judged, cause="no CUDA device"),
    record(State.unreadable, "SyntaxError")])
def test_as_usual(met):
    assert judges.uneventful(met)


@pytest.mark.parametrize(("count", "probed", "collapses"), [(40, True, 0), (40, False, 1), (2000, True, 1)])
def test_memory_is_put_into_huge_pages_where_many_forks_are_to_come(monkeypatch, count, probed, collapses):
    """It takes as long as some forks do."""
    done = []
    monkeypatch.setattr(executor, "collapse", lambda: done.append(1))
    forks = executor._Forks(2, lambda *_: None, lambda: None)
    probe = executor._Probe(count if probed else 1, "of nobody")
    assert probe.given_up != probed

    class Idle:
        submission, submissions = None, []

        class wire:
            fileno = staticmethod(lambda: 99)

        def end(self):
            pass

    monkeypatch.setattr(judges, "start", lambda of, others: Idle())
    of = judges.Class(None, None, [None] * count, 0, "process", None)
    for left in range(count, 0, -32):
        forks._free(of, probe, left=left)
    assert len(done) == collapses
