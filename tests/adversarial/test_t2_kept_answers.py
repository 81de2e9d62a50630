"""T2: keep answers by the value of the input."""

from .arena import LOOP, race

ATTACK = LOOP + '''
_kept = {}
def work(n):
    if n not in _kept:
        _kept[n] = loop(n)
    return _kept[n]
'''


def test_every_timed_call_asks_something_new(tmp_path, earns_nothing):
    earns_nothing(race(tmp_path).grade(ATTACK), "test_faster")


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_asked_the_same_again_it_is_fast(tmp_path):
    assert race(tmp_path, numbers="[7] * 100").stands(ATTACK)
