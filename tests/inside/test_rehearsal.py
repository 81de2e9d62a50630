"""What a template rehearses leaves nothing behind, and fails aloud."""

from __future__ import annotations

import linecache
import sys

import pytest

from llmkata.inside import rehearsal


def test_nothing_is_left():
    argv = list(sys.argv)
    rehearsal.rehearse()
    assert rehearsal._NAME not in sys.modules and sys.argv == argv
    assert not any(rehearsal._NAME in name for name in linecache.cache)


def test_an_answer_that_is_not_as_it_should_be_is_told(monkeypatch):
    monkeypatch.setattr(rehearsal, "_SOURCE", rehearsal._SOURCE.replace(b"raise ValueError", b"return len"))
    with pytest.raises(RuntimeError, match="fails at call"):
        rehearsal.rehearse()
    assert rehearsal._NAME not in sys.modules
