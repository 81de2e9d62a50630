"""R33: hand in again and again, and read the expected value out of what is told."""

import re

from llmkata.records import Outcome
from llmkata.reports.scorecard import to_html, to_json, to_markdown
from llmkata.reports.view import scorecard

from ..toy.harness import COURSE, grade, named, solution_with

WRONG = "def magic(n): return 5"


def views(record, **options):
    card = scorecard("you", [record], COURSE, **options)
    return to_json(card).decode() + to_html(card) + to_markdown(card)


def test_hidden_checks_tell_no_expected_value():
    record = grade(solution_with(WRONG), only="test_magic", seed=3)
    expected = named(record, "test_magic").evidence.expected
    assert re.fullmatch(r"\d{4,}", expected)
    assert expected not in views(record)
    assert expected in views(record, audience="staff")  # the negative control: it is there, and could be read


def test_nothing_of_it_holds_for_another_seed():
    asked = [named(grade(solution_with(WRONG), only="test_magic", seed=s), "test_magic").evidence for s in (1, 2)]
    assert asked[0].expected != asked[1].expected and asked[0].call != asked[1].call


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed
