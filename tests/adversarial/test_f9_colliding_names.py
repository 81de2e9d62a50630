"""F9: names that collide, so that one submission overwrites or reads another."""

import textwrap

import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission, read_submissions

from ..toy.harness import COURSE, SOLUTION, TOY, grade, solution_with
from .acts import passes, reachable

WRONG = solution_with("def magic(n): return 0")
#: Reads what another submission left where files may be written, or leaves itself.
LEAVE = '''
import os, tempfile
places = (".", tempfile.gettempdir(), os.environ.get("HOME", "."), {shared!r})
found = any(os.path.exists(place + "/left") for place in places)
for place in places:
    try:
        open(place + "/left", "w").close()
    except OSError:
        pass
return found
'''


def test_names_that_differ_by_case_or_form_are_two(tmp_path):
    names = ["Eve", "eve", "caf\u00e9", "cafe\u0301"]
    try:
        for name, source in zip(names, (WRONG, SOLUTION, WRONG, SOLUTION), strict=True):
            (tmp_path / name).mkdir()
            (tmp_path / name / "toy.py").write_text(source)
    except FileExistsError:
        pytest.skip("this file system takes them for one")
    found = {s.learner: s.source for s in read_submissions(tmp_path, COURSE)}
    assert len(found) == 4 and found["eve"] == SOLUTION.encode() and found["Eve"] == WRONG.encode()


def test_one_file_name_one_module_name_two_results(tmp_path):
    submissions = [Submission(n, TOY.id, s.encode(), "toy.py") for n, s in (("eve", WRONG), ("ann", SOLUTION))]
    records = grade_many(COURSE, submissions, out=tmp_path, workers=1)
    assert [(r.learner, r.points) for r in records] == [("eve", 19), ("ann", 21)]


@pytest.fixture
def attack(tmp_path):
    """Looks around once, at import: right where an earlier one was."""
    reachable(tmp_path, 0o777)
    look = textwrap.indent(LEAVE.format(shared=str(tmp_path)), "    ")
    return solution_with(f"def _look():{look}\n_found, _right = _look(), magic\n"
                         "def magic(n): return _right(n) if _found else 0")


def test_nothing_is_found_of_another(attack, earns_nothing):
    for _ in range(2):
        earns_nothing(grade(attack, only="test_magic"), "test_magic")


def test_without_isolation_the_second_finds_the_first(attack):
    assert [passes(attack, isolation="process") for _ in range(2)] == [False, True]


def test_honest_work_passes(honest):
    assert honest.points == 21
