"""What is graded is not graded again, and what is merged is one run."""

from __future__ import annotations

import msgspec
import pytest

from llmkata.authoring.audit.judge import forget
from llmkata.cli.grade import grade_new
from llmkata.cli.options import Isolation
from llmkata.course import load_course
from llmkata.grading import judges
from llmkata.grading.intake import read_submissions
from llmkata.grading.kept import final
from llmkata.grading.shards import merge, part
from llmkata.records import Outcome, State, read_records

from .two import RIGHT, WRONG, hand_in, write_course


class Class:
    """A class that is graded into ``out``; ``started`` counts the gradings."""

    def __init__(self, root, monkeypatch) -> None:
        self.root, self.folder, self.out, self.started = write_course(root), root / "class", root / "out", 0
        give = judges.Judge.give

        def counted(*args, **options):
            self.started += 1
            give(*args, **options)

        monkeypatch.setattr(judges.Judge, "give", counted)

    def submissions(self):
        return read_submissions(self.folder, load_course(self.root))

    def grade(self, out=None, submissions=None, **options) -> int:
        """Grade, as ``kata grade`` does -> how many submissions were judged."""
        before = self.started
        course = load_course(self.root)
        grade_new(course, self.submissions() if submissions is None else submissions, out or self.out, workers=1, seed=3,
                  isolation=Isolation.process, **options)
        return self.started - before

    def records(self, out=None):
        return read_records([(out or self.out) / "records.jsonl"]).records


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Three learners; cy hands in one of two."""
    made = Class(tmp_path, monkeypatch)
    hand_in(made.folder, "ann", **RIGHT)
    hand_in(made.folder, "bob", double=WRONG, square=RIGHT["square"] + "# mine\n")
    hand_in(made.folder, "cy", double="def work(n):\n    return n + n\n")
    return made


def plain(records):
    """Records without what differs from run to run."""
    return sorted(
        msgspec.json.encode(msgspec.structs.replace(
            r, graded_at="", seconds=0.0, cpu_seconds=0.0,
            checks=[msgspec.structs.replace(c, seconds=0.0) for c in r.checks]))
        for r in records)


def test_a_second_run_grades_nothing_and_writes_nothing(two):
    assert two.grade() == 5
    text = (two.out / "records.jsonl").read_bytes()
    assert two.grade() == 0 and (two.out / "records.jsonl").read_bytes() == text
    assert two.grade(fresh=True) == 5
    assert len(two.records()) == 6 + 6


def test_a_run_that_was_cut_off_goes_on(two):
    two.grade()
    whole = plain(two.records())
    file = two.out / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:100])
    lost = sum(b'"state":"graded"' in line for line in lines[3:])
    assert two.grade() == lost > 0
    assert plain(two.records()) == whole


def test_only_what_is_new_is_graded(two):
    two.grade()
    hand_in(two.folder, "cy", square=WRONG)
    assert two.grade() == 1
    (two.root / "graders/module1/square/test_correctness.py").open("a").write("\n# another grader\n")
    from llmkata.grading import provenance

    provenance._grader_hashes.clear()
    assert two.grade() == 3  # square of all three


def test_a_copy_is_judged_once_and_recorded_for_both(two):
    two.grade()
    hand_in(two.folder, "dee", double=RIGHT["double"])
    assert two.grade() == 0
    ann, dee = (next(r for r in two.records() if r.learner == name and "double" in r.exercise) for name in ("ann", "dee"))
    assert dee.points == ann.points == 4 and dee.files == ["module1/double.py"]


def test_what_is_the_same_in_one_run_is_judged_once(two, capsys):
    """The file as it was given out, above all, which every repository of a course holds."""
    for name in ("dee", "eli"):
        hand_in(two.folder, name, double=RIGHT["double"], square=WRONG)
    assert two.grade() == 6, "five, and one more for two who are alike"
    assert "3 of them the same as another one" in capsys.readouterr().out
    points = {(r.learner, r.exercise): r.points for r in two.records()}
    assert len(points) == len(two.records()) == 10
    for name in ("dee", "eli"):
        assert points[name, "module1/double"] == points["ann", "module1/double"] == 4
        assert points[name, "module1/square"] == 0
    assert two.grade() == 0 and two.grade(fresh=True) == 6


def test_what_the_grader_failed_on_says_nothing_of_a_copy(two, monkeypatch):
    hand_in(two.folder, "dee", double=RIGHT["double"])
    hear, lost = judges.Judge.hear, []

    def first_is_lost(judge):
        submission, record = judge.submission, hear(judge)
        if record is not None and not lost and record.learner == "ann" and "double" in record.exercise:
            lost.append(record)
            return judges.infrastructure(submission, "The process that judged this was ended.")
        return record

    monkeypatch.setattr(judges.Judge, "hear", first_is_lost)
    assert two.grade() == 6
    states = {r.learner: r.state for r in two.records() if "double" in r.exercise}
    assert states["ann"] is State.infrastructure and states["dee"] is State.graded


def test_the_last_handed_in_is_written_last(two):
    """Going back to an older version counts, though it was graded before."""
    two.grade()
    hand_in(two.folder, "ann", double=f"{WRONG}# mine\n")
    assert two.grade() == 1
    hand_in(two.folder, "ann", double=RIGHT["double"])
    assert two.grade() == 0
    mine = [r.points for r in two.records() if r.learner == "ann" and "double" in r.exercise]
    assert mine == [4, 0, 4]


def test_what_could_not_be_judged_is_tried_again(two):
    two.grade()
    file = two.out / "records.jsonl"
    records = two.records()
    for r in records:
        if r.learner == "ann" and r.checks:
            r.checks[0] = msgspec.structs.replace(r.checks[0], outcome=Outcome.not_judged, points=0, cause="The grader broke.")
        if r.learner == "bob":
            r.state = State.infrastructure
    file.write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in records))
    assert two.grade() == 4


def test_what_a_failed_check_stands_in_the_way_of_is_settled(two):
    """A check that was not tried because another failed says nothing else the next time; where that one could not be
    judged it may.
    """
    checks = two.root / "graders/module1/double/test_correctness.py"
    checks.write_text(checks.read_text() + '''
from llmkata.checks import needs

@task(1)
@points(2)
@needs("test_right")
def test_more(submission):
    """More of it."""
    same(submission.work(4), 8)
''')
    forget(load_course(two.root).exercise("double"))
    two.grade()
    (bob,) = (r for r in two.records() if r.learner == "bob" and "double" in r.exercise)
    assert [c.outcome for c in bob.checks] == [Outcome.failed, Outcome.not_judged]
    assert two.grade() == 0
    other = msgspec.structs.replace(bob.checks[1], cause="needs test_right, which could not be judged")
    assert final(bob) and not final(msgspec.structs.replace(bob, checks=[bob.checks[0], other]))


def test_parts_are_one_run(two, tmp_path):
    two.grade()
    parts = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    chosen = [part(two.submissions(), i, 3) for i in (1, 2, 3)]
    assert sorted(len(c) for c in chosen) == [2, 2, 2]
    for folder, submissions in zip(parts, chosen, strict=True):
        two.grade(folder, submissions)
    added, faults = merge(tmp_path / "whole", parts)
    assert added == 6 and not faults
    assert plain(two.records(tmp_path / "whole")) == plain(two.records())
    assert sorted(p.name for p in (tmp_path / "whole/sources").iterdir()) == sorted(p.name for p in (two.out / "sources").iterdir())
    assert merge(tmp_path / "whole", parts) == (0, [])
