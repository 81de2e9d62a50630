"""Promised errors: the kind, the words, and what is let through."""

from __future__ import annotations

import pytest

from llmkata.checks import Mismatch, expect_error
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import MissingName, RemoteError, WorkerGone
from llmkata.outside.submission import Submission

pytestmark = pytest.mark.usefixtures("running")
SOURCE = b"""
class Mine(ValueError): pass
def shape(): raise Mine("cannot broadcast (2, 3) with (4,)")
def lookup(): raise KeyError("k")
def fine(): return 1
def stub(): raise NotImplementedError("task 1: all of it")
"""


@pytest.fixture
def s():
    return Submission(LoopbackLink("errors", "errors.py", SOURCE))


def test_a_subclass_with_the_words(s, running):
    with expect_error(ValueError, "cannot broadcast", "(4,)"):
        s.shape()
    with expect_error(Exception):
        s.lookup()
    assert running.compared == 2


@pytest.mark.parametrize(("error", "texts", "name", "said"), [
    (ValueError, (), "lookup", "must raise ValueError, it raised KeyError"), (TypeError, (), "shape", "must raise TypeError, it raised Mine"),
    (ValueError, ("(5,)", "cannot"), "shape", r"must say '\(5,\)'"), (ValueError, (), "fine", "must raise ValueError, it returned")])
def test_other_errors_and_none(s, error, texts, name, said):
    with pytest.raises(Mismatch, match=said) as e, expect_error(error, *texts):
        getattr(s, name)()
    assert e.value.expected.startswith(error.__name__) and e.value.got


def test_an_untouched_task_is_not_a_wrong_error(s):
    with pytest.raises(RemoteError, match="task 1"), expect_error(ValueError):
        s.stub()
    with expect_error(NotImplementedError):
        s.stub()


def test_what_is_no_error_of_the_learners_passes_through(s):
    with pytest.raises(MissingName), expect_error(AttributeError):
        s.nothing()
    with pytest.raises(WorkerGone), expect_error(BaseException):
        raise WorkerGone("gone", "died")
    with pytest.raises(Mismatch, match="inner"), expect_error(ValueError):
        raise Mismatch("inner")
