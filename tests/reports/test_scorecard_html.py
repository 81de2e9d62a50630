"""The scorecard page."""

from __future__ import annotations

import re
import time

import msgspec
import pytest

from llmkata.records import ExerciseRecord, State
from llmkata.reports import pages
from llmkata.reports.scorecard import to_html
from llmkata.reports.text import slug
from llmkata.reports.view import scorecard

from . import factory
from .factory import ATTACK, HOSTILE_NAMES, KV_CACHE, course, hostile, in_progress, mastered, record, unreadable
from .pagecheck import Node, check_page, parse, shape


def page_of(records: list[ExerciseRecord], learner: str = "ada", **options) -> Node:
    return check_page(to_html(scorecard(learner, records, course(), **options)))


def card_of(page: Node, exercise: str) -> Node:
    title = {
        "module0/matrix_calculus": "Matrix Calculus",
        "module2/self_attention": "Self-Attention Mechanism",
        KV_CACHE: "KV-Cache Implementation",
    }[exercise]
    (found,) = [a for a in page.all("article") if title in a.all("h2")[0].text()]
    return found


def test_header_tells_who_and_how_much() -> None:
    page = page_of([mastered("ada"), in_progress("ada"), unreadable("ada")])
    assert page.all("h1")[0].text() == "ada"
    assert page.all(cls="figure")[0].text() == "36.6 % of the course total"
    below = page.all(cls="below")[0].text()
    assert "1 mastered 1 in progress 1 unreadable" in below
    assert "Graded 2026-03-04 11:22 +01:00" in below


def test_what_nobody_has_touched_comes_last_and_folded() -> None:
    page = page_of([in_progress("ada")])
    (fold,) = [d for d in page.all("details") if "not started" in d.all("summary")[0].text() and d.all("article")]
    folded, every = fold.all("article"), page.all("article")
    assert folded and every[-len(folded):] == folded and len(every) == len(folded) + 1
    assert fold.all("summary")[0].text() == f"{len(folded)} exercise{'s' if len(folded) != 1 else ''} not started"
    # Where there is nothing else, or something is known of each, nothing is folded.
    assert not page_of([]).all("details")
    given_out = [record("ada", name, State.not_started) for name in ("module0/matrix_calculus", "module2/self_attention", KV_CACHE)]
    assert len(page_of(given_out).all("article")) >= 3 and not page_of(given_out).all("details")


@pytest.mark.parametrize(
    ("records", "badge", "words"),
    [
        ([], "not started", "Nothing is held against you"),
        ([record("ada", KV_CACHE, State.not_started)], "not started", "exercises/module6/kv_cache/README.md"),
        (
            [record("ada", KV_CACHE, State.missing, cause="No file kv_cache.py was handed in.")],
            "missing",
            "No file kv_cache.py was handed in.",
        ),
        ([unreadable("ada")], "unreadable", "'(' was never closed"),
        (
            [record("ada", KV_CACHE, State.infrastructure, cause="Out of memory on the host.")],
            "not judged",
            "not your fault",
        ),
        ([mastered("ada", KV_CACHE)], "mastered", "20 / 20 points"),
    ],
)
def test_every_state_is_told_in_words(records: list[ExerciseRecord], badge: str, words: str) -> None:
    card = card_of(page_of(records), KV_CACHE)
    assert card.all(cls="badge")[0].text() == badge
    assert words in card.text()
    assert bool(card.all(cls="task")) == (badge == "mastered"), "an exercise that was not graded shows no checks"


def test_an_exercise_in_progress_counts_its_tasks_and_says_where_to_start() -> None:
    card = card_of(page_of([in_progress("ada")]), "module2/self_attention")
    assert card.all(cls="badge")[0].text() == "in progress 2/6"
    (start,) = [p for p in card.all(cls="lead") if "Start here" in p.text()]
    target = start.all("a")[0].attrs["href"]
    assert "attention_matches_reference" in target
    assert [p.text().split()[0] for p in card.all(cls="pips")[0].all("a")] == ["1", "2", "3", "4", "5", "6"]
    assert [t.attrs.get("open", "closed") for t in card.all(cls="task")] == [None, None, "closed", "closed", None, None]


def test_a_failure_tells_the_diagnosis_first_then_the_evidence_then_hints() -> None:
    card = card_of(page_of([in_progress("ada")]), "module2/self_attention")
    body = card.all("li", "failed")[0].text()
    order = [
        "Recognised mistake",
        "Your output is exactly what you get by scaling with d instead of sqrt(d)",
        "differs from the reference by up to 0.31",
        "Smallest failing input",
        "attention(q (2, 3, 4) float64",
        "Expected",
        "0.1176",
        "Got",
        "0.2034",
        "Worst element",
        "(0, 2, 0)",
        "In your code",
        "self_attention.py:41 in attention",
        "Hint 1",
        "Hint 2",
        "Hint 3",
    ]
    places = [body.find(text) for text in order]
    assert -1 not in places, order[places.index(-1)]
    assert places == sorted(places)


def half_begun() -> ExerciseRecord:
    """A mistake that two checks recognise, and a task nobody touched."""
    untouched = {"cause": "not started: task 5: online softmax", "tier": "stretch"}
    again = msgspec.structs.replace(factory.scaled_by_d(), id="test_correctness.py::test_agrees_with_sdpa", title="Again.")
    return record("ada", checks=[
        factory.scaled_by_d(), again,
        factory.check("test_streaming_by_hand", 5, factory.Outcome.failed, 0, visibility="visible", **untouched),
        factory.check("test_streaming", 5, factory.Outcome.failed, 7, **untouched),
        factory.check("test_peak", 5, factory.Outcome.not_judged, 4, tier="stretch", cause="needs test_streaming"),
    ])  # fmt: skip


def test_a_task_nobody_touched_is_not_started_and_folded() -> None:
    page = page_of([half_begun()])
    tasks = {d.attrs["id"].rpartition("-")[2]: d for d in page.all("details", "task")}
    assert "open" in tasks["1"].attrs and "open" not in tasks["5"].attrs
    assert "not started · 0 / 11 points" in tasks["5"].text() and "0 of 2 checks" in tasks["1"].text()
    assert "not started: task 5: online softmax" in tasks["5"].text()
    begun = half_begun()
    begun.checks[3].cause = "The output differs."
    (five,) = [d for d in page_of([begun]).all("details", "task") if d.attrs["id"].endswith("-5")]
    assert "open" in five.attrs and "0 of 3 checks" in five.text()


def test_a_mistake_is_explained_once() -> None:
    first, second = page_of([half_begun()]).all(cls="diagnosis")
    assert "Your output is exactly" in first.text()
    assert "the same as above" in second.text() and "Your output is exactly" not in second.text()


def test_hints_open_one_at_a_time() -> None:
    card = card_of(page_of([in_progress("ada")]), "module2/self_attention")
    first = next(d for d in card.all("details") if d.all("summary")[0].text() == "Hint 1")
    second = next(d for d in first.all("details") if d.all("summary")[0].text() == "Hint 2")
    assert len(second.all("details")) == 2, "the third hint lies in the second, which lies in the first"
    assert "open" not in first.attrs
    assert "open" not in second.attrs


def test_every_lost_point_has_its_reason() -> None:
    records = [in_progress("ada")]
    page = page_of(records)
    for check in records[0].checks:
        if check.points < check.max_points:
            (shown,) = [li for li in page.all("li", "check") if li.attrs["id"].endswith(slug(check.id))]
            assert check.cause.split("`")[0] in shown.text()


def test_budgets_are_drawn_with_limit_reference_and_trust() -> None:
    card = card_of(page_of([in_progress("ada")]), "module2/self_attention")
    budgets = {b.all(cls="name")[0].text(): b for b in card.all(cls="budget")}
    over = budgets["FLOPs of attention"]
    assert "2.1 MFLOP" in over.text()
    assert "1.98× the limit" in over.text()
    assert over.all(cls="limit")
    assert over.all(cls="reference")
    assert over.all(cls="beyond")
    within = budgets["Peak memory"]
    assert "75 % of the limit" in within.text()
    assert not within.all(cls="beyond")
    assert "self-reported" in budgets["Interpreter steps"].text()
    assert budgets["Interpreter steps"].all(cls="dashed"), "a self-reported number is marked apart"
    assert "logarithmic scale" in budgets["Bytes moved by one step"].text()
    assert "logarithmic scale" not in over.text()
    assert budgets["Speed against the loop"].all(cls="floor")
    (plot,) = budgets["Growth of FLOPs with length"].all("svg", "plot")
    assert len(plot.all("circle")) == 4
    assert plot.all(cls="guide")


def test_notes_ignored_files_and_provenance_are_at_the_foot() -> None:
    foot = card_of(page_of([in_progress("ada")]), "module2/self_attention").all(cls="foot")[0].text()
    for text in (
        "dropped 2 magic lines",
        "conftest.py",
        "3f2a9c41d07be588",
        "kept by the instructor",
        "landlock",
        "torch 2.13.0",
        "x86-64, 2 cores",
    ):
        assert text in foot
    assert "20260304" not in foot, "a secret seed gives a learner the hidden inputs"


def test_an_exercise_the_course_does_not_have_is_shown_and_not_counted() -> None:
    page = page_of([mastered("ada", "module9/unknown")])
    assert "Not counted in the total" in page.all("article")[0].text()
    assert page.all(cls="figure")[0].text().startswith("0 %")


def test_hostile_texts_change_no_markup() -> None:
    safe = hostile("harmless")
    tame = safe_copy(safe)
    assert shape(page_of([safe], "harmless", audience="staff")) == shape(page_of([tame], "harmless", audience="staff"))


def test_the_check_above_fails_without_escaping() -> None:
    env = pages.html().overlay(autoescape=False)
    card = scorecard("x", [hostile("x")], course(), audience="staff")
    html = env.get_template("scorecard.html").render(card=card, told=card.exercises, bare=[], shares=[], script="card.js")
    with pytest.raises(AssertionError):
        check_page(html)


def safe_copy(record_: ExerciseRecord) -> ExerciseRecord:
    text = msgspec.json.encode(record_).decode()
    return msgspec.json.decode(
        text.replace(msgspec.json.encode(ATTACK).decode()[1:-1], "harmless"), type=ExerciseRecord
    )


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_shown_as_text(name: str) -> None:
    page = page_of([hostile(name), mastered(name)], name, audience="staff")
    shown = page.all("h1")[0].text()
    assert shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    if name.isprintable():
        assert shown == " ".join(name.split())


def test_control_characters_reach_no_page() -> None:
    html = to_html(scorecard("x", [hostile("x")], course(), audience="staff"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)


def test_nothing_is_fetched() -> None:
    html = to_html(scorecard("ada", [mastered("ada"), in_progress("ada")], course()))
    assert "http:" not in html
    assert "https:" not in html
    assert "//cdn" not in html


def test_staff_matters_are_on_no_learner_card() -> None:
    records = [msgspec.structs.replace(hostile("x"), exercise=KV_CACHE), in_progress("x")]
    learner = to_html(scorecard("x", records, course()))
    staff = to_html(scorecard("x", records, course(), audience="staff"))
    for text in ("debug: q.shape", "Staff copy", "For staff"):
        assert (text in staff, text in learner) == (True, False)


def test_a_learner_with_nothing_and_a_course_with_nothing() -> None:
    page_of([])
    empty = msgspec.structs.replace(course(), modules=())
    page = check_page(to_html(scorecard("ada", [], empty)))
    assert page.all(cls="figure")[0].text().startswith("–")


def test_a_card_takes_less_than_fifty_milliseconds() -> None:
    records = [mastered("ada"), in_progress("ada"), mastered("ada", KV_CACHE)]
    made = []
    for _ in range(5):
        start = time.process_time()
        to_html(scorecard("ada", records, course()))
        made.append(time.process_time() - start)
    assert sorted(made)[2] < 0.05


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    style = str(parse(to_html(scorecard("ada", [], course()))).all("style")[0].children[0])
    light, _, dark = style.partition("prefers-color-scheme: dark")
    colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", dark.partition("}")[0]))
    pairs = [
        (ink, ground)
        for ink in ("--ink", "--soft", "--accent", "--good", "--bad", "--warn")
        for ground in ("--paper", "--sheet", "--sunk")
    ]
    pairs += [
        ("--good", "--good-wash"),
        ("--bad", "--bad-wash"),
        ("--warn", "--warn-wash"),
        ("--ink", "--warn-wash"),
        ("--ink", "--bad-wash"),
        ("--ink", "--accent-wash"),
        ("--accent", "--accent-wash"),
        ("--heat-ink-top", "--heat-4"),
    ]
    pairs += [("--heat-ink", f"--heat-{i}") for i in range(4)]
    poor = {
        pair: round(contrast(colours[pair[0]], colours[pair[1]]), 2)
        for pair in pairs
        if contrast(colours[pair[0]], colours[pair[1]]) < 4.5
    }
    assert not poor
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff"), "the measure itself"


def test_showcase_is_a_whole_page() -> None:
    page = check_page(to_html(scorecard(factory.showcase()[0].learner, factory.showcase(), course())))
    assert [a.all("h2")[0].text() for a in page.all("article")] == [
        "0.1 Matrix Calculus",
        "2.1 Self-Attention Mechanism",
        "6.1 KV-Cache Implementation",
    ]
