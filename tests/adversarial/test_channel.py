"""A worker that dies, hangs, floods, answers twice, late or for another request, closes its socket, or forks: that
check fails with the cause, and the run goes on."""

import pytest

from llmkata.records import Outcome, State

from ..toy.harness import grade, solution_with
from .conftest import INSIDE

BROKEN, ENDED = "broke the protocol", "ended by itself without an answer"
#: What magic does in place of an answer, and what the learner is told.
ATTACKS = {
    "dies": ("os._exit(7)", ENDED),
    "is killed": ("os.abort()", "crashed"),
    "hangs": ("while True: pass", "did not finish within 2 s of computing"),
    "floods": ("while True: os.write(_channel(), bytes(1 << 16))", BROKEN),
    "announces more than it may": (
        "os.write(_channel(), _HEADER.pack(_MAGIC, 3, _session().seq, (1 << 32) - 1)); time.sleep(9)", BROKEN),
    "answers in pieces without end": ("os.write(_channel(), _frame(3, _session().seq, 0)[:9]); time.sleep(60)",
                                      "did not finish"),
    "answers twice": ("os.write(_channel(), _frame(3, _session().seq, 48282)); return 0", ""),
    "answers another request": ("os.write(_channel(), _frame(3, _session().seq + 1, 0)); return 0", BROKEN),
    "answers an earlier request": ("os.write(_channel(), _frame(3, _session().seq - 1, 0)); return 0", BROKEN),
    "asks for a call-back nobody gave": ("os.write(_channel(), _frame(2, _session().seq, 0)); return 0", BROKEN),
    "sends a frame of no kind": ("os.write(_channel(), _frame(77, _session().seq, 0)); return 0", BROKEN),
    "closes the socket": ("os.close(_channel()); return 0", ENDED),
    "shuts the socket down": ("socket.socket(fileno=_channel()).shutdown(2); return 0", ENDED),
    "stops reading": ("os.dup2(os.open('/dev/null', os.O_RDWR), _channel()); return 0", ""),
    "forks": ("os.fork(); return 0", ""),
}
#: Sleeping costs four times the deadline by the wall clock: one attack that sleeps is enough.
SLOW = {"answers in pieces without end"}


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in SLOW])
def test_that_check_fails_and_the_run_goes_on(name, earns_nothing):
    body, said = ATTACKS[name]
    record = grade(solution_with(INSIDE + "\nimport os, socket, time\n"
                                 "from llmkata.wire.frames import _HEADER, _MAGIC\n"
                                 f"def magic(n):\n    {body}\n"))
    failed = earns_nothing(record, "test_magic")
    assert said in failed.cause, failed.cause
    assert record.state is State.graded and record.max_points == 21
    lost = {c.id: c.cause for c in record.checks if c.outcome is not Outcome.passed}
    del lost[failed.id]
    # What was not asked for is found when something is asked next.
    told = "The process of the submission broke the protocol: it answered without being asked."
    assert list(lost.values()) == ([told] if name == "answers twice" else [])


@pytest.mark.parametrize("name", sorted(SLOW))
def test_silence_is_late(name, earns_nothing):
    body, said = ATTACKS[name]
    record = grade(solution_with(INSIDE + f"\nimport os, time\ndef magic(n):\n    {body}\n"), only="test_magic")
    assert said in earns_nothing(record, "test_magic").cause


def test_honest_work_passes(honest):
    assert honest.points == 21
