"""T9: slow down what one is compared with."""

import builtins
import time

from .arena import LOOP, race, shared

ATTACK = LOOP + '''
import builtins
_range = builtins.range
def _slow(*a):
    for i in _range(*a):
        for _ in _range(5):
            pass
        yield i
builtins.range = _slow
def work(n):
    t = 0
    for i in _range(100_000):
        t += i * n
    return t
'''


def test_the_baseline_runs_elsewhere(tmp_path, earns_nothing):
    earns_nothing(race(tmp_path).grade(ATTACK), "test_faster")


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_in_one_process_it_is_slowed(monkeypatch):
    monkeypatch.setattr(builtins, "range", range)  # put back at the end
    scope = shared(ATTACK)
    seconds = {}
    for name in ("work", "loop"):
        start = time.process_time()
        scope[name](3)
        seconds[name] = time.process_time() - start
    assert seconds["loop"] > 1.5 * seconds["work"]
