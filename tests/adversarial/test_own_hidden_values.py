"""A small part of the example class, graded with a secret seed: what learners are given holds nothing that is hidden."""

import re
from pathlib import Path

import pytest

from llmkata.course import load_course
from llmkata.gradebook import Gradebook
from llmkata.grading.executor import grade_many
from llmkata.grading.intake import read_learner
from llmkata.records import Outcome, encode, read_records
from llmkata.reports.site import write_report
from llmkata.reports.terminal import check_report, console

ROOT = Path(__file__).parents[2]
COURSE = load_course(ROOT)
#: Learners whose work fails hidden checks in different ways.
CLASS = {"chloe-dubois": "module2/self_attention", "rafael-costa": "module2/self_attention"}
SEED = 918_273_645


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """-> (the records, every text that learners are given)."""
    folder = tmp_path_factory.mktemp("hidden")
    given = [s for learner, exercise in CLASS.items() for s in read_learner(ROOT / "examples/submissions" / learner, COURSE)
             if s.exercise_id == exercise]
    grade_many(COURSE, given, out=folder, seed=SEED)
    records = read_records([folder / "records.jsonl"]).records
    book = Gradebook.open()
    book.rebuild([folder / "records.jsonl"])
    report = write_report(folder / "report", COURSE, records, book)
    texts = {p.name: p.read_text("utf-8") for p in (folder / "report/learners").iterdir()}
    for record in records:
        with (folder / "terminal").open("w+") as file:
            console(file, width=160).print(check_report(record, COURSE))
            file.seek(0)
            texts[f"{record.learner} in the terminal"] = file.read()
    assert report.cards and len(texts) == 4 * len(CLASS)
    return records, texts


def hidden(records):
    return [c for r in records for c in r.checks if c.visibility == "hidden" and c.outcome is Outcome.failed]


def numbers(text):
    """Numbers of so many digits that they stand nowhere by chance."""
    return set(re.findall(r"\d+\.\d{4,}|\d{7,}", text))


def test_there_is_something_to_hide(graded):
    records, _ = graded
    failed = hidden(records)
    assert len(failed) >= 3 and any(numbers(c.evidence.expected) for c in failed if c.evidence)
    assert all(str(SEED) in encode(r).decode() for r in records)


def test_no_expected_value_and_no_hidden_input(graded):
    records, texts = graded
    told_openly = " ".join(encode(c).decode() for r in records for c in r.checks if c.visibility == "visible")
    for check in hidden(records):
        for part in (check.evidence.expected, check.evidence.call) if check.evidence else ():
            for number in numbers(part) - numbers(told_openly):
                assert [name for name, text in texts.items() if number in text] == [], (check.id, number)


def test_no_seed(graded):
    assert [name for name, text in graded[1].items() if str(SEED) in text] == []


def test_no_source_of_graders_and_oracles(graded):
    _, texts = graded
    for exercise in set(CLASS.values()):
        e = COURSE.exercise(exercise)
        given = e.stub.read_text("utf-8") + e.brief.read_text("utf-8") + e.visible_checks.read_text("utf-8")
        for path in (*e.graders_dir.glob("*.py"), e.reference):
            for line in map(str.strip, path.read_text("utf-8").splitlines()):
                if len(line) > 30 and "(" in line and "=" in line and not line.startswith(("#", '"', "@")) and line not in given:
                    assert [n for n, text in texts.items() if line in text] == [], (path.name, line)


def test_no_paths(graded):
    import torch

    for name, text in graded[1].items():
        for path in (str(ROOT), str(Path(torch.__file__).parents[1]), "/graders/", "/reference/", "/solutions/"):
            assert path not in text, (name, path)


def test_a_page_for_staff_holds_them(graded, tmp_path):
    """The negative control: the same search finds what is not withheld."""
    from llmkata.reports.site import write_card

    records, _ = graded
    failed = [c for c in hidden(records) if c.evidence and numbers(c.evidence.expected)]
    page = "".join(write_card(tmp_path, r.learner, [r], COURSE, audience="staff").read_text("utf-8") for r in records)
    assert any(number in page for c in failed for number in numbers(c.evidence.expected)) and str(SEED) in page
