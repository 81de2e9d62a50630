"""``kata regrade`` and ``kata merge`` as they are typed; a run that is killed for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from llmkata.authoring.audit.judge import forget
from llmkata.course import load_course
from llmkata.grading import provenance
from llmkata.records import read_records

from ..grading.two import CHECK, RIGHT, WRONG, hand_in, write_course


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two learners, in the current folder."""
    write_course(tmp_path)
    hand_in(tmp_path / "class", "ann", **RIGHT)
    hand_in(tmp_path / "class", "bob", double=WRONG, square=RIGHT["square"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


GRADE = ("grade", "class", "--out", "run", "--isolation", "process", "--workers", "1")


def edit(root, slug, text):
    """As between two commands: what a process has read of the graders is forgotten."""
    (root / f"graders/module1/{slug}/test_correctness.py").write_text(text)
    provenance._grader_hashes.clear()
    forget(load_course(root).exercise(slug))


def test_only_the_exercise_whose_checks_changed(kata, two):
    assert kata(*GRADE).status == 0
    regrade = ("regrade", "run", "--changed", "--isolation", "process")
    said = kata(*regrade)
    assert said.status == 0 and "4 submissions are judged by today's checks already\nnothing to grade again" in said.out
    # The check that was too strict takes bob's answer now.
    edit(two, "double", CHECK.format(points=4, want=6).replace("(3), 6", "(2), 4"))
    records = (two / "run/records.jsonl").read_bytes()
    said = kata(*regrade, "--dry-run")
    assert "module1/double: 2 submissions, its checks or the framework changed" in said.out and "square" not in said.out
    assert (two / "run/records.jsonl").read_bytes() == records
    said = kata(*regrade)
    assert said.status == 0, said.err
    assert said.out.splitlines()[-1] == "1 of 2 learners moves, mean total 75 % → 100 %"
    assert ["bob", "1.1", "0", "%", "100", "%", "50", "%", "→", "100", "%"] in [line.split() for line in said.out.splitlines()]
    added = read_records([two / "run/records.jsonl"]).records[4:]
    assert sorted((r.learner, r.exercise) for r in added) == [("ann", "module1/double"), ("bob", "module1/double")]
    assert "nothing to grade again" in kata(*regrade).out


def test_files_that_nobody_touched_are_told_as_one(kata, two):
    stub = (two / "exercises/module1/square/square.py").read_text()
    for name in ("ann", "bob", "cem"):
        hand_in(two / "class", name, square=stub)
    assert kata(*GRADE, "--seed", "7").status == 0
    regrade = ("regrade", "run", "--changed", "--isolation", "process")
    assert "5 submissions are judged by today's checks already\nnothing to grade again" in kata(*regrade).out
    edit(two, "square", CHECK.format(points=4, want=9) + "\n# edited\n")
    said = kata(*regrade, "--dry-run")
    assert "3 files that nobody had touched" in said.out and "module1/square:" not in said.out
    edit(two, "double", CHECK.format(points=4, want=6).replace("(3), 6", "(2), 4"))
    said = kata(*regrade)
    assert said.status == 0 and ["bob", "1.1", "0", "%", "100", "%", "0", "%", "→", "100", "%"] in [
        line.split() for line in said.out.splitlines()
    ], "totals are those of the pages, without what nobody began"


def test_all_of_one_exercise_when_asked_for(kata, two):
    kata(*GRADE)
    said = kata("regrade", "run", "square", "--isolation", "process")
    assert "module1/square: 2 submissions, asked for" in said.out and "double" not in said.out.split("submissions")[0]
    assert said.out.rstrip().endswith("no grade moves")


def test_times_of_submission_stay(kata, two):
    (two / "times.csv").write_text("id,submitted at\nann,2026-10-01T10:00:00+02:00\nbob,2026-10-02T10:00:00+02:00\n")
    kata(*GRADE, "--times", "times.csv")
    kata("regrade", "run", "double", "--isolation", "process")
    records = [r for r in read_records([two / "run/records.jsonl"]).records if r.exercise == "module1/double"]
    assert len(records) == 4
    assert len({(r.learner, r.submitted_at) for r in records}) == 2 and all(r.submitted_at for r in records)


def test_what_is_not_kept_is_told(kata, two):
    kata(*GRADE)
    for path in (two / "run/sources").iterdir():
        path.unlink()
    said = kata("regrade", "run", "--isolation", "process")
    assert "4 submissions are not kept in run," in said.err and "ann: module1/double" in said.err
    assert "nothing to grade again" in said.out


def test_parts_put_together(kata, two):
    for i in (1, 2):
        said = kata(*GRADE[:3], f"part{i}", *GRADE[4:], "--shard", f"{i}/2")
        assert said.status == 0 and f"part {i} of 2: 2 submissions" in said.out and not (two / f"part{i}/index.html").exists()
    said = kata("merge", "whole", "part1", "part2")
    assert said.status == 0 and "4 records added from 2 parts" in said.out and (two / "whole/index.html").is_file()
    assert kata("merge", "part1", "part1").status == 2
    assert "holds no records.jsonl" in kata("merge", "whole", "class").err
    assert "must be I/N with I from 1 to N" in kata(*GRADE, "--shard", "3/2").err


SLOW = "import time\ntime.sleep(0.3)\n"


def test_a_killed_run_goes_on_where_it_was(kata, two):
    """kill -9 of the whole process group: nothing of what was graded is lost, and nothing is graded twice."""
    for i in range(8):
        hand_in(two / "class", f"learner{i}", double=f"{SLOW}{RIGHT['double']}# {i}\n")
    command = [sys.executable, "-m", "llmkata.cli.main", *GRADE]
    run = subprocess.Popen(command, cwd=two, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = two / "run/records.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and (not records.exists() or records.read_bytes().count(b"\n") < 12):
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    before = read_records([records]).records
    assert 12 <= len(before) < 20, "it was killed in the middle"
    provenance.judging_hash.cache_clear()  # of the framework as that process saw it
    said = kata(*GRADE)
    assert said.status == 0, said.err
    after = read_records([records]).records
    assert after[:len(before)] == before
    assert len({(r.learner, r.exercise) for r in after}) == len(after) == 20
