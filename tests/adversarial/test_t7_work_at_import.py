"""T7: work out answers at import, which is not timed."""

from .arena import LOOP, race

ATTACK = LOOP + '''
_table = {n: loop(n) for n in range(1, 12)}
def work(n):
    return _table[n] if n in _table else loop(n)
'''


def test_what_will_be_asked_is_not_known(tmp_path, earns_nothing):
    earns_nothing(race(tmp_path).grade(ATTACK), "test_faster")


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_where_there_is_little_to_ask_a_table_wins(tmp_path):
    assert race(tmp_path, numbers="[int(n) for n in rng.integers(1, 12, 100)]").stands(ATTACK)
