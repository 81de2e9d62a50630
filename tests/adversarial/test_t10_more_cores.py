"""T10: take more cores than one."""

import torch

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .arena import LOOP, race

THREADS = "import torch\ntorch.set_num_threads(2)\n"
#: Two threads share the work; by the wall clock it may take half as long.
HALVES = LOOP + '''
import threading
def work(n):
    parts = [0, 0]
    def part(k):
        t = 0
        for i in range(k, 100_000, 2):
            t += i * n
        parts[k] = t
    threads = [threading.Thread(target=part, args=(k,)) for k in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return sum(parts)
'''


def test_time_is_that_of_all_cores_together(tmp_path, earns_nothing):
    arena = race(tmp_path)
    earns_nothing(arena.grade(HALVES), "test_right")  # threads are a grant
    earns_nothing(arena.grade(HALVES, isolation="process"), "test_faster")


def test_a_setting_stays_in_its_own_process():
    record = grade(solution_with(THREADS), only="test_project")
    assert torch.get_num_threads() == 1
    assert named(grade(only="test_project"), "test_project").outcome is Outcome.passed
    assert named(record, "test_project").outcome in (Outcome.passed, Outcome.failed)


def test_honest_work_passes(tmp_path):
    assert race(tmp_path).stands()


def test_in_one_process_the_setting_is_everybodys():
    try:
        grade(solution_with(THREADS), only="test_magic", transport="loopback", diagnosing=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
