"""Diagnosis compares with the model answer, results are kept under a key: neither may tell what is right."""

from llmkata.grading.provenance import result_key
from llmkata.records import Outcome, encode
from llmkata.reports.scorecard import to_html, to_json, to_markdown
from llmkata.reports.view import scorecard

from ..toy.harness import COURSE, TOY, grade, named, solution_with

SEED = 73_313_731
WRONG = ["def magic(n): return 48271 * n % 2147483647", "def magic(n): return (48271 * n) % 2147483647 + 1",
         "def magic(n): return (48271 * n + 12) % 2147483647", "def magic(n): return 0"]


def views(record):
    card = scorecard("you", [record], COURSE)
    return to_json(card).decode() + to_html(card) + to_markdown(card)


def test_a_diagnosis_is_one_of_a_closed_list_or_none():
    """However near an answer comes, what is told is a sentence of the course's, or that the answer is wrong."""
    told = set()
    for attack in WRONG:
        check = named(grade(solution_with(attack), only="test_magic"), "test_magic")
        assert check.outcome is Outcome.failed
        told.add((check.diagnosis.feedback if check.diagnosis else None, check.cause))
    assert {d for d, _ in told} == {None, "The constant 11 is missing."} or {d for d, _ in told} == {None}
    assert {c for _, c in told} == {"output is not what it should be."}


def test_the_key_and_the_seed_behind_it_are_for_staff():
    record = grade(solution_with(WRONG[3]), only="test_magic", seed=SEED)
    assert record.key in encode(record).decode() and str(SEED) in encode(record).decode()  # they are in the record
    assert record.key not in views(record) and str(SEED) not in views(record)


def test_a_kept_result_is_that_of_the_same_file_alone():
    source = solution_with(WRONG[3]).encode()
    keys = {result_key(COURSE, TOY, s, 1, "full") for s in (source, source + b" ", source.replace(b"return 0", b"return 1"))}
    assert len(keys) == 3
    assert len({result_key(COURSE, TOY, source, seed, how) for seed in (1, 2) for how in ("full", "process")}) == 4


def test_honest_work_passes():
    assert named(grade(only="test_magic", seed=SEED), "test_magic").outcome is Outcome.passed
