"""T3: right when it is checked, fast and wrong when it is timed."""

from .arena import LOOP, race

ATTACK = LOOP + '''
_calls = 0
def work(n):
    global _calls
    _calls += 1
    return loop(n) if _calls < 3 else 0
'''


def test_every_timed_answer_is_checked(tmp_path, earns_nothing):
    failed = earns_nothing(race(tmp_path).grade(ATTACK), "test_faster")
    assert "is not what it should be" in failed.cause


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_unchecked_it_wins(tmp_path):
    assert race(tmp_path, validate="None").stands(ATTACK)
