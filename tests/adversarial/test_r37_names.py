"""R37: get round a list of forbidden words, or be caught by it without reason."""

from llmkata.records import Outcome

from ..toy.harness import SOLUTION, grade, named, solution_with

#: Every word that a list could hold, and nothing done that is forbidden.
INNOCENT = SOLUTION + '''
# torch.softmax, F.softmax, stream, eval, subprocess, __import__("os").system: none of it is called here.
stream = "torch.softmax"

def my_softmax_stream(x):
    """Does what torch.softmax does."""
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)

_right = softmax
def softmax(x):
    return _right(x) if x.dim() == 0 else my_softmax_stream(x)
'''
DISGUISED = '''
import torch
def softmax(x):
    return getattr(torch, "tfos"[::-1] + chr(109) + "ax")(x, -1)
'''


def test_words_are_no_offence():
    assert grade(INNOCENT).points == 21


def test_deeds_are(earns_nothing):
    failed = earns_nothing(grade(solution_with(DISGUISED), only="test_softmax_sums"), "test_softmax_sums_to_one")
    assert "torch.softmax is not allowed" in failed.cause


def test_honest_work_passes(honest):
    assert named(honest, "test_softmax_sums_to_one").outcome is Outcome.passed


def test_a_list_of_words_errs_both_ways():
    assert "torch.softmax" in INNOCENT and "softmax(x" not in DISGUISED.split("def softmax")[1].split("return")[1]
