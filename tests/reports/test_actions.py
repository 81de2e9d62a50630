"""Workflow commands and the job summary: what a submission says is text there, never a command."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llmkata.records import ExerciseRecord, Outcome, State
from llmkata.reports.actions import MOST_ANNOTATIONS, SUMMARY_BYTES, Annotation, annotations, capped, inert
from llmkata.reports.summary import to_summary
from llmkata.reports.view import scorecard

from .factory import ATTACK, KV_CACHE, SELF_ATTENTION, check, course, scaled_by_d


def understood(command: str) -> tuple[str, dict[str, str], str]:
    """A command as GitHub's runner reads it: name, properties, data; unescaped."""
    match = re.fullmatch(r"::([a-z-]+)(?: ([^\n\r]*?))?::([^\n\r]*)", command)
    assert match, command
    properties = dict(p.split("=", 1) for p in (match[2] or "").split(",") if p)
    back = [("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")]

    def unescape(text: str, pairs: list) -> str:
        for code, sign in pairs:
            text = text.replace(code, sign)
        return text

    return (
        match[1],
        {k: unescape(v, back) for k, v in properties.items()},
        unescape(match[3], [back[0], back[1], back[4]]),
    )


def test_an_annotation_says_file_line_title_and_message() -> None:
    command = str(Annotation("a,b/c:d.py", 7, "2.1 Softmax: 100 %, or less", "line 1\nline 2: 50%25"))
    assert understood(command) == (
        "error",
        {"file": "a,b/c:d.py", "line": "7", "title": "2.1 Softmax: 100 %, or less"},
        "line 1\nline 2: 50%25",
    )
    assert "line=" not in str(Annotation("a.py", 0, "t", "m"))


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_gets_out_of_an_annotation(title: str, message: str) -> None:
    name, properties, _ = understood(str(Annotation("a.py", 3, title, message)))
    assert name == "error"
    assert (properties["file"], properties["line"]) == ("a.py", "3")
    assert set(properties) <= {"file", "line", "title"}


def test_more_annotations_than_are_shown_are_counted_in_the_last() -> None:
    told = annotations([Annotation("a.py", n + 1, f"t{n}", f"m{n}") for n in range(13)])
    assert len(told) == MOST_ANNOTATIONS
    assert "(3 more failed" in understood(told[-1])[2]
    assert "more failed" not in "".join(annotations([Annotation("a.py", 1, "t", "m")] * 10))


def test_commands_are_off_around_a_text_and_the_token_is_new_each_time() -> None:
    one, two = inert("::error::x\n::endgroup::"), inert("x")
    first, *text, last = one.splitlines()
    assert text == ["::error::x", "::endgroup::"]
    token = first.removeprefix("::stop-commands::")
    assert len(token) == 32
    assert last == f"::{token}::"
    assert token not in two


@pytest.mark.parametrize("fenced", [False, True])
def test_a_summary_is_cut_at_a_line_within_its_limit(fenced: bool) -> None:
    body = "ü" * 50 + "\n"
    text = ("````text\n" if fenced else "") + body * 200
    cut = capped(text, 4000)
    assert len(cut.encode()) <= 4000
    assert "left out" in cut
    assert ("\n````\n" in cut) is fenced
    assert capped(text, SUMMARY_BYTES) == text


def test_the_summary_has_a_table_the_mistake_and_the_evidence_but_one_hint_and_nothing_for_staff() -> None:
    records = [
        ExerciseRecord("ann", SELF_ATTENTION, State.graded, [scaled_by_d()]),
        ExerciseRecord("ann", KV_CACHE, State.unreadable, cause="Line 3 is no Python."),
    ]
    text = to_summary(scorecard("ann", records, course()), "Something failed.")
    assert "| 2.1 | Self-Attention Mechanism | ◐ in progress | 0/6 | 0 / 6 |" in text
    assert "| 6.1 | KV-Cache Implementation | ✗ unreadable |" in text
    assert "Not started: 0.1" in text
    assert "**Recognised mistake:**" in text
    assert "attention(q (2, 3, 4) float64" in text
    assert "Hint 1:" in text
    assert "Hint 2:" not in text
    assert "debug: q.shape" not in text


def test_a_submission_says_nothing_but_text_in_the_summary() -> None:
    hostile = check("test_b", 1, Outcome.failed, cause=ATTACK, title="<h1>x</h1> | y | [a](javascript:b)\n# z")
    text = to_summary(
        scorecard("ann", [ExerciseRecord("ann", SELF_ATTENTION, State.graded, [hostile], notes=[ATTACK])], course()),
        "x",
    )
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    kinds = {t.type for token in tokens for t in [token, *(token.children or [])]}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    rows = [t for t in tokens if t.type == "tr_open"]
    assert len(rows) == 2
    assert "\x1b" not in text
