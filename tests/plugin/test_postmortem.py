"""pytest --pdb in a terminal: the debugger opens in the learner's frame, and what was not begun opens none."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from ..e2e.conftest import environment
from ..e2e.terminal import Terminal
from ..toy.harness import SOLUTION, STUB

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

RIGHT = "    e = (x - x.amax(-1, keepdim=True)).exp()\n"
assert SOLUTION.count(RIGHT) == 1


#: Checks that try many examples, one of them as a state machine.
MANY = '''

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from llmkata.checks import sk


@task(1)
@sk.given(st.integers(1, 50), examples=20)
def test_any_length(submission, case):
    """Any length."""
    x = sk.tensor(case, (case,))
    same(submission.softmax(x), torch.softmax(x, -1))


class Steps(RuleBasedStateMachine):
    def __init__(self, submission):
        super().__init__()
        self.submission = submission

    @rule()
    def step(self):
        x = torch.zeros(3)
        same(self.submission.softmax(x), torch.softmax(x, -1))


@task(1)
def test_step_by_step(submission):
    """A machine."""
    sk.run_machine(Steps, submission=submission, steps=5, examples=5)
'''


def debugged(course: Path, source: str, *words: str) -> Terminal:
    (course / "exercises/module1/toy/toy.py").write_text(source, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "exercises/module1/toy", *words]
    return Terminal(command, course, environment(OMP_NUM_THREADS="1"), rows=24, columns=80)


def asked(terminal: Terminal, command: str, answer: str) -> None:
    """Type a command at the debugger's prompt."""
    terminal.press(f"{command}\r")
    terminal.wait_for(answer)


@pytest.mark.parametrize(("line", "how", "stands"), [
    ("    e = x.exp() + x.numel()\n", "as it returned", "-> return e / e.sum(-1, keepdim=True)"),
    ("    e = x.exp() + torch.zeros(3)\n", "where it raised NameError", "-> e = x.exp() + torch.zeros(3)"),
    ("    e = x.reshape(7)\n", "where it raised RuntimeError", "-> e = x.reshape(7)"),
])  # fmt: skip
def test_it_opens_in_the_function_of_the_learner(course, line, how, stands):
    wrong = line if how != "as it returned" else "    e = (x + 1).exp()\n    e[0] += 1\n"
    terminal = debugged(course, SOLUTION.replace(RIGHT, wrong), "-x", "--pdb", "-k", "two_numbers")
    try:
        screen = terminal.wait_for("(Pdb)")
        assert how in screen and "In softmax, toy.py:" in screen and stands in screen, screen
        assert "llmkata/" not in screen
        asked(terminal, "p list(x.shape), 40 + 2", "([2], 42)")
        asked(terminal, "u", "-> same(submission.softmax(torch.zeros(2)), torch.full((2,), 0.5))")
        terminal.press("q\r")
        assert terminal.wait() == 2
    finally:
        terminal.close()


def test_a_file_that_does_not_import_is_looked_at_where_it_stopped(course):
    terminal = debugged(course, SOLUTION + "\nleft = 6 * 7\nraise KeyError(left)\n", "--pdb")
    try:
        assert "In <module>, toy.py:" in terminal.wait_for("(Pdb)", "where it raised KeyError")
        asked(terminal, "p left + 1", "43")
        terminal.press("c\r")
        assert terminal.wait() == 1
        assert terminal.output.count(b"entering PDB") == 1 and "1 failed, 1 skipped" in terminal.screen
    finally:
        terminal.close()


@pytest.mark.parametrize(("source", "summary"), [(STUB, "2 skipped"), (SOLUTION + "\ndef f(:\n", "1 failed, 1 skipped")])
def test_where_no_frame_is_worth_a_look_no_debugger_opens(course, source, summary):
    terminal = debugged(course, source, "--pdb")
    try:
        assert terminal.wait(60) == 1
        assert summary in terminal.screen and "entering PDB" not in terminal.screen
    finally:
        terminal.close()


def test_leaving_a_breakpoint_ends_the_run(course):
    terminal = debugged(course, SOLUTION.replace(RIGHT, "    breakpoint()\n" + RIGHT))
    try:
        assert "llmkata/" not in terminal.wait_for("(Pdb)", "-> e = (x - x.amax(-1, keepdim=True)).exp()")
        terminal.press("q\r")
        assert terminal.wait() == 2
        assert "Quitting debugger" in terminal.screen and "1 failed" not in terminal.screen
    finally:
        terminal.close()


STOPS = SOLUTION.replace(RIGHT, "    breakpoint()\n" + RIGHT)
#: Keeps every exception that can be kept.
KEEPS = SOLUTION.replace(RIGHT, "    try:\n        breakpoint()\n        torch.zeros(1)\n    except Exception:\n        pass\n" + RIGHT)


@pytest.mark.parametrize(("source", "check", "key", "words"), [
    (STOPS, "any_length", "q\r", ()),
    (STOPS, "any_length", "\x04", ()),
    (STOPS, "any_length", "\x03", ("--pdb",)),
    (STOPS, "step_by_step", "q\r", ()),
    (KEEPS, "two_numbers", "q\r", ()),
    (SOLUTION.replace(RIGHT, "    e = x.exp() + x.numel()\n"), "any_length", "\x03", ("--pdb",)),
], ids=["q", "ctrl-d", "ctrl-c", "machine", "kept", "post-mortem"])  # fmt: skip
def test_every_way_out_ends_the_run_at_once(course, source, check, key, words):
    visible = course / "exercises/module1/toy/test_toy.py"
    visible.write_text(visible.read_text("utf-8") + MANY, "utf-8")
    terminal = debugged(course, source, "-k", check, *words)
    try:
        terminal.wait_for("(Pdb)")
        terminal.press(key)
        assert terminal.wait() == 2
        assert terminal.output.count(b"(Pdb)") == 1 and "Quitting debugger" in terminal.screen
        assert "Traceback" not in terminal.screen and "site-packages" not in terminal.screen, terminal.screen
    finally:
        terminal.close()


def test_pytest_alone_would_go_on_to_the_next_example(course):
    """The control."""
    visible = course / "exercises/module1/toy/test_toy.py"
    visible.write_text(visible.read_text("utf-8") + MANY, "utf-8")
    terminal = debugged(course, STOPS, "-k", "any_length", "-p", "no:kata-leaving")
    try:
        terminal.wait_for("(Pdb)")
        terminal.press("q\r")
        until = time.monotonic() + 60
        while terminal.output.count(b"PDB set_trace") < 2:
            assert time.monotonic() < until and terminal._read(0.5), terminal.screen
    finally:
        terminal.close()


def test_ctrl_c_ends_the_run_and_names_the_line(course):
    terminal = debugged(course, SOLUTION.replace(RIGHT, "    print('for ever')\n    while True:\n        pass\n"), "-s")
    try:
        terminal.wait_for("for ever")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 2
        line = SOLUTION[: SOLUTION.index(RIGHT)].count("\n") + 1  # the signal may come before print has returned
        assert any(f"toy/toy.py:{n}: KeyboardInterrupt" in terminal.screen for n in range(line, line + 3)), terminal.screen
    finally:
        terminal.close()
