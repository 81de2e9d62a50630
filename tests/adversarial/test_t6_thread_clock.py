"""T6: work in a thread, which the clock of another thread does not count."""

import time

from .arena import LOOP, race, shared

ATTACK = LOOP + '''
import threading
def work(n):
    box = []
    thread = threading.Thread(target=lambda: box.append(loop(n)))
    thread.start()
    thread.join()
    return box[0]
'''


def test_all_threads_of_the_process_count(tmp_path, earns_nothing):
    """Where threads are to be had at all."""
    failed = earns_nothing(race(tmp_path).grade(ATTACK, isolation="process"), "test_faster")
    assert "it must be at least 3 times" in failed.cause


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands(isolation="process")


def test_the_clock_of_a_thread_sees_its_own_work_only():
    work, thread, process = shared(ATTACK)["work"], time.thread_time(), time.process_time()
    work(3)
    assert time.thread_time() - thread < 0.5 * (time.process_time() - process)
