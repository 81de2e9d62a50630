"""What GitHub's reporter and Classroom 50 are given: the same scores, policy applied, in their own words."""

from __future__ import annotations

import base64
import datetime
import json
from typing import Any

import jsonschema
import pytest

from llmkata.exports import classroom50, github
from llmkata.exports.items import Item, check_line, items, merged, own_line, verdict
from llmkata.exports.remarks import remarks
from llmkata.records import Evidence, ExerciseRecord, Outcome, State
from llmkata.reports.view import scorecard

from ..reports.factory import ATTACK, KV_CACHE, MATRIX_CALCULUS, SELF_ATTENTION, check, course, flops_over, scaled_by_d

FILE = "exercises/module2/self_attention/self_attention.py"


def record(exercise: str = SELF_ATTENTION, *checks, state: State = State.graded, **more) -> ExerciseRecord:
    return ExerciseRecord("ann", exercise, state, list(checks), **more)


def visible(name: str, task: int, outcome: Outcome = Outcome.passed, **more):
    return check(name, task, outcome, 0.0, visibility="visible", file="test_self_attention.py", **more)


def lines(*records: ExerciseRecord, hidden: str = "counterexample", **more) -> list[Item]:
    return items(records, course(hidden), "ann", **more)


# Items


def test_hidden_checks_score_their_points() -> None:
    told = lines(record(SELF_ATTENTION, check("test_a", 1), scaled_by_d()))
    mine = [item for item in told if item.exercise == SELF_ATTENTION]
    assert [(i.status, i.score, i.max_score) for i in mine] == [("pass", 5, 5), ("fail", 0, 6)]
    assert (mine[1].file, mine[1].line, mine[1].task) == (FILE, 41, 1)
    assert "scaling with `d`" in mine[1].message
    assert mine[1].command == "./kata check module2/self_attention --only test_attention_matches_reference"
    assert mine[1].seconds == 0.12


def test_without_hidden_checks_each_task_scores_one() -> None:
    told = lines(
        record(
            SELF_ATTENTION,
            visible("test_a", 1),
            visible("test_b", 1),
            visible("test_c", 2),
            visible("test_d", 2, Outcome.failed),
        )
    )
    by_task = {i.task: (i.status, i.score) for i in told if i.exercise == SELF_ATTENTION}
    assert by_task[1] == ("pass", 1)
    assert by_task[2] == ("fail", 0)
    assert by_task[3] == ("error", 0)  # a task without a check that ran earns nothing
    assert sum(i.max_score for i in told) == 6 + 4 + 3


def test_what_was_not_begun_counts_and_fails_nothing() -> None:
    told = lines(record(SELF_ATTENTION, check("test_a", 1)), maxima={KV_CACHE: 30.0, MATRIX_CALCULUS: 12.0})
    assert sum(i.max_score for i in told) == 5 + 30 + 12
    assert verdict(told, "any") == "pass"
    assert verdict([]) == "pass"


def test_only_what_was_asked_for() -> None:
    assert {i.exercise for i in lines(exercises=[KV_CACHE])} == {KV_CACHE}


def test_others_records_are_passed_over() -> None:
    theirs = record(SELF_ATTENTION, check("test_a", 1))
    theirs.learner = "bob"
    assert not any(i.begun for i in lines(theirs))


@pytest.mark.parametrize(
    ("checks", "core", "anything"),
    [
        ([check("test_a", 1)], "pass", "pass"),
        ([check("test_a", 1, Outcome.failed)], "fail", "fail"),
        ([check("test_a", 1), check("test_b", 5, Outcome.failed, tier="stretch")], "pass", "fail"),
        ([check("test_a", 1, Outcome.not_judged)], "error", "error"),
        ([check("test_a", 1), check("test_gpu", 1, Outcome.not_judged, 0.0)], "pass", "pass"),
        ([check("test_a", 1, Outcome.failed, cause="not started: task 1")], "pass", "pass"),
    ],
)
def test_verdicts(checks: list, core: str, anything: str) -> None:
    told = [
        i
        for i in lines(record(SELF_ATTENTION, *checks))
        if i.exercise == SELF_ATTENTION and i.task in {c.task for c in checks}
    ]
    assert (verdict(told, "core"), verdict(told, "any"), verdict(told, "never")) == (core, anything, "pass")


def test_unreadable_fails_and_a_fault_of_the_grader_counts_nowhere() -> None:
    broken = record(
        state=State.unreadable,
        cause="Line 3 is no Python.",
        evidence=Evidence("x", frames=["self_attention.py:3: x ="]),
    )
    [told] = [i for i in lines(broken) if i.exercise == SELF_ATTENTION]
    assert (told.status, told.max_score, told.line, told.begun) == ("fail", 6, 3, True)
    assert verdict([told]) == "fail"
    [fault] = [i for i in lines(record(state=State.infrastructure, cause="x")) if i.exercise == SELF_ATTENTION]
    assert (fault.status, fault.max_score) == ("error", 0)
    assert verdict([fault]) == "error"


@pytest.mark.parametrize(
    ("level", "told"), [("counterexample", True), ("diagnosis", True), ("hint", False), ("outcome", False)]
)
def test_no_more_is_told_than_the_policy_allows(level: str, told: bool) -> None:
    text = json.dumps(github.reporter_document(lines(record(SELF_ATTENTION, scaled_by_d()), hidden=level)))
    assert ("sqrt(d)" in text) is told
    assert "debug: q.shape" not in text
    assert ("Hint:" in text) is (level == "hint")


def test_the_line_of_a_missed_budget_and_of_what_was_called() -> None:
    [card] = [
        e
        for e in scorecard(
            "ann",
            [
                record(
                    SELF_ATTENTION,
                    flops_over(),
                    check("test_a", 1, Outcome.failed, evidence=Evidence("s", call="Layer.forward(x)")),
                )
            ],
            course(),
        ).exercises
        if e.id == SELF_ATTENTION
    ]
    called, budget = card.tasks[0].checks[0], card.tasks[1].checks[0]
    spent = {s.line for m in budget.measures for s in m.spots if s.line}
    assert check_line(budget, FILE) in spent
    assert check_line(called, FILE) == 0
    assert (
        check_line(
            called, FILE, "import torch\n\nclass Layer:\n    def forwards(self): ...\n    def forward(self): ...\n"
        )
        == 5
    )
    assert own_line(["other.py:9 in f: x", "self_attention.py:4 in g: y", "torch/nn.py:99 in h"], FILE) == 4


# GitHub's reporter


def decoded(output: str) -> dict[str, Any]:
    """As src/main.js does: Buffer.from(value, "base64").toString("utf-8"), then JSON.parse."""
    assert "\n" not in output
    return json.loads(base64.b64decode(output, validate=True).decode("utf-8"))


REPORTER = {
    "type": "object", "additionalProperties": False, "required": ["version", "status", "max_score", "tests"],
    "properties": {
        "version": {"const": 1}, "status": {"enum": ["pass", "fail", "error"]}, "message": {"type": "string"},
        "max_score": {"type": "number", "minimum": 0},
        "tests": {"type": "array", "items": {
            "type": "object", "additionalProperties": False,
            "required": ["name", "status", "message", "test_code", "filename", "line_no", "duration", "score"],
            "properties": {
                "name": {"type": "string", "minLength": 1}, "status": {"enum": ["pass", "fail", "error"]},
                "message": {"type": "string"}, "test_code": {"type": "string"}, "filename": {"type": "string"},
                "line_no": {"type": "integer", "minimum": 0}, "duration": {"type": "number"},
                "score": {"type": "number"},
                "task_id": {"type": "integer"}, "output": {"type": "string"},
            }}},
    },
}  # fmt: skip


def test_the_reporter_adds_up_what_was_earned() -> None:
    """Source: src/notify-classroom.js adds tests[].score against max_score, over runners with a max_score."""
    told = decoded(
        github.step_output(
            lines(record(SELF_ATTENTION, check("test_a", 1), scaled_by_d()), record(KV_CACHE, check("test_k", 1)))
        )
    )
    jsonschema.validate(told, REPORTER)
    assert (sum(t["score"] for t in told["tests"]), told["max_score"]) == (10, 16)
    assert isinstance(told["max_score"], int)
    assert told["status"] == "fail"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told | {"status": "passed"}, REPORTER)


def test_where_nothing_could_be_graded_the_reporter_says_why() -> None:
    told = decoded(github.encode(github.failed_document("no course.yaml")))
    jsonschema.validate(told, REPORTER)
    assert (told["status"], told["message"]) == ("error", "no course.yaml")


@pytest.mark.parametrize(("number", "tests"), [(3, 3 + 2), (150, 150 + 2), (900, 1 + 2)])
def test_a_long_result_still_fits_an_environment_variable(number: int, tests: int) -> None:
    """By checks, with shorter messages, and at last by tasks; the scores are the same."""
    many = [
        check(f"test_{n}", 1, Outcome.failed if n else Outcome.passed, cause="u" * 900, title="T" * 90)
        for n in range(number)
    ]
    told = lines(record(SELF_ATTENTION, *many))
    output = github.step_output(told)
    assert len(output) <= github.MOST_ENCODED < 131_072 - len("KATA_RESULTS=")
    short = decoded(output)
    jsonschema.validate(short, REPORTER)
    assert len(short["tests"]) == tests
    assert (short["status"], short["max_score"], sum(t["score"] for t in short["tests"])) == ("fail", 5 * number, 5)
    if number == 3:
        assert short == github.reporter_document(told)


def test_a_course_as_long_as_this_one_fits() -> None:
    """53 exercises of 6 tasks with 3 checks each."""
    whole = [
        Item(
            f"module1/some_exercise_{e}",
            f"1.{e} Some exercise, task {t}: a check {c}",
            "fail",
            0,
            2,
            "core",
            True,
            "m" * 500,
            f"./kata check module1/some_exercise_{e}",
            f"exercises/module1/some_exercise_{e}/some_exercise_{e}.py",
            3,
            t,
        )
        for e in range(53)
        for t in range(1, 7)
        for c in range(3)
    ]
    told = decoded(github.step_output(whole))
    assert told["max_score"] == 2 * len(whole)
    assert {t["name"] for t in told["tests"]} == {
        f"1.{e} Some exercise, task {t}" for e in range(53) for t in range(1, 7)
    }


def test_merged_lines_pass_only_where_every_part_did() -> None:
    parts = [Item("a", "1 A, task 1: x", "pass", 2, 2, "core", True, task=1),
             Item("a", "1 A, task 1: y", "fail", 0, 3, "core", True, "why", task=1),
             Item("a", "1 A, task 2: z", "pass", 1, 1, "core", True, task=2)]  # fmt: skip
    assert [(i.name, i.status, i.score, i.max_score) for i in merged(parts, by_task=True)] == [
        ("1 A, task 1", "fail", 2, 5),
        ("1 A, task 2", "pass", 1, 1),
    ]
    [one] = merged(parts, by_task=False)
    assert (one.name, one.status, one.score, one.message) == ("1 A", "fail", 3, "why")


# Classroom 50

ENVIRONMENT = {
    "CLASSROOM": "llm",
    "ASSIGNMENT": "module2",
    "SUBMISSION_TAG": "submit/2026-03-01T10-00-00Z-c0ffee",
    "COMMIT_URL": "https://example.invalid/c",
    "RELEASE_URL": "https://example.invalid/r",
    "REVIEW_URL": "",
}
TEXTS = ("classroom", "assignment", "submission", "commit", "release", "review")
RESULT = {
    "type": "object", "additionalProperties": False,
    "required": [*TEXTS, "schema", "datetime", "score", "max-score", "tests"],
    "properties": {
        "schema": {"const": "classroom50/result/v1"},
        **{name: {"type": "string", "minLength": 1} for name in TEXTS},
        "datetime": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
        "score": {"type": "number", "minimum": 0}, "max-score": {"type": "number", "minimum": 0},
        "tests": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["test-name", "passed", "score", "max-score"],
            "properties": {"test-name": {"type": "string", "minLength": 1}, "passed": {"type": "boolean"},
                           "score": {"type": "number"}, "max-score": {"type": "number", "exclusiveMinimum": 0}}}},
    },
}  # fmt: skip


def test_classroom50s_result() -> None:
    at = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    told = classroom50.result_document(
        lines(record(SELF_ATTENTION, check("test_a", 1), scaled_by_d(), visible("test_v", 1))),
        classroom50.submission_of(ENVIRONMENT),
        at=at,
    )
    jsonschema.validate(told, RESULT)
    assert (told["score"], told["max-score"], told["datetime"]) == (5, 11, "2026-03-01T10:00:00Z")
    assert [t["passed"] for t in told["tests"]] == [True, False]
    assert told["review"] == ENVIRONMENT["COMMIT_URL"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told | {"schema": "classroom50/result/v2"}, RESULT)


def test_classroom50_is_known_by_its_environment() -> None:
    assert classroom50.submission_of({"CLASSROOM": "llm"}) is None
    with pytest.raises(ValueError, match="COMMIT_URL, RELEASE_URL"):
        classroom50.submission_of({k: v for k, v in ENVIRONMENT.items() if not k.endswith("_URL")})


# Remarks beside lines


def test_a_remark_for_each_failed_task_core_first() -> None:
    records = [
        record(MATRIX_CALCULUS, check("test_c", 3, Outcome.failed, tier="stretch")),
        record(SELF_ATTENTION, check("test_b", 1, Outcome.failed), scaled_by_d(), flops_over(), check("test_ok", 3)),
        record(
            KV_CACHE,
            state=State.unreadable,
            cause="Line 3 is no Python.",
            evidence=Evidence("x", frames=["kv_cache.py:3: x ="]),
        ),
    ]
    told = remarks(scorecard("ann", records, course()), course(), {})
    assert [note.title.split(": ")[0] for note in told] == [
        "2.1 Self-Attention Mechanism, task 1",
        "2.1 Self-Attention Mechanism, task 2",
        "6.1 KV-Cache Implementation",
        "0.1 Matrix Calculus, task 3",
    ]
    assert told[0].line == 41
    assert "Your output is exactly" in told[0].message  # the recognised mistake, not the first failure
    assert "Got: shape (2, 3, 2)" in told[0].message
    assert told[2].line == 3


def test_a_task_that_was_not_begun_has_no_remark() -> None:
    records = [
        record(SELF_ATTENTION, check("test_b", 1, Outcome.failed, cause="not started: task 1"), check("test_c", 2))
    ]
    assert remarks(scorecard("ann", records, course()), course(), {}) == []


def test_a_remark_is_one_command_whatever_the_submission_said() -> None:
    hostile = check(
        "test_b",
        1,
        Outcome.failed,
        cause=ATTACK + "\n::set-output name=result::x",
        evidence=Evidence(ATTACK, got="a\r\n::error::b\n" * 99),
    )
    [note] = remarks(scorecard("ann", [record(SELF_ATTENTION, hostile)], course()), course(), {})
    assert "\n" not in str(note)
    assert "\r" not in str(note)
    assert "\x1b" not in str(note)
    assert str(note).startswith(f"::error file={FILE},title=2.1 Self-Attention Mechanism%2C task 1%3A ")
