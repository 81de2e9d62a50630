"""S10: keep the machine busy, so that others are late or look slow."""

import os
import signal
import threading
import time

import pytest

from ..toy.harness import link_to

WORK = "def work(n):\n    t = 0\n    for i in range(n): t += i\n    return t\n"
#: Not running for so long is what a machine full of neighbours does to a process.
HELD_UP = 0.6


@pytest.fixture
def link():
    link = link_to(WORK, request_seconds=0.4)
    yield link
    link.close()


def held_up(link, n):
    """-> (the answer, seconds by the wall clock) of a call during which the process is not let run."""
    link.open()
    pid = link.process.inner_pid
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(HELD_UP, os.kill, (pid, signal.SIGCONT)).start()
    return link.call(None, "work", (n,), {}), time.monotonic() - began


def test_a_deadline_counts_ones_own_time(link):
    answer, seconds = held_up(link, 1000)
    assert answer == 499_500 and seconds > HELD_UP > link.request_seconds


def test_time_that_is_measured_is_ones_own(link):
    from llmkata.outside.link import Meter

    link.open()
    link.meter = Meter(None)
    held_up(link, 1000)
    assert link.meter.calls[0].cpu_seconds < 0.2 < HELD_UP


def test_by_the_wall_clock_it_would_be_late(link):
    assert held_up(link, 1000)[1] > link.request_seconds
