"""Which mistakes of the toy exercise are named on the card, from the check to the record."""

from __future__ import annotations

import pytest

from llmkata.checks.misconceptions import load
from llmkata.grading.runner import grade_one
from llmkata.plugin.text import failure_text
from llmkata.records import Evidence, Measure, Outcome, Spot

from ..toy.harness import COURSE, SOLUTION, TOY, grade, named, solution_with

MISTAKES = {m.name: m for m in load(TOY.graders_dir / "misconceptions.py")}
#: What is named: itself, one that is declared equivalent, or nothing where two cannot be told apart.
NAMED = {"wrong_axis": "wrong_axis", "base_two": "base_two", "scaled_by_log_two": "base_two", "unshifted": "unshifted",
         "off_by_eleven": None, "eleven_too_late": None, "twice": "twice"}


def test_all_are_here():
    assert NAMED.keys() == MISTAKES.keys()


@pytest.mark.parametrize(("name", "transport"), [*((name, "loopback") for name in MISTAKES), ("wrong_axis", "worker"), ("twice", "worker")])
def test_each_is_rejected_and_named(name, transport):
    m = MISTAKES[name]
    record = grade_one(COURSE, TOY, (SOLUTION + "\n").encode(), only=m.caught_by, transport=transport, mistake=m)
    caught = named(record, m.caught_by)
    assert caught.outcome is Outcome.failed and not caught.flags
    assert (caught.diagnosis and caught.diagnosis.name) == NAMED[name]
    if caught.diagnosis:
        assert caught.diagnosis.feedback == MISTAKES[NAMED[name]].feedback


def test_another_mistake_is_not_named():
    for code in ("_right = softmax\ndef softmax(x): return _right(x) * 1.5", "class T: pass\ndef softmax(x): return T()",
                 "import os\ndef softmax(x): os._exit(1)"):
        record = grade(solution_with(code), only="test_softmax_sums_to_one")
        failed = named(record, "test_softmax_sums_to_one")
        assert failed.outcome is Outcome.failed and failed.diagnosis is None and not failed.flags


def test_without_diagnosis():
    record = grade(solution_with("def softmax(x): return x.exp() / x.exp().sum(0)"), only="test_two_numbers", transport="loopback")
    assert named(record, "test_two_numbers").outcome is Outcome.passed
    wrong = solution_with("def softmax(x):\n    e = 2 ** x\n    return e / e.sum(-1, keepdim=True)")
    assert named(grade(wrong, only="test_softmax_matches", transport="loopback"), "test_softmax_matches").diagnosis.name == "base_two"
    silent = grade(wrong, only="test_softmax_matches", transport="loopback", diagnosing=False)
    assert named(silent, "test_softmax_matches").diagnosis is None


def test_a_failed_check_in_the_terminal():
    record = grade(solution_with("def softmax(x):\n    e = 2 ** x\n    return e / e.sum(-1, keepdim=True)"),
                   only="test_softmax_matches", transport="loopback")
    failed = named(record, "test_softmax_matches")
    lines = failure_text(failed).splitlines()
    assert lines[0] == "task 1: The softmax equals that of PyTorch." and lines[1].strip() == MISTAKES["base_two"].feedback
    assert any(line.strip().startswith("call     softmax(tensor (1, 2) float32") for line in lines)
    failed.measures = [Measure("FLOPs", 3e9, "FLOP", 1e9, 5e8, ok=False, spots=[Spot("mm", 3e9, 12)])]
    failed.evidence = Evidence("s", got="\x1b[31mred\x07\u202e", frames=["a.py:3"])
    text = failure_text(failed)
    assert "FLOPs: 3e+09 FLOP, at most 1e+09, at least 5e+08" in text and "line 12: mm 3e+09" in text
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "red" in text
