"""The learner's loop as it is lived: kata watch in a terminal and without one, a released repository, other systems."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from llmkata.cli.own import own_records, record_file
from llmkata.course import load_course
from llmkata.gradebook import Standing, standing
from llmkata.grading.runner import grade_one
from llmkata.records import Outcome
from llmkata.watch.judge import Judge, first_failure
from llmkata.watch.warm import Request

from .conftest import KATA, TOY, environment, without_posix
from .terminal import Terminal

SOLUTION = (TOY / "solutions/module1/toy.py").read_text("utf-8")
#: Softmax over the first dimension, a mistake that is known by name.
WRONG = SOLUTION.replace("x.amax(-1, keepdim=True)", "x.amax(0, keepdim=True)").replace("e.sum(-1", "e.sum(0")
HALVED = SOLUTION.replace("return e / e.sum(-1, keepdim=True)", "return e / e.sum(-1, keepdim=True) / 2")


def stub_of(root: Path) -> Path:
    return root / "exercises/module1/toy/toy.py"


def kata(root: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KATA, *words], cwd=root, env=environment(**env), capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)


def test_watch_in_a_terminal(clone):
    stub = stub_of(clone)
    terminal = Terminal([*KATA, "watch"], clone, environment())
    try:
        terminal.wait_for("1.1 Toy operations", "checking...", "q quit")
        terminal.wait_for("begin with task 1", "0/4 tasks")
        stub.write_text(HALVED, "utf-8")
        screen = terminal.wait_for("✗ Task 1: The softmax of two equal numbers is one half for each.", "h opens hint 1 of 2")
        assert "expected" in screen and "0.25" in screen and "exercises/module1/toy/toy.py" in screen
        assert "Which dimension" not in screen and "Traceback" not in screen
        assert len(screen.splitlines()) == 34
        terminal.press("h")
        terminal.wait_for("hint 1: Which dimension is summed over?", "h opens hint 2 of 2")
        terminal.resize(20, 60)
        deadline = time.monotonic() + 20
        while len(terminal.screen.splitlines()) != 20:
            terminal.wait_for("hint 1")
            terminal._read(0.1)
            assert time.monotonic() < deadline, terminal.screen
        assert all(len(line) <= 60 for line in terminal.screen.splitlines())
        terminal.press("r")
        terminal.wait_for("Put the stub back?", "y/n")
        terminal.press("n")
        terminal.wait_for("Nothing was changed.")
        assert stub.read_text("utf-8") == HALVED
        stub.write_text(SOLUTION, "utf-8")
        terminal.wait_for("✓ All visible checks pass.")
        terminal.press("s")
        terminal.wait_for("solutions/module1/toy.py")
        terminal.press("q")
        assert terminal.wait() == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert terminal.output.count(b"\x1b[?1049h") == terminal.output.count(b"\x1b[?1049l") == 1
        assert terminal.output.rfind(b"\x1b[?25h") > terminal.output.rfind(b"\x1b[?25l")
        assert terminal.output.rstrip().endswith("✓4".encode()) is False and b"/4 tasks" in terminal.output.rsplit(b"1049l", 1)[1]
    finally:
        terminal.close()
    assert json.loads((clone / ".kata/hints.json").read_text()) == {"module1/toy": {"test_two_numbers": 1}}


def test_watch_gives_the_terminal_back_when_it_is_told_to_end(clone):
    terminal = Terminal([*KATA, "watch"], clone, environment(NO_COLOR="1"))
    try:
        terminal.wait_for("checking...")
        assert termios.tcgetattr(terminal.slave) != terminal.before  # single keys, no echo
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert b"\x1b[?1049l" in terminal.output
        assert not re.search(rb"\x1b\[[0-9;]*\b(3[0-7]|9[0-7])m", terminal.output)
    finally:
        terminal.close()


def test_watch_without_a_terminal(clone):
    stub_of(clone).write_text(HALVED, "utf-8")
    process = subprocess.Popen([*KATA, "watch", "toy", "--poll"], cwd=clone, env=environment(), text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = [process.stdout.readline()]
        assert said == ["1.1 Toy operations: checking...\n"]
        while "tasks" not in said[-1]:
            said.append(process.stdout.readline())
        text = "".join(said)
        assert "✗ Task 1: The softmax of two equal numbers" in text and "\x1b" not in text and "q quit" not in text
        stub_of(clone).write_text(SOLUTION, "utf-8")
        while "tasks" not in (said := process.stdout.readline()):
            text += said
        assert "✓ All visible checks pass." in text
        # The course brings a check that the file does not pass.
        checks = stub_of(clone).with_name("test_toy.py")
        checks.write_text(checks.read_text("utf-8") + "\n\n@task(1)\ndef test_new(submission):\n"
                          "    \"\"\"The newest one.\"\"\"\n    same(submission.softmax(torch.zeros(2)), torch.ones(2))\n", "utf-8")
        text = ""
        while "tasks" not in (said := process.stdout.readline()):
            text += said
        assert "✗ Task 1: The newest one." in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_released_repository(released):
    """Hints, diagnosis, budgets, replay, reset, card and board, without any answer in the repository."""
    assert not any((released / name).exists() for name in ("graders", "solutions", "reference"))
    course = load_course(released)
    toy = course.exercise("toy")
    hints = kata(released, "hint", "1.1")
    assert hints.returncode == 0 and "Which dimension is summed over?" in hints.stdout, hints.stderr

    judge = Judge(toy)
    try:
        toy.stub.write_text(WRONG, "utf-8")
        named = first_failure(judge.verdict(Request()))
        wasteful = SOLUTION.replace("return x @ w", "return (x @ w + x @ w) / 2")
        toy.stub.write_text(wasteful, "utf-8")
        dear = first_failure(judge.verdict(Request()))
    finally:
        judge.close()
    assert named.id.endswith("test_rows") and named.diagnosis.name == "wrong_axis"
    [measure] = dear.measures
    assert (measure.value, measure.at_most, measure.reference) == (256, 128, 128) and not measure.ok
    line = next(n for n, text in enumerate(wasteful.splitlines(), 1) if "(x @ w + x @ w)" in text)
    assert {spot.line for spot in measure.spots} == {line}

    toy.stub.write_text(HALVED, "utf-8")
    replayed = kata(released, "replay", "toy", "two_numbers")
    assert replayed.returncode == 0, replayed.stderr
    script = released / replayed.stdout.splitlines()[0]
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert ran.stdout == "tensor([0.2500, 0.2500])\n"

    for source in (HALVED, SOLUTION):
        record_file(course).append(grade_one(course, toy, source.encode(), transport="loopback"))
    assert standing(own_records(course)[toy.id]) is Standing.mastered
    broken = kata(released, "start")
    assert "module1/toy was passed and is broken since your last edit" in broken.stdout
    assert "checking module1/toy" in broken.stdout
    assert "checking" not in kata(released, "start").stdout  # the same edit is not judged twice
    toy.stub.write_text(SOLUTION, "utf-8")
    assert "broken" not in kata(released, "start").stdout

    assert "without solutions" in kata(released, "give-up", "toy", "--yes").stderr
    for _ in range(2):
        assert "toy." in kata(released, "reset", "toy", "--yes").stdout
    kept = sorted(toy.folder.glob("toy.*.bak.py"))
    assert len(kept) == 2 and SOLUTION in [k.read_text("utf-8") for k in kept]
    assert re.fullmatch(r"toy\.\d{8}-\d{6}(-2)?\.bak\.py", kept[0].name)
    assert toy.stub.read_text("utf-8") == (TOY / "exercises/module1/toy/toy.py").read_text("utf-8")

    assert kata(released, "scorecard").returncode == 0
    card = json.loads((released / ".kata/scorecard/you.json").read_text())
    [exercise] = card["exercises"]
    assert [(a["standing"], a["failed"]) for a in exercise["history"]] == [("in progress", "test_two_numbers"), ("mastered", "")]
    assert exercise["hints_opened"] == {"test_two_numbers": 1} and exercise["given_up"] == ""
    page = (released / ".kata/scorecard/you.html").read_text("utf-8")
    assert "History: 2 attempts" in page and "Hints opened" in page


@pytest.mark.parametrize("forking", [True, False], ids=["sandbox", "spawned"])
def test_prints_and_the_caret_of_a_syntax_error_are_shown_by_check(clone, tmp_path, forking):
    """Of visible checks alone: what is printed during hidden ones would tell their inputs."""
    env = {} if forking else without_posix(tmp_path / "site")
    stub_of(clone).write_text(HALVED.replace("e = ", "print('I see', tuple(x.shape), x.sum().item())\n    e = ", 1), "utf-8")
    done = kata(clone, "check", "toy", **env)
    assert done.returncode == 1, done.stderr
    [said] = [line for line in done.stdout.splitlines() if "I see" in line]
    assert said.split("I see")[0].strip() == "printed"
    stub_of(clone).write_text("def softmax(x:\n    return x\n", "utf-8")
    lines = kata(clone, "check", "toy", **env).stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if "at exercises/module1/toy/toy.py:1" in line)
    assert lines[at + 1].index("(") == lines[at + 2].index("^")


def test_diagnosis_hangs_on_feedback_json(released):
    """The control: the same mistake has no name where the file is gone."""
    course = load_course(released)
    toy = course.exercise("toy")

    def named() -> set[str]:
        record = grade_one(course, toy, WRONG.encode(), transport="loopback")
        failed = [c for c in record.checks if c.outcome is Outcome.failed]
        assert failed
        return {c.diagnosis.name for c in failed if c.diagnosis}

    assert named() == {"wrong_axis"}
    toy.feedback.unlink()
    assert named() == set()


def test_giving_up_is_recorded_and_shown(clone):
    course = load_course(clone)
    toy = course.exercise("toy")
    assert kata(clone, "give-up", "toy").returncode == 1 and not (clone / ".kata/given_up.json").exists()  # it asks
    done = kata(clone, "give-up", "toy", "--yes")
    assert done.returncode == 0 and done.stdout.startswith("solutions/module1/toy.py\n")
    first = json.loads((clone / ".kata/given_up.json").read_text())
    kata(clone, "give-up", "toy", "--yes")
    assert json.loads((clone / ".kata/given_up.json").read_text()) == first
    record_file(course).append(grade_one(course, toy, HALVED.encode(), transport="loopback", visible_only=True))
    assert kata(clone, "scorecard").returncode == 0
    assert "The solution was opened before passing" in (clone / ".kata/scorecard/you.html").read_text("utf-8")


def test_nothing_posix_on_the_learners_path(clone, tmp_path):
    windows = without_posix(tmp_path / "site")
    probe = subprocess.run([sys.executable, "-c", "import os; os.fork"], env=environment(**windows), capture_output=True,
                           text=True, check=False)
    assert "AttributeError" in probe.stderr  # the controls: they are taken away
    keys = subprocess.run([sys.executable, "-c", "from llmkata.watch.keys import keys\nwith keys(print): pass"],
                          env=environment(**windows), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert "No module named 'termios'" in keys.stderr
    def works(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = kata(clone, *words, **windows)
        assert done.returncode == status and "fault of the program" not in done.stderr, done.stdout + done.stderr
        return done

    for words in (("start",), ("list",), ("next",), ("open", "toy"), ("hint", "toy"), ("notebook", "toy")):
        works(*words)
    stub_of(clone).write_text(HALVED, "utf-8")
    script = works("replay", "toy", "two_numbers").stdout.splitlines()[0]
    ran = subprocess.run([sys.executable, clone / script], env=environment(**windows), capture_output=True, text=True, check=True)
    assert ran.stdout == "tensor([0.2500, 0.2500])\n"
    assert stub_of(clone).with_name(works("reset", "toy", "--yes").stdout.split("/")[-1].strip().rstrip(".")).read_text("utf-8") == HALVED
    assert "solutions/module1/toy.py" in works("give-up", "toy", "--yes").stdout
    magic = ("from llmkata.notebook.magic import Kata; k = Kata(lambda: ['def softmax(x): return x']); k.line('use toy'); "
             "k.line('check'); k.line('hint'); k.close()")
    judged = subprocess.run([sys.executable, "-c", magic], cwd=clone, env=environment(**windows), capture_output=True, text=True,
                            check=False)
    assert judged.returncode == 0 and "✗ The softmax of two equal numbers" in judged.stdout, judged.stderr
    stub_of(clone).write_text(SOLUTION, "utf-8")
    checked = kata(clone, "check", "toy", "--json", **windows)
    assert checked.returncode == 0, checked.stdout[-2000:] + checked.stderr
    record = json.loads(checked.stdout)
    assert {c["outcome"] for c in record["checks"]} == {"passed"} and "without a sandbox" in record["notes"][-1]
    assert {c["visibility"] for c in record["checks"]} == {"visible", "hidden"}
    works("scorecard")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "exercises/module1"], cwd=clone, env=environment(**windows),
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "[x] task 1" in run.stdout, run.stdout + run.stderr
    process = subprocess.Popen([*KATA, "watch", "toy"], cwd=clone, env=environment(**windows), text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        def verdict() -> str:
            said = ""
            while "tasks" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            return said

        assert "All visible checks pass." in verdict()
        stub_of(clone).write_text(HALVED, "utf-8")  # judged by the next process, warm meanwhile
        assert "✗ Task 1: The softmax of two equal numbers" in verdict()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_nothing_is_left_behind(clone):
    """A loop that is killed takes the process that judges and the one that watches files with it."""
    import psutil

    process = subprocess.Popen([*KATA, "watch", "toy"], cwd=clone, env=environment(), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
