"""B2: replace what shows errors, so that a failing cell looks like one that passed."""

import contextlib
import io

from llmkata.records import State

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, notebook

QUIET = """
import sys
sys.excepthook = lambda *a: None
try:
    get_ipython().showtraceback = lambda *a, **k: None
except NameError:
    pass
"""


def test_what_is_raised_is_read_not_what_is_shown(tmp_path, earns_nothing):
    cells = notebook(SOLUTION, QUIET, "def magic(n):\n    raise ValueError('quiet')")
    record = grade(handed_in(tmp_path, {"module1/toy.ipynb": cells}).source.decode(), only="test_magic")
    assert "ValueError" in earns_nothing(record, "test_magic").cause


def test_at_import_too(tmp_path):
    cells = notebook(SOLUTION, QUIET, "raise ValueError('quiet')")
    record = grade(handed_in(tmp_path, {"module1/toy.ipynb": cells}).source.decode())
    assert record.state is State.unreadable and record.points == 0 and "quiet" in record.cause


def test_an_honest_notebook_passes(tmp_path):
    assert grade(handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, QUIET)}).source.decode()).points == 21


def test_whoever_looks_at_output_sees_nothing():
    def hook(*_):
        """Put in the place of what shows errors."""

    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        try:
            raise ValueError("quiet")
        except ValueError as e:
            hook(type(e), e, e.__traceback__)
    assert shown.getvalue() == ""
