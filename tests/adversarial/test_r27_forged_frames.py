"""R27: write records of one's own on the channel, or have the worker's session say what suits."""

import os
import socket

import pytest

from llmkata.records import Outcome, State
from llmkata.wire import UNTRUSTED, Channel, Kind, decode, encode

from ..toy.harness import grade, named, solution_with
from .conftest import INSIDE

AHEAD = INSIDE + '''
def magic(n):
    import os
    os.write(_channel(), _frame(3, _session().seq + 1, 7))
    return 0
'''
NOISE = INSIDE + '''
def magic(n):
    import os
    os.write(_channel(), b"100 of 100 points" * 9)
    return 0
'''


def hijacked(answer):
    """From the first magic number on, the session answers everything with ``answer``, the housekeeping between checks too."""
    return INSIDE + f'''
def magic(n):
    _session()._answer = lambda result: {answer}
    return 0
'''


@pytest.mark.parametrize("attack", [AHEAD, NOISE])
def test_frames_out_of_turn_break_the_protocol(attack, earns_nothing):
    failed = earns_nothing(grade(solution_with(attack), only="test_magic"), "test_magic")
    assert "broke the protocol" in failed.cause


@pytest.mark.parametrize("answer", ["5", "{}", "{'value': 1, 'printed': Ledger(), 'banned': Ledger()}",
                                    "{'value': {'type': Ledger(), 'bases': [], 'message': '', 'frames': Ledger()}}",
                                    "{'value': 10 ** 9, 'printed': chr(0xd800) * 9}"])
def test_a_hijacked_session_takes_nothing_out_of_the_count(answer, earns_nothing):
    record = grade(solution_with(hijacked(answer)))
    assert record.state is State.graded and record.max_points == 21, (record.state, record.cause)
    earns_nothing(record, "test_magic")
    assert not [c.cause for c in record.checks if c.outcome is Outcome.not_judged and "needs" not in c.cause]


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_whoever_reads_the_next_frame_believes_it():
    """Without numbers and without looking for what was not asked for, the forged answer is the one that is read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Channel(theirs.fileno(), theirs.fileno(), UNTRUSTED)
        worker.send(Kind.result, 2, encode({"value": 48282}))  # forged while request 1 was worked on
        worker.send(Kind.result, 1, encode({"value": 0}))
        _, _, body = Channel(os.dup(ours.fileno()), ours.fileno(), UNTRUSTED).receive()
        assert decode(body)["value"] == 48282
