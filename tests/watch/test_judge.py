"""The process that judges: verdicts one by one, a crash or a loop without end costs the run alone."""

from __future__ import annotations

import base64
import os
import re
import time

import psutil
import pytest

from llmkata.course import load_course
from llmkata.forks import CAN_FORK
from llmkata.records import Outcome, State
from llmkata.watch.judge import Judge, first_failure
from llmkata.watch.warm import Request


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")), False],
                ids=["fork", "spawn"])
def judge(toy, request):
    made = Judge(load_course(toy).exercise("toy"), forking=request.param)
    yield made
    made.close()
    deadline = time.monotonic() + 10
    while left := [p for p in psutil.Process().children(recursive=True) if "llmkata.watch.warm" in " ".join(p.cmdline())]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def request(code: str, **more) -> Request:
    return Request(source=base64.b64encode(code.encode()).decode(), **more)


WRONG = "import torch\ndef softmax(x):\n    return x\n"


def test_verdicts(judge, monkeypatch):
    """A verdict, a crash, a run overtaken by the next, a loop without end, the file itself."""
    endless = "def softmax(x):\n    while True: pass\n"
    wrong = judge.verdict(request(WRONG))
    assert wrong.state is State.graded and first_failure(wrong).id == "test_toy.py::test_two_numbers"
    ended = judge.verdict(request("import os\nos._exit(3)"))
    assert ended.state is State.unreadable and "ended the process" in ended.cause
    judge.start(request(endless))
    assert first_failure(judge.verdict(request(WRONG))).task == 1
    monkeypatch.setattr(judge, "_patience", 1.5)
    given_up = judge.verdict(request(endless))
    assert given_up.state is State.unreadable and "did not finish within 1.5 s" in given_up.cause
    monkeypatch.setattr(judge, "_patience", 30.0)
    unclosed = judge.verdict(request("def softmax(x:\n    return x\n"))
    assert unclosed.state is State.unreadable and unclosed.cause.startswith("Python cannot read line 1: '(' was never closed")
    assert unclosed.evidence.got == "def softmax(x:\n           ^" and unclosed.evidence.frames[0].startswith("toy.py:1:")
    utf16 = judge.verdict(Request(source=base64.b64encode(WRONG.encode("utf-16")).decode()))
    assert utf16.state is State.unreadable and "UTF-16" in utf16.cause
    assert judge.verdict().state is State.not_started


_SLOW_TO_END = "import os\n_exit = os._exit\nos._exit = lambda n: (__import__('time').sleep(3), _exit(n))\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_verdict_does_not_wait_for_the_end_of_its_process(toy):
    judge = Judge(load_course(toy).exercise("toy"))
    try:
        first_failure(judge.verdict(request(WRONG)))  # all is imported from here on
        began = time.monotonic()
        assert judge.verdict(request(_SLOW_TO_END + WRONG)).state is State.graded and not judge.running
        told = time.monotonic() - began
        crash = judge.verdict(request("import os\nos._exit(3)"))  # nothing of the former is taken for this one's
        assert told < 3 < time.monotonic() - began and "ended the process" in crash.cause, told
    finally:
        judge.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_file_and_checks_given_as_text(toy):
    judge = Judge(load_course(toy).exercise("toy"))
    try:
        judge.exercise.stub.write_text(judge.exercise.solution.read_text("utf-8"), "utf-8")
        right = judge.verdict()
        assert {c.outcome for c in right.checks} == {Outcome.passed} and len(right.checks) == 2
        checks = ("from llmkata.checks import check, task\n@task(2)\ndef test_mine(submission):\n"
                  "    check(submission.softmax(4) == 4, 'It must be 4.')\n")
        own = judge.verdict(request(WRONG, checks=checks))
        assert [c.id for c in own.checks] == ["test_toy.py::test_mine"] and own.checks[0].outcome is Outcome.passed
        judge.exercise.stub.unlink()
        assert judge.verdict().state is State.missing
    finally:
        judge.close()


def test_checks_that_cannot_be_collected(toy):
    (toy / "exercises/module1/toy/test_toy.py").write_text("import nonsense_that_is_not_there\n")
    judge = Judge(load_course(toy).exercise("toy"))
    try:
        record = judge.verdict()
    finally:
        judge.close()
    assert record.state is State.infrastructure and "nonsense_that_is_not_there" in record.cause


@pytest.fixture
def forked(toy):
    if not CAN_FORK:
        pytest.skip("no fork")
    made = Judge(load_course(toy).exercise("toy"))
    yield made
    made.close()


def test_a_loop_without_end_is_told_with_its_line(forked, monkeypatch):
    monkeypatch.setattr(forked, "_patience", 2.0)
    forked.exercise.stub.write_text("def softmax(x):\n    while True:\n        x = x\n", "utf-8")
    record = forked.verdict()
    assert record.state is State.unreadable and "(0 were done)" in record.cause and "It was here:" in record.cause
    [frame] = record.evidence.frames
    assert re.fullmatch(r"toy\.py:[23] in softmax: (while True:|x = x)", frame)


def test_what_is_printed_comes_with_its_check(forked):
    forked.verdict(request("def softmax(x):\n    print('shape', tuple(x.shape))\n    return x\n"))
    assert forked.printed == {"test_toy.py::test_two_numbers": "shape (2,)\n"}
    forked.verdict(request(WRONG))
    assert forked.printed == {}


def test_a_breakpoint_says_where_it_would_stop(forked):
    check = first_failure(forked.verdict(request("def softmax(x):\n    breakpoint()\n    return x\n")))
    assert "RuntimeError at line 2: breakpoint() needs a terminal" in check.cause and "pytest --pdb" in check.cause


def test_slow_checks_come_last_the_next_time(forked):
    slow = ("import time\nfrom llmkata.checks import check, task\n"
            "@task(1)\ndef test_slow(submission):\n    time.sleep(0.3)\n    check(submission.softmax(1) == 1, 'One.')\n"
            "@task(2)\ndef test_quick(submission):\n    check(submission.softmax(2) == 2, 'Two.')\n")
    order = [[c.id.rpartition("_")[2] for c in forked.verdict(request(WRONG, checks=slow)).checks] for _ in range(2)]
    assert order == [["slow", "quick"], ["quick", "slow"]]
    forked.start(request(WRONG, checks=slow))
    waiting = []
    while forked.take(forked.events.get(timeout=30)) is None:
        waiting.append((len(forked.so_far().checks), forked.slow_left()))
    assert (1, 1) in waiting and (0, 0) in waiting and waiting[-1] == (2, 0)


def test_libraries_that_a_run_imported_are_there_for_the_next(forked):
    checks = ("from llmkata.checks import check, task\n@task(1)\ndef test_it(submission):\n"
              "    check(submission.known() is True, 'It was there.')\n")
    code = "import sys\nbefore = 'mailbox' in sys.modules\nimport mailbox\ndef known():\n    return before\n"
    seen = [forked.verdict(request(code, checks=checks)).checks[0].outcome for _ in range(2)]
    assert seen == [Outcome.failed, Outcome.passed]


def test_checks_that_were_edited_are_collected_anew(judge):
    """A course that is updated, or written, while somebody watches."""
    first = judge.verdict(request(WRONG))
    kept = judge._process or judge._spare
    assert judge.verdict(request(WRONG)).checks and (not judge._forking or judge._process is kept)
    checks = judge.exercise.visible_checks
    checks.write_text(checks.read_text("utf-8") + "\n\n@task(1)\ndef test_added(submission):\n    \"\"\"One more.\"\"\"\n", "utf-8")
    ids = {c.id for c in judge.verdict(request(WRONG)).checks}
    assert ids - {c.id for c in first.checks} == {"test_toy.py::test_added"}
