"""A record that cannot be written or read back would end the run of everybody."""

import math

import msgspec
import pytest

from llmkata.grading import judges
from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission
from llmkata.records import RecordError, RecordFile, State, read_records

from .arena import build

SOLUTION = "def count():\n    return 3\n"
CHECKS = '''
@task(1)
@points(1)
def test_count(submission, budget):
    """At most three."""
    budget.require("count", submission.count(), at_most=3, unit="calls")
'''
ANSWERS = ["float('nan')", "-float('inf')", "1e400", "10 ** 400", "-10 ** 300", "True", "None", "'3'", "chr(0xd800)"]


def test_every_answer_makes_a_record_that_can_be_kept(tmp_path):
    """And the learner after it is graded."""
    arena = build(tmp_path, SOLUTION, CHECKS)
    given = [Submission(f"learner {n}", "module1/arena", f"{SOLUTION}\ndef count(): return {answer}\n".encode(), "arena.py")
             for n, answer in enumerate(ANSWERS)]
    honest = Submission("honest", "module1/arena", SOLUTION.encode(), "arena.py")
    records = grade_many(arena.course, [*given, honest], out=tmp_path / "out", workers=1)
    assert [r.state for r in records] == [State.graded] * len(records)
    assert records[-1].points == 1 and all(r.max_points == 1 for r in records)
    reading = read_records([tmp_path / "out/records.jsonl"])
    assert not reading.faults and len(reading.records) == len(records)
    for answer, record in zip(ANSWERS, records):
        if answer not in ("-10 ** 300", "True", "-float('inf')"):
            assert record.points == 0, answer


def test_a_record_that_breaks_all_the_same_is_one_submissions(tmp_path, monkeypatch):
    arena = build(tmp_path, SOLUTION, CHECKS)
    given = [Submission(name, "module1/arena", SOLUTION.encode(), "arena.py") for name in ("broken", "honest")]
    encode = judges.encode
    monkeypatch.setattr(judges, "encode", lambda record: b"{}" if record.learner == "broken" else encode(record))
    broken, honest = grade_many(arena.course, given, out=tmp_path / "out", workers=1)
    assert broken.state is State.infrastructure and "cannot be read back" in broken.cause
    assert honest.state is State.graded and honest.points == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_cannot_be_kept(tmp_path, value):
    """The negative control: what the file refuses."""
    record = build(tmp_path, SOLUTION, CHECKS).grade()
    check = record.checks[0]
    check.measures = [msgspec.structs.replace(check.measures[0], value=value)]
    with pytest.raises(RecordError):
        RecordFile(tmp_path / "records.jsonl").append(record)
