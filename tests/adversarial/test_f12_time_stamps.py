"""F12: edit the time of one's file, a time stamp, a log, or one's progress."""

import os

import pytest

from llmkata.grading.intake import read_submissions

from ..toy.harness import COURSE, SOLUTION, grade, solution_with

#: Long before any deadline.
EARLY = 946684800


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "eve"
    home.mkdir()
    (home / "toy.py").write_text(solution_with("def magic(n): return 0"))
    (home / "timestamp.txt").write_text("2000-01-01 00:00:00 UTC")
    (home / "records.jsonl").write_text('{"points": 21}')
    os.utime(home / "toy.py", (EARLY, EARLY))
    return tmp_path


def test_a_folder_says_nothing_of_when_or_how_much(folder, earns_nothing):
    (found,) = read_submissions(folder, COURSE)
    assert not found.submitted_at and {"timestamp.txt", "records.jsonl"} <= set(found.ignored)
    earns_nothing(grade(found.source.decode(), only="test_magic"), "test_magic")


def test_honest_work_is_taken(folder):
    (folder / "eve" / "toy.py").write_text(SOLUTION)
    assert read_submissions(folder, COURSE)[0].source == SOLUTION.encode()


def test_the_time_of_a_file_is_its_owners_to_set(folder):
    assert (folder / "eve" / "toy.py").stat().st_mtime == EARLY
