"""The scorecard as data: JSON, its schema, the feedback policy, and Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import msgspec
import pytest
from markdown_it import MarkdownIt

from llmkata.records import ExerciseRecord, Outcome, State
from llmkata.reports.policy import LEVELS, WITHHELD, allowed
from llmkata.reports.schema import as_text, json_schema
from llmkata.reports.scorecard import to_json, to_markdown
from llmkata.reports.view import Scorecard, scorecard

from .factory import (
    ATTACK,
    HOSTILE_NAMES,
    KV_CACHE,
    SELF_ATTENTION,
    check,
    course,
    flops_over,
    hostile,
    in_progress,
    mastered,
    record,
    scaled_by_d,
    showcase,
    unreadable,
)

SCHEMA = Path(__file__).parents[2] / "docs" / "scorecard.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def card(records: list[ExerciseRecord], learner: str = "ada", **options) -> Scorecard:
    return scorecard(learner, records, course(options.pop("hidden", "counterexample")), **options)


def as_data(records: list[ExerciseRecord], learner: str = "ada", **options) -> dict:
    return json.loads(to_json(card(records, learner, **options)))


def test_the_schema_in_docs_is_the_one_of_the_code() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == as_text(), (
        "run: python -m llmkata.reports.schema > docs/scorecard.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize(
    "records",
    [
        [],
        showcase("ada"),
        [hostile("ada")],
        [record("ada", KV_CACHE, State.missing)],
        [record("ada", KV_CACHE, State.infrastructure)],
        [mastered("ada", "module9/unknown")],
    ],
)
@pytest.mark.parametrize("audience", ["learner", "staff"])
def test_every_card_is_valid(records: list[ExerciseRecord], audience: str) -> None:
    data = as_data(records, audience=audience)
    VALIDATOR.validate(data)
    assert data["schema"] == "llmkata/scorecard/v1"
    assert msgspec.json.decode(json.dumps(data), type=Scorecard) == card(records, audience=audience)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("learner"),
        lambda d: d.update(schema="llmkata/scorecard/v2"),
        lambda d: d.update(extra=1),
        lambda d: d["total"].update(percent="36"),
        lambda d: d["exercises"][1].update(standing="won"),
        lambda d: d["exercises"][1]["tasks"][0]["checks"][0].update(outcome="skipped"),
        lambda d: d["exercises"][1]["tasks"][0]["checks"][1]["diagnosis"].pop("feedback"),
        lambda d: d["exercises"][1]["tasks"][1]["checks"][1]["measures"][0].update(trust="guessed"),
    ],
)
def test_the_schema_refuses_what_is_not_a_card(spoil) -> None:
    data = as_data(showcase("ada"))
    spoil(data)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data)


def test_numbers_are_those_of_the_records() -> None:
    data = as_data(showcase("ada"))
    attention = data["exercises"][1]
    source = in_progress("ada")
    assert (attention["points"], attention["max_points"]) == (source.points, source.max_points)
    assert (attention["tasks_done"], attention["tasks_total"], attention["standing"]) == (2, 6, "in progress")
    assert sum(t["points"] for t in attention["tasks"]) == source.points
    assert data["total"]["percent"] == pytest.approx(100 * (1 + source.points / source.max_points) / 4)
    assert data["total"]["planned"] == 1
    assert attention["next_check"] == "test_correctness.py::test_attention_matches_reference"


def test_only_the_learners_own_records_are_on_the_card() -> None:
    assert as_data([mastered("bob"), in_progress("ada")])["exercises"][0]["standing"] == "not started"


def test_a_recognised_mistake_is_the_place_to_start_within_its_task() -> None:
    plain, recognised = check("test_a", 1, Outcome.failed), scaled_by_d()
    stretch = check("test_s", 5, Outcome.failed, tier="stretch")
    assert as_data([record("ada", checks=[stretch, plain, recognised])])["exercises"][1]["next_check"] == recognised.id
    assert as_data([record("ada", checks=[stretch, plain])])["exercises"][1]["next_check"] == plain.id
    assert as_data([record("ada", checks=[stretch])])["exercises"][1]["next_check"] == stretch.id
    assert as_data([record("ada", checks=[check("test_a", 1)])])["exercises"][1]["next_check"] == ""


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_tells_what_it_may_and_no_more(level: str) -> None:
    reach = LEVELS.index(level)
    shown = allowed(scaled_by_d(), level, "learner")
    assert (shown.outcome, shown.points, shown.title) == (Outcome.failed, 0, scaled_by_d().title)
    assert bool(shown.hints) == (reach >= 1)
    assert bool(shown.diagnosis) == (reach >= 2)
    assert (shown.cause == WITHHELD) == (reach < 2)
    assert bool(shown.evidence) == (reach >= 3)
    assert bool(allowed(flops_over(), level, "learner").measures) == (reach >= 1)
    assert shown.staff_output == ""
    assert allowed(scaled_by_d(), level, "staff") == scaled_by_d()


def test_no_level_withholds_why_a_check_was_not_judged() -> None:
    skipped = check("test_a", 1, Outcome.not_judged, cause="Not judged: needs threads.")
    assert allowed(skipped, "outcome", "learner").cause == skipped.cause


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown feedback level 'all'"):
        allowed(scaled_by_d(), "all", "learner")  # type: ignore[arg-type]


def test_hints_are_for_checks_that_did_not_pass() -> None:
    assert allowed(check("test_a", 1, hints=["h"]), "counterexample", "learner").hints == []


def test_the_course_decides_unless_told_otherwise() -> None:
    def evidence_of(**options) -> tuple[bool, bool]:
        hidden, visible = scaled_by_d(), msgspec.structs.replace(scaled_by_d(), id="t.py::test_v", visibility="visible")
        checks = as_data([record("ada", checks=[hidden, visible])], **options)["exercises"][1]["tasks"][0]["checks"]
        by_visibility = {c["visibility"]: c["evidence"] is not None for c in checks}
        return by_visibility["hidden"], by_visibility["visible"]

    assert evidence_of(hidden="counterexample") == (True, True)
    assert evidence_of(hidden="diagnosis") == (False, True)
    assert evidence_of(hidden="diagnosis", feedback="counterexample") == (True, True)
    assert evidence_of(hidden="counterexample", feedback="outcome") == (False, True)


@pytest.mark.parametrize("level", LEVELS)
def test_withheld_texts_are_nowhere_in_any_format(level: str) -> None:
    from llmkata.reports.scorecard import to_html

    made = card([in_progress("ada")], hidden=level)
    reach = LEVELS.index(level)
    for text, needs in (
        ("0.2034", 3),
        ("exactly what you get", 2),
        ("variance of a dot product", 1),
        ("debug: q.shape", 4),
    ):
        for form in (to_html(made), to_markdown(made), to_json(made).decode()):
            assert (text in form) == (reach >= needs), (text, level)


def test_no_control_character_is_in_any_text() -> None:
    data = to_json(card([hostile("x\x1b[31m\u202e")], "x\x1b[31m\u202e", audience="staff")).decode()
    assert not re.search(r"\\u00[01]|\\u007f|\\u009|\u202e", data.replace("\\n", ""))


def test_markdown_holds_what_the_card_holds() -> None:
    text = to_markdown(card(showcase("ada")))
    order = [
        "# ada",
        "**Total: 36.6 %**",
        "| 2.1 | Self-Attention Mechanism | in progress 2/6 | 20 / 43 | 46.5 % |",
        "✗ Task 1: Scaled dot-product attention",
        "**Recognised mistake:** Your output is exactly what you get by scaling with `d`",
        "differs from the reference by up to 0.31",
        "Smallest failing input",
        "Expected",
        "Got",
        "Hint 1",
        "1.98× the limit",
        "State: **unreadable**",
        "was never closed",
    ]
    places = [text.find(part) for part in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def test_markdown_tables_are_tables() -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(to_markdown(card(showcase("ada"))))
    assert sum(t.type == "table_open" for t in tokens) == 4
    rows = sum(t.type == "tr_open" for t in tokens)
    assert rows == 4 + 3 + sum(len(c.measures) for r in showcase("ada") for c in r.checks)


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, ATTACK])
def test_markdown_of_a_hostile_card_has_the_shape_of_a_harmless_one(name: str) -> None:
    def kinds(learner: str, records: list[ExerciseRecord]) -> list[str]:
        text = to_markdown(card(records, learner, audience="staff"))
        parsed = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(text)
        return [
            t.type
            for block in parsed
            for t in (block, *(block.children or []))
            if t.type not in ("text", "text_special")
        ]

    def tame(source: ExerciseRecord) -> ExerciseRecord:
        raw = msgspec.json.encode(source).decode()
        attack = msgspec.json.encode(ATTACK).decode()[1:-1]
        return msgspec.json.decode(raw.replace(attack, "harmless"), type=ExerciseRecord)

    bad = [hostile(name), unreadable(name)]
    good = [msgspec.structs.replace(tame(r), learner="ada") for r in [hostile("ada"), unreadable("ada")]]
    assert kinds(name, bad) == kinds("ada", good)


def test_exercises_come_in_the_order_of_the_course() -> None:
    data = as_data([mastered("ada", KV_CACHE), in_progress("ada")])
    assert [e["id"] for e in data["exercises"]] == ["module0/matrix_calculus", SELF_ATTENTION, KV_CACHE]
