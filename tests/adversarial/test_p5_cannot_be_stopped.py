"""P5: ignore SIGTERM, swallow every exception, go on."""

import subprocess
import sys

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

LOOP = '''
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def magic(n):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
'''


def test_it_is_killed_from_outside_once(earns_nothing):
    record = grade(solution_with(LOOP))
    assert "did not finish within 2 s" in earns_nothing(record, "test_magic").cause
    assert record.points == record.max_points - 2
    assert record.cpu_seconds < 10  # the deadline once, not for each of the numbers that are asked


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_an_alarm_in_the_same_process_is_swallowed():
    program = ("import signal\ndef late(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, late)\n"
               "signal.setitimer(signal.ITIMER_REAL, 0.1)\n" + LOOP + "\nmagic(1)")
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            process.wait(1.0)
            stopped = True
        except subprocess.TimeoutExpired:
            stopped = False
        process.kill()
    assert not stopped
