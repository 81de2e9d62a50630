"""``kata regrade --scheduler`` as it is typed, on a real scheduler: what it writes down and what it says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest

from llmkata.records import read_records

from ..grading.two import CHECK, RIGHT, WRONG, hand_in, write_course
from .test_cluster import alike


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A course, and a run graded by checks that were edited since: bob's answer was wrong and is right now."""
    root = write_course(tmp_path_factory.mktemp("regraded"))
    hand_in(root / "class", "ann", **RIGHT)
    hand_in(root / "class", "bob", double=WRONG, square=RIGHT["square"])
    hand_in(root / "class", "cai", double="def work(n):\n    raise ValueError('no')\n")
    kata(root, "grade", "class", "--out", "run", "--seed", "5")
    (root / "graders/module1/double/test_correctness.py").write_text(
        CHECK.format(points=4, want=6).replace("(3), 6", "(3), 7")
    )
    return root


def kata(root, *words, status=0):
    """What a command printed, and said of what is wrong."""
    command = [sys.executable, "-m", "llmkata.cli.main", *words]
    done = subprocess.run(command, cwd=root, env=os.environ | {"NO_COLOR": "1", "COLUMNS": "120"},
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def copied(root, name):
    shutil.copytree(root / "run", root / name)
    return root / name / "records.jsonl"


def test_records_and_moves_are_those_of_a_local_regrade(cluster, graded):
    there, here = copied(graded, "there"), copied(graded, "here")
    before = there.read_bytes()
    said = [
        kata(graded, "regrade", "there", "--changed", "--scheduler", cluster.address)[0],
        kata(graded, "regrade", "here", "--changed", "--workers", "1")[0],
    ]
    added = [read_records([path]).records[before.count(b"\n"):] for path in (there, here)]
    by_learner = [sorted(map(alike, records), key=lambda r: r["learner"]) for records in added]
    assert by_learner[0] == by_learner[1]
    assert [(r.learner, r.exercise, r.points) for r in sorted(added[0], key=lambda r: r.learner)] == [
        ("ann", "module1/double", 0), ("bob", "module1/double", 4), ("cai", "module1/double", 0)]  # fmt: skip
    assert {r.provenance.seed for r in added[0]} == {5}, "the one each was graded with"
    assert there.read_bytes().startswith(before)
    last = [text.splitlines()[-1] for text in said]
    assert last[0] == last[1] == "2 of 3 learners move, mean total 50.00 % → 50.00 %"
    # By today's checks now: nobody is asked, wherever that is.
    assert "nothing to grade again" in kata(graded, "regrade", "there", "--changed", "--scheduler", "tcp://127.0.0.1:1")[0]


def test_nobody_there_and_nothing_is_written(graded):
    """The control: the very same command, with an address at which no scheduler is."""
    records = copied(graded, "alone")
    before = records.read_bytes()
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        _, said = kata(graded, "regrade", "alone", "--changed", "--scheduler", address, status=2)
    assert f"kata: no Dask scheduler answers at {address}" in said and "Next: " in said and "Traceback" not in said
    assert records.read_bytes() == before
