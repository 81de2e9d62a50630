"""T1: replace the clocks."""

import time

import pytest

from .arena import LOOP, race, shared

PATCH = '''
import os, resource, time
def _still(*_):
    return 0.0
for _name in ("time", "perf_counter", "process_time", "thread_time", "monotonic", "clock_gettime", "time_ns",
              "perf_counter_ns", "process_time_ns"):
    setattr(time, _name, _still)
os.times = resource.getrusage = _still
work = loop
'''


@pytest.fixture
def arena(tmp_path):
    return race(tmp_path)


def test_the_clock_is_read_outside(arena, earns_nothing):
    failed = earns_nothing(arena.grade(LOOP + PATCH), "test_faster")
    assert "it must be at least 3 times" in failed.cause and failed.measures[0].trust == "outside"


def test_honest_work_passes(arena):
    assert arena.stands()


def test_a_clock_of_the_same_process_stands_still(monkeypatch):
    monkeypatch.setattr(time, "process_time", time.process_time)  # put back at the end
    work = shared(LOOP + "import time\ntime.process_time = lambda: 0.0\nwork = loop")["work"]
    start = time.process_time()
    work(3)
    assert time.process_time() - start == 0
