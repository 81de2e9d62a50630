"""What holds for every command: help, speed, no torch, faults without tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from llmkata.cli.main import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def run(*words: str, cwd: Path = ROOT) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """A fresh interpreter; (what it did, the modules it had loaded at the end, seconds of processor time)."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False, cwd=cwd)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return done, set(done.stderr.splitlines()[-1].split()), spent


@pytest.mark.parametrize(
    "words", [("--help",), ("hint", "0.1"), ("start",), ("list", "0"), ("check", "--help"), ("version",)]
)
def test_starts_without_what_is_heavy(toy, words) -> None:
    done, modules, _ = run(*words, cwd=toy)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "hypothesis", "pytest", "sqlalchemy", "matplotlib", "transformers"} & modules


@pytest.mark.parametrize("words", [("--help",), ("hint", "0.1")])
def test_answers_in_less_than_four_tenths_of_a_second(toy, words) -> None:
    # Processor time, the least of three: the machine that runs the suite has other work.
    assert min(run(*words, cwd=toy)[2] for _ in range(3)) < 0.4


def test_runs_as_a_module_and_names_itself(toy) -> None:
    (toy / "kata").touch()
    done = subprocess.run(
        [sys.executable, "-m", "llmkata.cli.main"], capture_output=True, text=True, check=False, cwd=toy
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ./kata " if os.name == "posix" else "Usage: .\\kata ")


def test_help_lists_every_command_in_sections(kata) -> None:
    out = kata("--help").out
    for section in ("Learn:", "Grade:", "Write exercises:", "This installation:"):
        assert section in out
    for name in ("start", "list", "check", "hint", "grade", "report", "demo", "sync", "doctor", "version"):
        assert f"\n  {name} " in out
    assert "Exit status" in out


@pytest.mark.parametrize(
    ("words", "says", "step"),
    [
        (("hint", "suns"), "did you mean module0/sums?", ""),
        (("hint", "0.3"), "is planned", "kata start"),
        (("list", "9"), "no module 9; modules are 0 to 0", "kata list"),
        (("check", "0.1", "--submission", "nowhere.py"), "nowhere.py does not exist", "--submission FILE"),
        (("check", "0.1", "--submission", "exercises"), "exercises is a folder", "--submission FILE"),
        (("grade", "nowhere"), "nowhere does not exist", "kata grade submissions/"),
        (("grade", "exercises/module0/sums"), "folder of one learner", "kata grade submissions/"),
        (("report", "nowhere"), "holds no records.jsonl", "kata grade"),
        (("demo",), "comes with a clone", ""),
        (("sync",), "no solutions", ""),
        (("sync", "sumz"), "did you mean module0/sums?", ""),
        (("--course", "exercises", "start"), "course.yaml: no such file", ""),
    ],
)
def test_faults_come_with_a_next_step_and_without_a_traceback(toy, kata, words, says, step) -> None:
    done = kata(*words)
    assert done.status == 2
    assert done.err.startswith("kata: ") and says in done.err and step in done.err
    assert "Traceback" not in done.err and done.out == ""


@pytest.mark.parametrize(
    "words", [("nonsense",), ("replay", "0.1"), ("hint", "0.1", "--level", "0"), ("grade", "x", "--workers", "no")]
)
def test_wrong_usage(toy, kata, words) -> None:
    done = kata(*words)
    assert done.status == 2 and "Error: " in done.err and "Traceback" not in done.err


def test_a_course_with_faults_names_file_and_line(toy, kata) -> None:
    course = toy / "course.yaml"
    text = course.read_text()
    course.write_text(text.replace("title: Numbers", "titel: Numbers"))
    line = text[: text.index("title: Numbers")].count("\n") + 1
    done = kata("start")
    assert done.status == 2 and f"course.yaml:{line}:" in done.err and "titel" in done.err


def test_a_fault_of_the_program_shows_where(toy, kata, monkeypatch) -> None:
    monkeypatch.setattr("llmkata.cli.hints.exercise_hints", lambda exercise: 1 / 0)
    done = kata("hint", "0.1")
    assert done.status == 2 and "ZeroDivisionError" in done.err and "fault of the program" in done.err


def test_a_seed_that_is_no_number(toy, kata, monkeypatch) -> None:
    monkeypatch.setenv("TOY_SEED", "secret")
    (toy / "class" / "ada").mkdir(parents=True)
    done = kata("grade", "class")
    assert done.status == 2 and "TOY_SEED='secret' is not a whole number" in done.err


def test_a_reader_that_leaves_early(toy) -> None:
    line = f"{sys.executable} -m llmkata.cli.main start | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, cwd=toy)
    assert done.stdout == "A toy course\n" and done.stderr == ""


def test_a_terminal_that_knows_few_characters(toy) -> None:
    checks = toy / "exercises/module0/sums/test_sums.py"
    checks.write_text("@hint('Σ adds.')\ndef test_x(): ...\n", encoding="utf-8")
    line = [sys.executable, "-m", "llmkata.cli.main", "hint", "0.1"]
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=toy, env=env)
    assert done.returncode == 0 and "? adds." in done.stdout, done.stderr
