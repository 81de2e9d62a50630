"""What a console shows."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import RenderableType

from llmkata.records import Evidence, ExerciseRecord, Outcome, State
from llmkata.reports.terminal import check_report, console, frames_text, summary_table

from . import factory
from .factory import (
    HOSTILE_NAMES,
    KV_CACHE,
    SELF_ATTENTION,
    class_of,
    course,
    exercise,
    hostile,
    in_progress,
    mastered,
    record,
    showcase,
    unreadable,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_width_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-xdist tells its processes the width of the terminal it runs in."""
    monkeypatch.delenv("COLUMNS", raising=False)


def shown(content: RenderableType, file: io.StringIO | None = None, width: int | None = None) -> str:
    file = file or io.StringIO()
    console(file, width).print(content)
    return file.getvalue()


def test_a_failure_is_explained_in_order() -> None:
    text = shown(check_report(in_progress("ada"), course()), width=120)
    order = [
        "2.1 Self-Attention Mechanism  ◐ in progress 2/6  20 of 43 points",
        "✗ Task 1 Scaled dot-product attention  2/3 checks, core",
        "`attention` gives the output of the definition",
        "→ Your output is exactly what you get by scaling with `d`",
        "differs from the reference by up to 0.31",
        "input attention(q (2, 3, 4) float64",
        "expected shape (2, 3, 2), float64",
        "0.1176",
        "got shape (2, 3, 2), float64",
        "0.2034",
        "worst at (0, 2, 0)",
        "at self_attention.py:41 in attention",
        "Hint: What is the variance",
        "Again: ./kata check module2/self_attention --only test_attention_matches_reference",
    ]
    places = [text.find(part) for part in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_what_nobody_touched_is_one_line_of_a_task_under_way() -> None:
    failed, at = factory.Outcome.failed, ["self_attention.py:41 in attention: raise NotImplementedError"]
    waiting = [factory.check(f"test_{i}", 1, failed, 3, cause="not started: task 1: scores",
                             evidence=factory.Evidence("", frames=at)) for i in (1, 2)]
    other = factory.check("test_3", 1, failed, 3, cause="not started: task 1: merge")
    text = shown(check_report(record("ada", checks=[*waiting, other, factory.check("test_4", 1, failed)]), course()), width=120)
    assert "○ 2 checks wait for task 1: scores  6 points to earn" in text and "○ 1 check waits for task 1: merge" in text
    assert text.count("at self_attention.py:41") == 1 and text.count("Again:") == 1 and "not started" not in text


def test_the_same_frame_again_and_again_is_shown_once() -> None:
    frames = ["toy.py:3 in f: f()", *["toy.py:7 in g: g()"] * 12]
    assert frames_text(frames, None).plain == "at toy.py:3 in f: f()\nat toy.py:7 in g: g()  (12 times)"


def test_only_the_first_hint_is_given_away() -> None:
    text = shown(check_report(in_progress("ada"), course()), width=200)
    assert "1 of 3; ./kata hint module2/self_attention opens the next" in text
    assert "standard deviation" not in text


def test_budgets_are_text_bars() -> None:
    text = shown(check_report(in_progress("ada"), course()), width=120)
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "FLOPs of `attention`: 2.1 MFLOP" in line)
    assert "at most 1.06 MFLOP, 1.98× the limit, replayed" in lines[at]
    assert re.fullmatch(r"\s+█+│▒+·*\s*", lines[at + 1]), lines[at + 1]
    within = lines[next(i for i, line in enumerate(lines) if "Peak memory: 192 KiB" in line) + 1]
    assert re.fullmatch(r"\s+█+·+│·*\s*", within), within
    assert "self-reported" in text


def test_an_untouched_stub_is_one_friendly_line() -> None:
    text = shown(check_report(record("ada", KV_CACHE, State.not_started, cause="NotImplementedError"), course()))
    head, line = text.strip().splitlines()
    assert head.strip() == "6.1 KV-Cache Implementation  ○ not started"
    assert line.startswith("Nothing tried yet: open ")
    assert "kv_cache.py" in line
    assert "Traceback" not in text


def test_an_unreadable_file_shows_the_line() -> None:
    text = shown(check_report(unreadable("ada"), course()))
    assert "! unreadable" in text
    assert "syntax error in line 41" in text
    assert "at kv_cache.py:41: scores = (q @ k" in text


def test_a_syntax_error_shows_the_caret_under_its_place() -> None:
    record = unreadable("ada")
    record.evidence = Evidence("'(' was never closed", got="    scores = (q @ k\n             ^",
                               frames=["kv_cache.py:41: scores = (q @ k"])
    lines = [line.rstrip() for line in shown(check_report(record, course())).splitlines()]
    at = lines.index("  at kv_cache.py:41")
    assert lines[at + 1].index("(") == lines[at + 2].index("^") and lines[at + 2].strip() == "^"


def test_what_was_printed_stands_with_the_check_that_failed() -> None:
    record = in_progress("ada")
    failed = next(c for c in record.checks if c.outcome is Outcome.failed and not c.not_started)
    text = shown(check_report(record, course(), printed={failed.id: "\x1b[31mfirst\n" + "x\n" * 20 + "last\n"}))
    assert " printed … 14 lines before" in text and "last" in text and "first" not in text and "\x1b[31m" not in text
    assert "printed" not in shown(check_report(record, course(), printed={"test_other.py::test_no": "elsewhere"}))


def test_frames_in_the_graded_file_get_a_path_and_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "work" / "self_attention.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.chdir(tmp_path)
    report = check_report(in_progress("ada"), course(), source=source)
    assert f"at {Path('work') / 'self_attention.py'}:41 in attention" in shown(report, width=200)
    linked = shown(report, Terminal(), width=200)
    assert source.as_uri() in linked
    assert "\x1b]8;" in linked
    assert "\x1b]8;" not in shown(report, width=200)


def test_the_policy_holds_here_too() -> None:
    text = shown(check_report(in_progress("ada"), course("outcome")))
    assert "exactly what you get" not in text
    assert "0.2034" not in text
    assert "tells no more about it" in text
    assert "0.2034" in shown(check_report(in_progress("ada"), course("outcome"), feedback="counterexample"))


def test_staff_output_is_never_shown() -> None:
    assert "debug: q.shape" not in shown(check_report(in_progress("ada"), course()))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_texts_do_nothing_to_the_terminal(name: str) -> None:
    for report in (check_report(hostile(name), course()), summary_table([hostile(name)], course())):
        piped = shown(report)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", piped)
        at_terminal = shown(report, Terminal(), width=100)
        assert not re.search(
            r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202e]", re.sub(r"\x1b\[[0-9;]*m", "", at_terminal)
        )


def test_markup_in_a_text_is_not_markup() -> None:
    text = shown(summary_table([mastered("[bold]ada[/bold] [link=http://evil]x[/link]")], course()), width=160)
    assert "[bold]ada[/bold] [link=http://e" in text


def test_no_color_and_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    report = check_report(in_progress("ada"), course())
    assert "\x1b" not in shown(report)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]")
    assert colour.search(shown(report, Terminal(), width=100))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(shown(report, Terminal(), width=100))


def test_a_stream_that_cannot_write_the_signs_gets_replacements() -> None:
    code = (
        "from tests.reports import factory as f\nfrom llmkata.reports.terminal import *\n"
        "console().print(check_report(f.in_progress('Zo\\u00eb'), f.course()))"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
    )
    assert made.returncode == 0, made.stderr
    assert b"Self-Attention Mechanism" in made.stdout


def test_tasks_nobody_touched_are_one_line_and_a_mistake_is_explained_once() -> None:
    untouched = {"cause": "not started: task 5: online softmax", "tier": "stretch"}
    mistakes = [factory.scaled_by_d(), msgspec.structs.replace(factory.scaled_by_d(), id="test_correctness.py::test_z")]
    checks = [*mistakes, factory.check("test_streaming", 5, factory.Outcome.failed, 7, **untouched)]
    text = shown(check_report(record("ada", checks=checks), course()))
    assert text.count("Your output is exactly") == 1 and text.count("→ the same mistake as above") == 1
    assert "○ Task 5" in text and "not started, 7 points to earn" in text and "online softmax" not in text


def test_the_table_of_a_class() -> None:
    text = shown(
        summary_table([*showcase("Zoë"), mastered("ada"), record("bob", KV_CACHE, State.infrastructure)], course()),
        width=140,
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert re.split(r"\s{2,}", lines[0]) == ["learner", "total", "matrix_calculus", "self_attention", "kv_cache"]
    assert re.split(r"\s{2,}", lines[2]) == ["ada", "25 %", "★ mastered"]
    assert re.split(r"\s{2,}", lines[3]) == ["bob", "0 %", "? not judged"]
    assert re.split(r"\s{2,}", lines[4]) == ["Zoë", "36.6 %", "★ mastered", "◐ in progress, 47 %", "! unreadable"]
    assert lines[5] == "3 learners, mean total 20.5 %"
    assert lines[6].startswith("1 could not be judged")


def test_nobody_and_everybody() -> None:
    assert shown(summary_table([], course())).strip() == "No submissions were graded."
    text = shown(summary_table(class_of(500), course(), limit=20))
    assert len(text.splitlines()) < 30
    assert "500 learners, 480 more not listed, mean total" in text


def test_many_exercises_are_counted_by_state() -> None:
    base = course()
    many = tuple(exercise(9, f"9.{i}", f"ex{i}", f"Exercise {i}", [("x", "core")]) for i in range(8))
    wide = msgspec.structs.replace(base, modules=(msgspec.structs.replace(base.modules[0], number=9, exercises=many),))
    records = [mastered("ada", e.id) for e in many[:5]] + [record("ada", many[5].id, State.missing)]
    records += [mastered("bob", many[i].id) for i in (6, 7)]
    text = shown(summary_table(records, wide), width=100)
    assert "★ 5 mastered, – 1 missing" in text
    assert max(map(len, text.splitlines())) <= 100


def test_an_exercise_the_course_does_not_have() -> None:
    assert "module9/unknown  ★ mastered" in shown(check_report(mastered("ada", "module9/unknown"), course()))
    stub = ExerciseRecord("ada", "module9/unknown", State.not_started)
    assert "Nothing tried yet: open module9/unknown" in shown(check_report(stub, course()))


def test_passed_checks_take_one_line_per_task() -> None:
    text = shown(check_report(mastered("ada", SELF_ATTENTION), course()))
    assert "✓ Task 1 Scaled dot-product attention  1/1 checks, core" in text
    assert "Again" not in text
