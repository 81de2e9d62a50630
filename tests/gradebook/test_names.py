"""Names are found as whole words in any usual spelling, and nothing else is."""

from __future__ import annotations

import pytest

from llmkata.gradebook.names import Names
from llmkata.records import Evidence

ANN = Names("ann", ["Anna Marie Berg", "anna.berg@example.org", "340934", "Bo", " "])


@pytest.mark.parametrize("text", [
    "ann", "(ANN)", "by ann_340934_x.py", "Anna  Marie\nBerg", "Berg, Anna Marie", "anna_marie-berg", "BERGANNAMARIE",
    "<anna.berg@example.org>", "user 340934",
])  # fmt: skip
def test_found(text: str) -> None:
    assert ANN.named(text)
    assert not ANN.named(ANN.taken_out(text, "X")) and "X" in ANN.taken_out(text, "X")


@pytest.mark.parametrize("text", ["annotation", "joann", "3409345", "Anna Berg", "Marie", "anna.berg@example.organ", "Bo", ""])
def test_not_found(text: str) -> None:
    assert not ANN.named(text) and ANN.taken_out(text, "X") == text


def test_very_short_names_are_taken_out_only_where_asked() -> None:
    assert ANN.taken_out("Bo and ann", "X") == "Bo and X"
    assert ANN.taken_out("Bo and Bob", "X", short=True) == "X and Bob"
    assert not Names("a").named("a") and Names("a").taken_out("a", "X") == "a"


def test_an_address_goes_before_the_account_in_it_and_signs_stand_for_themselves() -> None:
    names = Names("anna", ["anna@example.org", "a.b|c"])
    assert names.taken_out("anna@example.org, anna, a.b|c, axb|c", r"\1") == r"\1, \1, \1, axb|c"
    assert str(names) == "anna (anna@example.org, a.b|c)" and str(Names("x")) == "x"


def test_within_structures() -> None:
    given = [Evidence("ann", frames=["by ann", "x"]), {"ann": ("ann", 3, None)}]
    assert ANN.taken_out_of(given, "X") == [Evidence("X", frames=["by X", "x"]), {"ann": ("X", 3, None)}]
