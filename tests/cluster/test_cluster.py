"""A real scheduler and two real workers: what comes back, what is lost, who is turned away."""

from __future__ import annotations

import os
import re
import signal
import sys
from types import FunctionType, ModuleType

import msgspec
import psutil
import pytest

from llmkata.cluster import client as client_module
from llmkata.cluster.bundle import pack
from llmkata.cluster.client import ClusterError, connected
from llmkata.cluster.service import inspect
from llmkata.course import load_course
from llmkata.grading.executor import grade_many
from llmkata.grading.submission import Submission
from llmkata.records import State, read_records

from ..grading.two import RIGHT, WRONG, write_course
from .conftest import started

DOUBLE, SQUARE = "module1/double", "module1/square"

#: Tells what a learner's code finds of the cluster; right where it finds nothing.
SPY = """\
import os, socket

def work(n):
    seen = [f"{name}={value}" for name, value in os.environ.items() if "DASK" in name or "tcp://" in value]
    for pid in (os.getppid(), CLUSTER):
        try:
            if b"cluster" in open(f"/proc/{pid}/cmdline", "rb").read():
                seen.append(f"/proc/{pid}")
        except OSError:
            pass
    for path in (STORE, STORE + "/" + DIGEST, STORE + "/" + DIGEST + "/graders/module1/double"):
        try:
            seen += os.listdir(path)
        except OSError:
            pass
    try:
        seen.append(str(socket.create_connection(ADDRESS, timeout=1)))
    except OSError:
        pass
    if seen:
        raise RuntimeError("SEEN " + " ".join(seen))
    return 2 * n
"""


def alike(record):
    """A record without times, and without how long it took."""
    raw = msgspec.to_builtins(record)

    def cut(value):
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items() if k not in ("graded_at", "seconds", "cpu_seconds")}
        return [cut(v) for v in value] if isinstance(value, list) else value

    return cut(raw)


def spy(cluster, course):
    host, port = cluster.address.removeprefix("tcp://").split(":")
    known = {
        "ADDRESS": (host, int(port)), "CLUSTER": cluster.process.pid, "DIGEST": pack(course).digest,
        "STORE": f"{cluster.folder}/llmkata-bundles-{os.getuid()}",
    }  # fmt: skip
    return "\n".join(f"{name} = {value!r}" for name, value in known.items()) + "\n" + SPY


def handed_in(cluster, course):
    sources = {
        "ann": RIGHT["double"], "bob": WRONG, "cai": "import os\nos._exit(3)\n", "dan": "def work(n):\n    return undefined\n",
        "eve": 'def work(n):\n    raise NotImplementedError("task 1: everything")\n', "fay": "raise ValueError('no')\n",
        "gus": "import os, signal\n\n\ndef work(n):\n    os.kill(os.getpid(), signal.SIGKILL)\n", "spy": spy(cluster, course),
    }  # fmt: skip
    submissions = [
        Submission(name, DOUBLE, source.encode(), f"{name}/double.py", "2026-10-01T10:00:00+02:00", ["notes.txt"], ["a note"])
        for name, source in sources.items()
    ]
    team = Submission("hal", SQUARE, RIGHT["square"].encode(), "square.py", mates=("ivy",))
    return [*submissions, team]


def test_records_are_those_of_a_local_run(cluster, course, tmp_path):
    submissions = handed_in(cluster, course)
    here = grade_many(course, submissions, out=tmp_path / "here", seed=5)
    arrived = []
    with connected(course, cluster.address, "sandbox") as workers:
        there = workers.grade_many(submissions, out=tmp_path / "there", seed=5, progress=arrived.append)
        workers.grade_many(submissions[:3], out=tmp_path / "again", seed=5)
        events = [event for _, event in workers._client.get_events("llmkata")]
        seen = workers._client.run(exec, spy(cluster, course) + "\nwork(1)\n", {}, on_error="return")
        changed = load_course(write_course(tmp_path / "changed"))
        (changed.exercise("double").graders_dir / "test_correctness.py").write_text("# other\n")
        held = [workers._client.run(inspect, pack(c).digest) for c in (course, changed)]

    assert list(map(alike, there)) == list(map(alike, here))
    states = {r.learner: (r.state, r.points) for r in there}
    assert states["ann"] == states["spy"] == states["hal"] == (State.graded, 4)
    assert states["bob"] == states["dan"] == (State.graded, 0) and states["fay"][0] is State.unreadable
    assert states["eve"][0] is State.not_started and len(set(map(str, states.values()))) >= 4

    written = read_records([tmp_path / "there/records.jsonl"]).records
    assert sorted((r.learner, r.exercise) for r in written) == sorted(
        [(s.learner, s.exercise_id) for s in submissions] + [("ivy", SQUARE)])
    assert len(arrived) == len(submissions)

    # The bundle went to each worker once, whatever was graded; another course would go there anew.
    assert [event["unpacked"] for event in events] == [pack(course).digest] * 2
    assert all(found.has_bundle for found in held[0].values())
    assert len(held[1]) == 2 and not any(found.has_bundle for found in held[1].values())
    # The control of the spy: in the worker itself it sees all of it.
    assert len(seen) == 2 and all(re.search("SEEN .*/proc/.*test_correctness.*<socket", str(error)) for error in seen.values())


#: Ends the process that grades beside the Dask worker: in plain processes nothing keeps it from that.
POISON = """\
import os, signal

def work(n):
    template = open(f"/proc/{os.getppid()}/stat").read()
    os.kill(int(template.rpartition(")")[2].split()[1]), signal.SIGKILL)
    return 2 * n
"""
SLOW = "import time\n\n\ndef work(n):\n    time.sleep(0.5)\n    return 2 * n\n"


def test_whatever_dies_everybody_else_is_graded_once(cluster, course, tmp_path):
    submissions = [Submission(f"slow{n:02}", DOUBLE, SLOW.encode() + b"# %d\n" % n) for n in range(12)]
    submissions.append(Submission("poison", SQUARE, POISON.encode()))
    killed = []

    def kill(record):
        """The first time that a worker has something to do, end it."""
        busy = [address for address, keys in workers._client.processing().items() if keys]
        if busy and not killed:
            pid = workers._client.run(os.getpid, workers=busy[:1])[busy[0]]
            killed.append((pid, [child.pid for child in psutil.Process(pid).children(recursive=True)]))
            os.kill(pid, signal.SIGKILL)

    with connected(course, cluster.address, "process") as workers:
        records = workers.grade_many(submissions, out=tmp_path, progress=kill)
    assert killed
    lost = {r.learner: r.cause for r in records if r.state is not State.graded}
    assert list(lost) == ["poison"] and "lost 2 times" in lost["poison"] and "ended by signal 9" in lost["poison"]
    assert all(r.points == 4 for r in records if r.learner != "poison")
    written = [r.learner for r in read_records([tmp_path / "records.jsonl"]).records]
    assert sorted(written) == sorted(s.learner for s in submissions)
    # What hung on the worker that died is gone, too, once the submission in progress is over.
    children = [psutil.Process(pid) for pid in killed[0][1] if psutil.pid_exists(pid)]
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_who_has_other_versions_is_turned_away_before_anything_is_sent(cluster, course, monkeypatch):
    here = client_module.versions() | {"torch": "9.9"}
    monkeypatch.setattr(client_module, "versions", lambda: here)
    monkeypatch.setattr(client_module, "enlist", None)
    with pytest.raises(ClusterError, match=r"no worker of tcp.* can grade:\n  tcp://\S+, tcp://\S+: torch \S+ there, 9.9 here") as e:
        connected(course, cluster.address, "sandbox").__enter__()
    assert e.value.step.startswith("python -m pip install")


def test_a_worker_without_llmkata_is_turned_away(cluster, tmp_path, monkeypatch):
    course = load_course(write_course(tmp_path))
    course.exercise("double").brief.write_text("# Another one\n")  # which no worker has taken on before
    module = ModuleType("only_here")
    module.inspect = FunctionType(alike.__code__, {}, "inspect")
    module.inspect.__module__, module.inspect.__qualname__ = "only_here", "inspect"
    monkeypatch.setitem(sys.modules, "only_here", module)
    monkeypatch.setattr(client_module, "inspect", module.inspect)
    with pytest.raises(ClusterError, match="llmkata does not run there .*No module named") as e:
        connected(course, cluster.address, "sandbox").__enter__()
    assert "pip install" in e.value.step


def test_ctrl_c_leaves_nothing_behind():
    with started(1) as running:
        assert len(running.family()) >= 1
        status, left = running.interrupt()
        assert status == 0 and left == []
