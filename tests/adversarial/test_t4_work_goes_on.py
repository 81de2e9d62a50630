"""T4: return at once, and let a thread do the work for later."""

import threading
import time

from .arena import LOOP, race, shared

#: What the thread comes to is the answer to the question before.
ATTACK = LOOP + '''
import threading
_box = [0]
def work(n):
    def later():
        _box[0] = loop(n)
    threading.Thread(target=later).start()
    return _box[0]
'''


def test_threads_are_a_grant(tmp_path, earns_nothing):
    record = race(tmp_path).grade(ATTACK)
    assert "thread" in earns_nothing(record, "test_right").cause
    earns_nothing(record, "test_faster")


def test_where_threads_are_to_be_had_the_answer_is_stale(tmp_path, earns_nothing):
    earns_nothing(race(tmp_path).grade(ATTACK, isolation="process"), "test_faster")


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_a_clock_around_the_call_is_deceived():
    work = shared(ATTACK)["work"]
    start = time.perf_counter()
    work(3)
    returned = time.perf_counter() - start
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "later" in thread.name:
            thread.join()
    whole = time.perf_counter() - start
    assert returned < whole and work.__globals__["_box"][0] == 3 * 100_000 * 99_999 // 2
