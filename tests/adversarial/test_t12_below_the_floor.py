"""T12: measured at less than it can possibly take."""

import json

from llmkata.records import Outcome
from llmkata.reports.scorecard import to_json
from llmkata.reports.view import scorecard

from ..toy.harness import COURSE, grade, named, solution_with

#: Right, and without a single matrix product.
ATTACK = "def project(x, w): return (x[:, :, None] * w).sum(1)"


def flags(record, audience):
    card = json.loads(to_json(scorecard("you", [record], COURSE, audience=audience)))
    return [f for e in card["exercises"] for t in e["tasks"] for c in t["checks"] for f in c["flags"]]


def test_it_is_for_staff_to_look_at_and_no_credit(earns_nothing):
    record = grade(solution_with(ATTACK), only="test_project_flops")
    assert named(record, "test_project").outcome is Outcome.passed
    failed = earns_nothing(record, "test_project_flops")
    assert "part of the work was not seen" in failed.cause
    assert flags(record, "staff") == ["FLOPs of a product is 0 FLOP, below the floor of 8.192 kFLOP"]
    assert flags(record, "learner") == []


def test_honest_work_passes(honest):
    assert named(honest, "test_project_flops").outcome is Outcome.passed and flags(honest, "staff") == []


def test_an_upper_limit_alone_is_met():
    measured = named(grade(solution_with(ATTACK), only="test_project_flops"), "test_project_flops").measures[0]
    assert measured.value <= measured.at_most
