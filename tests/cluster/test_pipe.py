"""Messages between worker and helper, and how each notices that the other has gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from llmkata.cluster.pipe import Gone, hung_up, receive, send


@pytest.fixture
def pipe():
    ends = list(os.pipe())
    yield ends
    for fd in ends:
        os.close(fd)


def close(ends, which):
    os.close(ends[which])
    ends[which] = os.open(os.devnull, os.O_RDWR)  # closed again by the fixture


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_what_is_sent_arrives(pipe, size):
    message = os.urandom(size)
    sender = threading.Thread(target=lambda: [send(pipe[1], message), send(pipe[1], b"next")])
    sender.start()
    assert receive(pipe[0]) == message and receive(pipe[0]) == b"next"
    sender.join()


def test_a_closed_pipe(pipe):
    assert not hung_up(pipe[0])
    os.write(pipe[1], b"\0\0\0")
    close(pipe, 1)
    assert hung_up(pipe[0])
    with pytest.raises(Gone):
        receive(pipe[0])


def test_nobody_reads(pipe):
    close(pipe, 0)
    with pytest.raises(Gone):
        send(pipe[1], b"hello")


def test_silence(pipe):
    with pytest.raises(TimeoutError):
        receive(pipe[0], seconds=0.01)
    send(pipe[1], b"late")
    assert receive(pipe[0], seconds=0.01) == b"late"


def test_a_dead_process_whose_child_holds_the_pipe(pipe):
    # The child of a dead process goes on until its own standard input is closed.
    code = "import os, sys; os.fork() or sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe[1], stdin=subprocess.PIPE)
    close(pipe, 1)
    try:
        with pytest.raises(Gone, match="dead"):
            receive(pipe[0], alive=lambda: process.poll() is None)
        assert not hung_up(pipe[0])  # by the pipe alone nothing would be known
    finally:
        process.stdin.close()
