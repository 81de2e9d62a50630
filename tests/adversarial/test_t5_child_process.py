"""T5: work in a child process, which the process's clock does not count."""

from .arena import LOOP, race

ATTACK = LOOP + '''
import os
def work(n):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(loop(n)).encode())
        os._exit(0)
    answer = int(os.read(read, 100))
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    return answer
'''


def test_there_are_no_children(tmp_path, earns_nothing):
    record = race(tmp_path).grade(ATTACK)
    earns_nothing(record, "test_right")
    earns_nothing(record, "test_faster")


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_without_isolation_the_work_is_not_counted(tmp_path):
    """Forking costs as much as this loop, so a longer one."""
    arena = race(tmp_path)
    longer = ATTACK.replace("str(loop(n))", "str([loop(n) for _ in range(3)][0])")
    record = arena.grade(longer, isolation="process")
    openly = arena.grade(LOOP + "def work(n):\n    return [loop(n) for _ in range(3)][0]\n", isolation="process")
    measured = [next(m.value for c in r.checks for m in c.measures) for r in (record, openly)]
    assert measured[0] > 1.5 * measured[1]
