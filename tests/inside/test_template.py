"""The warm interpreter: it forks for several masters, outlives them, and ends their workers with them."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from llmkata.outside import process
from llmkata.outside.process import Process, StartedTemplate, Template, TemplateFailed, forked, template
from llmkata.outside.worker import WorkerLink

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="templates fork on Linux")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(pid)


@pytest.fixture
def branch(monkeypatch):
    """A branch of the shared template in its place."""
    made = template("base").branch()
    monkeypatch.setattr(process, "_templates", {"base": made})
    yield made
    made.close()


def works() -> bool:
    link = WorkerLink("learner", "learner.py", b"def f(x): return x + 1")
    try:
        return link.call(None, "f", (1,), {}) == 2
    finally:
        link.close()


STEP = b"""
import sys
import torch

def f():
    before = "torch._dynamo" in sys.modules
    torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1).step()
    return before, "torch._dynamo" in sys.modules
"""


@pytest.mark.parametrize(("profile", "there"), [("base", False), ("optim", True), ("matplotlib", True), ("transformers", True)])
def test_what_training_imports_is_there_for_those_who_train_alone(profile, there):
    link = WorkerLink("learner", "learner.py", STEP, profile=profile)
    try:
        assert link.call(None, "f", (), {}) == (there, True)
    finally:
        link.close()


def test_workers_end_with_whoever_asked_for_them(branch):
    """A grader that was killed leaves nothing behind, not even a learner's loop without end."""
    abandoned = Process("base", {})
    pids = {abandoned.pid, abandoned.inner_pid}
    assert all(map(alive, pids))
    branch.close()
    assert all(map(gone, pids))


def test_somebody_who_leaves_in_the_middle_is_no_ones_loss(branch):
    for message in (b'{"op": "fork", "policy": {}}', b'{"op": "reap", "pid": 1}'):
        master = branch.branch()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(master._control, [message], [theirs.fileno()])
            master.close()
    assert works()


def test_two_masters(branch):
    other = branch.branch()
    pid, channel = other.fork({"scratch": "/nonexistent"})
    channel.close()
    assert other.reap(pid)["status"] is not None and other.reap(pid) == {"status": None, "cpu": 0.0}
    other.close()
    assert works()


def test_a_forked_child_takes_its_branches_with_it():
    template("base").wait_ready()
    read, write = os.pipe()
    pid = forked(lambda: os.write(write, b"yes" if works() else b"no"))
    os.close(write)
    assert os.read(read, 10) == b"yes"
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0
    assert works()


def test_a_forked_child_never_goes_on_as_its_parent():
    def breaks():
        raise KeyboardInterrupt

    _, status = os.waitpid(forked(breaks), 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_a_profile_that_does_not_exist_says_so():
    broken = StartedTemplate("paint")
    with pytest.raises(TemplateFailed, match="(?s)profile 'paint' did not start.*no profile is called 'paint'; there are base"):
        broken.wait_ready()
    assert broken.ended() or broken._process.wait(10) is not None
    broken.close()
    assert not os.path.exists(broken.config_dir)


def test_a_template_that_died_is_told_and_replaced(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Dead(Template):
        def __init__(self):
            super().__init__("base", ours, "/nonexistent", True)

        def ended(self):
            return True

        def close(self):
            pass

    theirs.close()
    dead = Dead()
    for ask in (lambda: dead.fork({}), dead.branch):
        with pytest.raises(TemplateFailed, match="profile 'base' ended"):
            ask()
    assert dead.reap(1) == {"status": None, "cpu": 0.0}
    monkeypatch.setattr(process, "_templates", {"base": dead})
    monkeypatch.setattr(process, "StartedTemplate", lambda profile: f"a new one of {profile}")
    assert template("base") == "a new one of base"
    ours.close()


@pytest.fixture
def own(monkeypatch):
    """No template yet; those started are ended."""
    monkeypatch.setattr(process, "_templates", {})
    monkeypatch.setattr(process, "_retired", [])
    monkeypatch.setattr(process.atexit, "register", lambda what: None)
    yield
    process.close_templates()


def test_a_template_that_has_grown_is_replaced_and_ends_when_nobody_needs_it(own, monkeypatch):
    grown = template("base")
    grown.wait_ready()
    assert template("base") is grown, "the first look is what growth is measured by"
    branch, kept = grown.branch(), Process("base", {})
    monkeypatch.setattr(process, "_GROWTH_BYTES", -1)
    fresh = template("base")
    monkeypatch.setattr(process, "_GROWTH_BYTES", 256 << 20)
    assert fresh is not grown and works() and template("base") is fresh
    # A worker that it forked and a grading fork's branch go on with it.
    assert alive(kept.pid) and not grown.ended()
    pid, channel = branch.fork({"scratch": "/nonexistent"})
    channel.close()
    assert branch.reap(pid)["status"] is not None
    branch.close()
    time.sleep(0.1)
    assert not grown.ended(), "its worker is still there"
    assert kept.kill()["status"] is not None
    assert grown._process.wait(10) == 0
    assert template("base") is fresh and not process._retired and not os.path.exists(grown.config_dir)


def test_a_template_that_has_not_grown_stays(own, monkeypatch):
    monkeypatch.setattr(process, "_GROWTH_BYTES", 32 << 20)
    first = template("base")
    assert not first.grown(), "while it imports it grows"
    first.wait_ready()
    assert works() and works() and template("base") is first


def test_what_is_retired_is_ended_with_the_others(own, monkeypatch):
    grown = template("base")
    grown.wait_ready()
    template("base")
    branch = grown.branch()
    monkeypatch.setattr(process, "_GROWTH_BYTES", -1)
    assert template("base") is not grown
    assert not grown.ended()
    process.close_templates()
    assert grown.ended() and not process._retired
    branch.close()
