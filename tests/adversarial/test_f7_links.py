"""F7: hand in a link to the oracle in place of an answer, or an answer that links over ours."""

import pytest

from llmkata.grading.intake import read_submissions
from llmkata.records import State

from ..toy.harness import COURSE, SOLUTION, TOY


@pytest.fixture
def hand_in(tmp_path):
    def make(link):
        (tmp_path / "eve").mkdir(exist_ok=True)
        link(tmp_path / "eve" / "toy.py")
        (found,) = read_submissions(tmp_path, COURSE)
        return found

    return make


def test_a_link_is_not_followed(hand_in):
    found = hand_in(lambda path: path.symlink_to(TOY.solution))
    assert found.state is State.unreadable and found.source is None and "link" in found.cause


def test_a_linked_folder_lends_nothing(tmp_path):
    (tmp_path / "eve").symlink_to(TOY.solution.parent)
    (tmp_path / "ann").mkdir()
    (found,) = read_submissions(tmp_path, COURSE)
    assert found.learner == "ann" and found.state is State.missing


def test_honest_work_is_taken(hand_in):
    assert hand_in(lambda path: path.write_text(SOLUTION)).source == SOLUTION.encode()


def test_whoever_opens_the_name_reads_the_oracle(hand_in, tmp_path):
    hand_in(lambda path: path.symlink_to(TOY.solution))
    assert (tmp_path / "eve" / "toy.py").read_text() == SOLUTION
