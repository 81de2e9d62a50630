"""Frames over descriptors: numbered, bounded, patient for as long as they are told."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from llmkata.wire import UNTRUSTED, Channel, Closed, Kind, Late, Limits, Until, WireError
from llmkata.wire.frames import _HEADER, _MAGIC


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours.fileno(), ours.fileno(), UNTRUSTED), Channel(theirs.fileno(), theirs.fileno(), UNTRUSTED), theirs


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield Channel(read, write, UNTRUSTED)
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            pass


def test_a_frame_arrives_as_it_was(pair):
    a, b, _ = pair
    a.send(Kind.request, 7, b"body")
    a.send(Kind.result, 2**63, b"")
    assert b.receive(Until(5)) == (Kind.request, 7, b"body")
    assert b.receive() == (Kind.result, 2**63, b"")


def test_large_frames_both_ways(pair):
    a, b, _ = pair
    body = os.urandom(3 << 20)
    for sender, receiver in ((a, b), (b, a)):
        thread = threading.Thread(target=sender.send, args=(Kind.request, 1, body, Until(20)))
        thread.start()
        assert receiver.receive(Until(20))[2] == body
        thread.join()


def test_pending(pair):
    a, b, theirs = pair
    assert not a.pending()
    b.send(Kind.result, 1, b"")
    assert a.pending()
    a.receive()
    assert not a.pending()
    theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(Closed):  # the end is no answer
        a.pending()


@pytest.mark.parametrize(("header", "reason"), [
    (_HEADER.pack(b"KAT0", 3, 1, 0), "does not hold a frame"),
    (_HEADER.pack(_MAGIC, 99, 1, 0), "unknown frame kind"),
    (_HEADER.pack(_MAGIC, 3, 1, UNTRUSTED.max_frame + 1), "exceeds the limit"),
])
def test_headers_that_lie(pair, header, reason):
    a, _, theirs = pair
    theirs.sendall(header)
    with pytest.raises(WireError, match=reason):
        a.receive(Until(5))


def test_a_long_frame_is_refused_before_it_is_read(pair):
    _, _, theirs = pair
    small = Channel(pair[0].read_fd, pair[0].write_fd, Limits(max_frame=10))
    theirs.sendall(_HEADER.pack(_MAGIC, 3, 1, 11))
    with pytest.raises(WireError, match="exceeds the limit of 10"):
        small.receive(Until(5))


def test_the_end_is_told(pair):
    a, _, theirs = pair
    theirs.sendall(_HEADER.pack(_MAGIC, 3, 1, 100) + b"half")
    theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(Closed):
        a.receive(Until(5))
    theirs.close()
    with pytest.raises(Closed):
        for _ in range(2):  # the first may still fit into the buffer of a socket nobody reads
            a.send(Kind.request, 1, b"x", Until(5))


def test_bytes_that_drip_do_not_buy_time(pair):
    """Every byte that comes does not start the patience again."""
    a, _, theirs = pair
    stop = threading.Event()

    def drip():
        for byte in _HEADER.pack(_MAGIC, 3, 1, 1000) + b"x" * 1000:
            if stop.is_set():
                return
            theirs.sendall(bytes([byte]))
            time.sleep(0.02)

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    with pytest.raises(Late):
        a.receive(Until(0.3))
    stop.set()
    thread.join()
    assert time.monotonic() - began < 10  # the drip alone takes 20 s


def test_silence_is_late(pair):
    with pytest.raises(Late):
        pair[0].receive(Until(0.05))
    with pytest.raises(Late):
        pair[0].receive(Until(0))


def test_nobody_reads_a_socket(pair):
    with pytest.raises(Late):
        pair[0].send(Kind.request, 1, bytes(8 << 20), Until(0.2))


def test_nobody_reads_a_pipe(pipe):
    with pytest.raises(Late):
        pipe.send(Kind.request, 1, bytes(1 << 20), Until(0.2))


def test_patience_of_ones_own(pair):
    class Twice:
        asked = 0

        def left(self):
            self.asked += 1
            return 0.01 if self.asked <= 2 else 0.0

    patience = Twice()
    with pytest.raises(Late):
        pair[0].receive(patience)
    assert patience.asked == 3


def test_close_twice(pipe):
    pipe.close()
    pipe.close()
    with pytest.raises(Closed):
        pipe.receive()
