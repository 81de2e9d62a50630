"""R19: empty the list of tests."""

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, plain_pytest

CONFTEST = "def pytest_collection_modifyitems(items):\n    items.clear()\n"
TESTS = "def test_magic():\n    assert 5 == 48282\n"


def test_what_must_be_passed_is_known_beforehand(tmp_path, honest):
    given = handed_in(tmp_path, {"conftest.py": CONFTEST, "module1/toy.py": SOLUTION, "module1/test_toy.py": ""})
    record = grade(given.source.decode())
    assert [c.id for c in record.checks] == [c.id for c in honest.checks] and record.points == record.max_points == 21


def test_run_in_place_nothing_fails(tmp_path):
    done = plain_pytest(tmp_path, conftest=CONFTEST, test_work=TESTS)
    assert done.returncode == 5 and "failed" not in done.stdout
