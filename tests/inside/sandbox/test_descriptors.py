"""Nothing of the parent's descriptors, terminal or priority is left."""

from __future__ import annotations

import os
import socket

import pytest

from llmkata.inside.sandbox import libc


def read_descriptor(fd):
    return os.pread(fd, 100, 0).decode()


def test_an_inherited_descriptor_is_closed(ground):
    with open(ground.secret) as secret:
        assert "Bad file descriptor" in ground.run(read_descriptor, secret.fileno()).error


def test_control_an_inherited_descriptor_bypasses_every_other_layer(ground):
    with open(ground.secret) as secret:
        trial = ground.run(read_descriptor, secret.fileno(), disable=["close_range"])
    assert trial.value == "expected: 42"
    assert "close_range" not in trial.entered.layers


def test_descriptors_are_closed_without_close_range(ground, monkeypatch):
    original = libc.syscall
    monkeypatch.setattr(libc, "syscall", lambda name, *a: original("none" if name == "close_range" else name, *a))
    with open(ground.secret) as secret:
        trial = ground.run(read_descriptor, secret.fileno())
    assert "Bad file descriptor" in trial.error
    assert trial.entered.has("close_range")


def standard_streams():
    return [os.read(0, 10).decode(), os.readlink("/proc/self/fd/1")]


def test_standard_streams_are_dev_null_unless_kept(ground):
    assert ground.run(standard_streams).value == ["", "/dev/null"]


def session_and_score():
    with open("/proc/self/oom_score_adj") as file:
        return [os.getsid(0), int(file.read())]


def test_own_session_and_first_to_go_when_memory_runs_out(ground):
    # Without a pid namespace the session can be compared with ours.
    session, score = ground.run(session_and_score, disable=["pidns"]).value
    assert session != os.getsid(0) and score == 1000


def test_control_without_the_layer_the_session_is_the_parents(ground):
    session, score = ground.run(session_and_score, disable=["pidns", "session"]).value
    assert session == os.getsid(0) and score != 1000


@pytest.mark.parametrize("isolation", ["sandbox", "process"])
def test_the_channel_still_works(ground, isolation):
    ours, theirs = socket.socketpair()

    def echo():
        with socket.socket(fileno=theirs.fileno()) as channel:
            channel.sendall(channel.recv(100).upper())

    pid, channel = ground.start(echo, keep=(theirs.fileno(),), isolation=isolation)
    theirs.close()
    ours.sendall(b"request")
    assert ours.recv(100) == b"REQUEST"
    assert ours.recv(100) == b"", "the reaper must not hold the channel open"
    os.waitpid(pid, 0)
    channel.close()
    ours.close()
