"""B1: redefine, in a cell before the one that tests, what tests are made of."""


from ..toy.harness import SOLUTION, grade
from .arena import handed_in, notebook, shared

HELPERS = """
def same(*args, **kwargs): pass
def check(*args, **kwargs): pass
class _Oracle:
    __getattr__ = lambda self, name: lambda *a, **k: 5
reference = _Oracle()
def test_magic(*args): pass
def magic(n): return 5
"""


def test_checks_have_their_own(tmp_path, earns_nothing):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, HELPERS)})
    earns_nothing(grade(given.source.decode(), only="test_magic"), "test_magic")


def test_an_honest_notebook_passes(tmp_path):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, "magic(1)")})
    assert grade(given.source.decode()).points == 21


def test_in_one_namespace_they_decide():
    scope = shared(HELPERS + "\nsame(magic(1), 48282)\nassert magic(1) == reference.magic(1)")
    assert scope["magic"](1) == 5
