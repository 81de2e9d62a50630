"""B8: have hidden checks, or what they hold, printed in one's feedback."""

import io

import pytest

from llmkata.records import Outcome
from llmkata.reports.scorecard import to_html, to_json, to_markdown
from llmkata.reports.terminal import check_report, console
from llmkata.reports.view import scorecard

from ..toy.harness import COURSE, TOY, grade, named, solution_with

#: Each makes a hidden check fail in a way that says much: inputs, code and paths in messages and outputs.
LOUD = '''
import inspect, sys, traceback

def magic(n):
    print("asked", n)
    raise RuntimeError(f"asked {n} by " + " ".join(traceback.format_stack()))

def project(x, w):
    print("given", x.tolist(), file=sys.stderr)
    return x.new_full((x.shape[0], w.shape[1]), float(x.sum()))

def stats(x):
    raise ValueError("".join(inspect.getsource(f.frame) for f in inspect.stack()))
'''
SECRET = ("48271 * n + 11", "rng.integers", "torch_rng", "reference.magic", "hypothesis", str(TOY.root), "/graders/",
          "same(submission", "strategies")


def views(record, **options):
    """Every view of one record."""
    card = scorecard("you", [record], COURSE, **options)
    said = io.StringIO()
    console(said, width=200).print(check_report(record, COURSE, feedback=options.get("feedback")))
    return {"html": to_html(card), "markdown": to_markdown(card), "json": to_json(card).decode(), "terminal": said.getvalue()}


@pytest.fixture(scope="module")
def loud():
    return grade(solution_with(LOUD), seed=77)


@pytest.mark.parametrize("view", ["html", "markdown", "json", "terminal"])
def test_no_view_quotes_them(loud, view):
    shown = views(loud)[view]
    assert [s for s in SECRET if s in shown] == []


@pytest.mark.parametrize("level", ["outcome", "hint"])
def test_below_a_diagnosis_not_even_what_their_code_says(loud, level):
    """At ``diagnosis`` the messages of one's own exceptions are told, whatever was put into them."""
    for shown in views(loud, feedback=level).values():
        assert "asked 6" not in shown and "File " not in shown
    assert "asked" in views(loud, feedback="diagnosis")["json"]


def test_staff_read_what_was_printed(loud):
    """The negative control: it was there to be quoted."""
    assert "asked" in views(loud, audience="staff")["json"] and "given" in named(loud, "test_project").staff_output


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed
