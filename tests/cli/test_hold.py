"""Every command that writes the folder of a run has it alone."""

from __future__ import annotations

import pytest

from llmkata.gradebook.hold import NOTE, held
from llmkata.records import RecordFile


@pytest.fixture
def run(toy, hidden, make_record):
    """The folder of a run, and submissions."""
    RecordFile(toy / "report" / "records.jsonl").append(make_record("module0/sums", "pass 1", learner="ada"))
    RecordFile(toy / "part" / "records.jsonl").append(make_record("module0/sums", "pass 1", learner="bob"))
    work = toy / "submissions" / "ada" / "module0"
    work.mkdir(parents=True)
    (work / "sums.py").write_text("def add(x):\n    return sum(x)\n")
    return toy / "report"


WRITERS = {
    "grade": ("grade", "submissions", "--out", "report", "--seed", "4711"),
    "report": ("report", "report"),
    "regrade": ("regrade", "report"),
    "merge": ("merge", "report", "part"),
    "ci": ("ci", "--out", "report"),
}


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_the_second_run_stops_before_it_writes_anything(kata, run, words, monkeypatch) -> None:
    monkeypatch.setattr("llmkata.cli.ci._PATIENCE", 0.0)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with held(run, "kata grade submissions/ --out report"):
        note = (run / NOTE).read_bytes()
        done = kata(*words)
        assert (run / NOTE).read_bytes() == note, "the note is still the first one's"
    assert done.status == 2 and "report is in use: kata grade submissions/ --out report, begun" in done.err
    assert "Next: " in done.err
    assert {path: path.read_bytes() for path in before} == before and not (run / "index.html").exists()


def test_free_again_it_goes_on_and_tells_of_a_run_that_was_cut_off(kata, run) -> None:
    assert kata("report", "report").status == 0
    (run / NOTE).write_text('{"command":"kata grade x","pid":7,"host":"h","user":"u","since":"2026-01-01T10:00:00+00:00"}')
    done = kata("report", "report")
    assert done.status == 0 and "an earlier run did not come to its end: kata grade x, begun 20" in done.err
    assert "earlier" not in kata("report", "report").err


def test_no_seed_is_told_and_another_folder_is_offered(kata, run) -> None:
    with held(run, "kata report report/"):
        done = kata(*WRITERS["grade"])
    assert "4711" not in done.err
    assert done.err.rstrip().endswith("grade submissions --out report-2")
