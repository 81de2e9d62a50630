"""Hostile texts, and numbers for people."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llmkata.reports import text

from .factory import ATTACK, HOSTILE_NAMES


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://evil\x07click\x1b]8;;\x07", "click"),
        ("\x1b]0;title\x1b\\after", "after"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1bPq#0;2\x1b\\sixel", "sixel"),
        ("\x1bcreset", "reset"),
        ("\x1b(0charset", "charset"),
        ("half \x1b[31", "half "),
        ("a\rb\r\nc\x85d\u2028e", "a\nb\nc\nd\ne"),
        ("tab\tstays", "tab\tstays"),
        ("bell\a back\b null\0 del\x7f", "bell back null del"),
        ("\u202eevil\u2066 \u200bzero\ufeff", "evil zero"),
        ("sur\udcffrogate", "surrogate"),
        ("\U000e0041tag", "tag"),
        ("李小龍 Zoë 👩\u200d💻 é", "李小龍 Zoë 👩\u200d💻 é"),
    ],
)
def test_plain_takes_what_acts_and_leaves_what_reads(raw: str, shown: str) -> None:
    assert text.plain(raw) == shown


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b[]0;m\x9b\x07\\\r\n\t\u202e"))))
def test_plain_leaves_no_control_character_and_has_nothing_to_do_twice(raw: str) -> None:
    once = text.plain(raw)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", once)
    assert text.plain(once) == once


def test_line_is_one_line_and_may_be_cut() -> None:
    assert text.line(" a\n\tb\x1b[1m  c ") == "a b c"
    assert text.line("abcdef", 4) == "abc…"
    assert text.line("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    "raw", ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\x1b[0m=1", "  =1", "\uff1d1", "\u202e=1"]
)
def test_a_cell_that_starts_like_a_formula_is_defused(raw: str) -> None:
    cell = text.csv_cell(raw)
    assert isinstance(cell, str)
    assert cell.startswith("'")


@pytest.mark.parametrize("value", ["Ada", "a=b", "1-2", "", 3, -2.5, None])
def test_other_cells_are_handed_through(value: object) -> None:
    assert text.csv_cell(value) == value


@given(st.text(min_size=1))
def test_no_text_makes_a_formula(raw: str) -> None:
    cell = str(text.csv_cell(raw))
    assert cell[:1] not in set("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def rendered(source: str) -> tuple[set[str], str]:
    """The kinds of tokens in Markdown, inline ones too, and the text a reader sees."""
    tokens = [
        t
        for block in MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(source)
        for t in (block, *(block.children or []))
    ]
    return {t.type for t in tokens}, "".join(
        t.content for t in tokens if t.type in ("text", "code_inline", "text_special")
    )


HARMLESS = {"paragraph_open", "paragraph_close", "inline", "text", "code_inline", "text_special"}


@pytest.mark.parametrize(
    "raw",
    [
        *HOSTILE_NAMES,
        ATTACK,
        "# title",
        "1. one",
        "1) one",
        "- x",
        "+ x",
        "* x",
        "> quote",
        "```",
        "~~~",
        "---",
        "===",
        "| a | b |",
        "![x](y)",
        "<!-- c -->",
        "&lt;script&gt;",
        "a`b",
        "``a`",
        "`a``b`<b>",
        "`a|b`",
        "*a* _b_ ~~c~~",
        "[a]: x",
        "\\<b>",
        "a  \nb",
        "`<b>`",
    ],
)
def test_markdown_shows_any_text_as_it_is(raw: str) -> None:
    kinds, shown = rendered(text.markdown(raw))
    assert kinds <= HARMLESS
    assert shown.replace("`", "").replace("\u2060", "") == text.line(raw).replace("`", "")


def test_the_check_above_fails_without_escaping() -> None:
    for raw in ("<b>", "[a](b)", "# title", "- x", "*a*", "1. one"):
        assert not rendered(raw)[0] <= HARMLESS, raw


@given(st.text(alphabet=st.sampled_from("ab `*_[]()<>!#|\\~$&-+1. \n:/")))
def test_markdown_of_any_text_is_harmless(raw: str) -> None:
    assert rendered(text.markdown(raw))[0] <= HARMLESS


def test_code_between_backticks_stays_code() -> None:
    assert text.markdown("rows of `weights` sum to *1*") == "rows of `weights` sum to \\*1\\*"


def test_no_address_becomes_a_link() -> None:
    linking = MarkdownIt("gfm-like", {"linkify": False})
    assert "p://" not in text.markdown("see http://evil.example")
    assert "S://" not in text.markdown("see HTTPS://evil.example")
    assert "www." not in text.markdown("see www.evil.example")
    assert linking.renderInline(text.markdown("http://evil.example")) == "http://evil.example"


@pytest.mark.parametrize("body", ["a", "```\n# out", "````x````", "a\n```\n", "`", "<script>"])
def test_a_fence_holds_its_content(body: str) -> None:
    tokens = MarkdownIt().parse(text.fence(body))
    assert [(t.type, t.content.rstrip("\n")) for t in tokens] == [("fence", body.rstrip("\n"))]


@given(st.text(), st.text())
def test_file_names_of_learners_are_safe_and_their_own(one: str, other: str) -> None:
    name = text.slug(one)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,80}", name) and ".." not in name and not name.endswith(".")
    assert (text.slug(other) == name) == (one == other)


def test_a_name_that_mimics_the_file_name_of_another_gets_its_own() -> None:
    victim = "Ada Okafor"
    assert text.slug(text.slug(victim)) != text.slug(victim)
    assert text.slug("ada") == "ada"
    assert text.slug("Ada") != "ada", "some file systems do not tell them apart"
    assert text.slug("con") != "con"
    assert text.slug("con.txt") != "con.txt"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "FLOP", "0 FLOP"),
        (999, "FLOP", "999 FLOP"),
        (1060000, "FLOP", "1.06 MFLOP"),
        (1e9, "FLOP", "1 GFLOP"),
        (999_999, "FLOP", "1 MFLOP"),
        (65536, "bytes", "64 KiB"),
        (1, "bytes", "1 B"),
        (1536, "B", "1.5 KiB"),
        (2.5, "s", "2.5 s"),
        (0.00213, "s", "2.13 ms"),
        (2e-7, "s", "0.2 µs"),
        (48, "calls", "48 calls"),
        (1234567, "elements", "1\u202f234\u202f567 elements"),
        (2.013, "exponent", "exponent 2.01"),
        (3.14159, "", "3.14"),
        (-5, "", "-5"),
        (0.0001, "", "1.00e-04"),
        (float("inf"), "FLOP", "inf FLOP"),
    ],
)
def test_amounts(value: float, unit: str, shown: str) -> None:
    assert text.amount(value, unit) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0 %"),
        (0.01, "<0.1 %"),
        (50, "50 %"),
        (66.66, "66.7 %"),
        (99.96, "99.9 %"),
        (100, "100 %"),
    ],
)
def test_percent_is_never_rounded_to_all_or_nothing(value: float | None, shown: str) -> None:
    assert text.percent(value) == shown


def test_whole_percent_neither() -> None:
    assert [text.whole(v) for v in (0, 0.4, 1, 49.6, 99.7, 100, 110.4)] == ["0", "<1", "1", "50", "99", "100", "110"]


@pytest.mark.parametrize(
    ("stamp", "shown"),
    [
        ("2026-03-04T11:22:33+01:00", "2026-03-04 11:22 +01:00"),
        ("2026-03-04T11:22:33.123456Z", "2026-03-04 11:22 UTC"),
        ("2026-03-04T11:22", "2026-03-04 11:22"),
        ("yesterday\x1b[1m", "yesterday"),
        ("", ""),
    ],
)
def test_moments(stamp: str, shown: str) -> None:
    assert text.moment(stamp) == shown
