"""T8: be slow while the number of rounds is decided, so that few are timed."""

import time

from .arena import LOOP, race, shared

ATTACK = LOOP + '''
import time
_calls = 0
def work(n):
    global _calls
    _calls += 1
    if _calls <= 2:
        time.sleep(0.3)
    return loop(n)
'''


def test_the_evidence_decides_when_it_is_enough(tmp_path, earns_nothing):
    earns_nothing(race(tmp_path).grade(ATTACK), "test_faster")


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_rounds_by_the_first_of_them_are_few():
    def rounds(work, seconds=1.0):
        start = time.perf_counter()
        work(3)
        return int(seconds / (time.perf_counter() - start))

    assert rounds(shared(ATTACK)["work"]) <= 3 < rounds(shared(LOOP)["loop"])
