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
    """Starting a process costs as much as this loop, so fifty of them: what is done in the child vanishes."""
    arena = race(tmp_path)
    openly = LOOP.replace("return t", "return t if _again == 0 else loop(n, _again - 1)").replace("(n)", "(n, _again=50)", 1)
    forked = ATTACK.replace(LOOP, openly)
    records = [arena.grade(source, isolation="process") for source in (forked, openly + "work = loop\n")]
    measured = [next(m.value for c in r.checks for m in c.measures) for r in records]
    assert measured[0] > 5 * measured[1]
