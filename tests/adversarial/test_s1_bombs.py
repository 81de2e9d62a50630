"""S1: fork or start threads without end."""

import psutil

from llmkata.outside import process
from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

FORKS = '''
def magic(n):
    import os
    while True:
        os.fork()
'''
THREADS = '''
_right = magic
def magic(n):
    import threading, time
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    return _right(n)
'''


def descendants():
    return {(p.pid, p.create_time()) for p in psutil.Process().children(recursive=True)}


def test_the_first_one_fails(earns_nothing):
    for attack in (FORKS, THREADS):
        earns_nothing(grade(solution_with(attack), only="test_magic"), "test_magic")


def test_nothing_is_left_behind(honest):
    before = descendants()
    for attack in (FORKS, THREADS):
        grade(solution_with(attack), only="test_magic")
    assert not descendants() - before
    assert process.template("base").ended() is False


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_threads_start():
    """And end with their process."""
    before = descendants()
    record = grade(solution_with(THREADS.replace("200", "3")), only="test_magic", isolation="process")
    assert named(record, "test_magic").outcome is Outcome.passed and not descendants() - before
