"""The index over record files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmkata.gradebook import Gradebook, Standing, total
from llmkata.records import Diagnosis, ExerciseRecord, Measure, Outcome, RecordFile, State

from ..reports.factory import (
    HOSTILE_NAMES,
    KV_CACHE,
    MATRIX_CALCULUS,
    SELF_ATTENTION,
    check,
    class_of,
    course,
    hostile,
    in_progress,
    mastered,
    record,
    scaled_by_d,
)

Book = Callable[..., Gradebook]


@pytest.fixture(params=["rebuilt", "added", "rebuilt on a server", "added on a server"])
def book(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Book]:
    """A gradebook over records, once rebuilt from a file and once filled record by record: both must agree."""
    opened: list[Gradebook] = []
    served = request.param.endswith("on a server")
    place = request.getfixturevalue("postgresql") if served else lambda: "sqlite://"

    def fill(*records: ExerciseRecord) -> Gradebook:
        made = Gradebook.open(place())
        opened.append(made)
        if request.param.startswith("rebuilt"):
            file = RecordFile(tmp_path / f"run{len(opened)}.jsonl")
            file.append(*records)
            assert made.rebuild([file.path] if file.path.exists() else []) == []
        else:
            for one in records:
                made.add(one)
        return made

    yield fill
    for made in opened:
        made.close()


def test_entries_are_what_stands(book: Book) -> None:
    old = record("ada", checks=[check("a", 1, Outcome.failed)], graded_at="2026-03-04T10:00:00Z")
    new = record("ada", checks=[check("a", 1)], graded_at="2026-03-04T10:00:01Z")
    for order in ((old, new), (new, old)):
        entries = book(*order, mastered("Bob")).entries()
        assert list(entries) == ["ada", "Bob"]
        assert entries["ada"][SELF_ATTENTION].standing is Standing.mastered
        assert entries["Bob"][MATRIX_CALCULUS].points == 20


def test_rebuilding_forgets_what_is_no_longer_in_the_files(tmp_path: Path) -> None:
    first, second = RecordFile(tmp_path / "a.jsonl"), RecordFile(tmp_path / "b.jsonl")
    first.append(mastered("ada"))
    second.append(mastered("bob"))
    with Gradebook.open() as made:
        made.rebuild([first.path, second.path])
        assert list(made.entries()) == ["ada", "bob"]
        made.rebuild([second.path])
        assert list(made.entries()) == ["bob"]


def test_rebuilding_tells_which_lines_were_skipped(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "a.jsonl")
    file.append(mastered("ada"), mastered("bob"))
    file.path.write_bytes(file.path.read_bytes()[:-5])
    with Gradebook.open() as made:
        (fault,) = made.rebuild([file.path])
        assert fault.torn
        assert list(made.entries()) == ["ada"]


def test_a_rebuild_that_fails_leaves_the_old_index(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "a.jsonl")
    file.append(mastered("ada"))
    with Gradebook.open(f"sqlite:///{tmp_path / 'book.db'}") as made:
        made.rebuild([file.path])
        with pytest.raises(FileNotFoundError):
            made.rebuild([tmp_path / "not there.jsonl"])
        assert list(made.entries()) == ["ada"]


def test_totals_are_those_of_the_entries(book: Book) -> None:
    made = book(*class_of(12))
    entries, totals = made.entries(), made.totals(course())
    assert len(totals) == 12
    assert totals == {learner: total(course(), known) for learner, known in entries.items()}
    only = [e for e in course().exercises if e.id == MATRIX_CALCULUS]
    assert book(mastered("ada")).totals(course(), only)["ada"].percent == 100


def test_pass_rates_count_what_stands_and_leave_out_what_was_not_judged(book: Book) -> None:
    def with_outcome(learner: str, outcome: Outcome, stamp: str = "2026-03-04T10:00:00Z") -> ExerciseRecord:
        return record(learner, checks=[check("test_a", 1, outcome), check("test_b", 2)], graded_at=stamp)

    made = book(
        with_outcome("ada", Outcome.failed, "2026-03-03T10:00:00Z"),
        with_outcome("ada", Outcome.passed),
        with_outcome("bob", Outcome.failed),
        with_outcome("cyd", Outcome.failed),
        with_outcome("dan", Outcome.not_judged),
    )
    first, second = made.check_rates()
    assert (first.check_id, first.passed, first.failed, first.not_judged) == ("test_correctness.py::test_a", 1, 2, 1)
    assert first.rate == pytest.approx(1 / 3)
    assert (second.check_id, second.passed, second.rate) == ("test_correctness.py::test_b", 4, 1.0)


def test_a_task_nobody_touched_is_no_failure(book: Book) -> None:
    def of(learner: str, cause: str) -> ExerciseRecord:
        return record(learner, checks=[check("test_a", 1, Outcome.failed, cause=cause)])

    [rate] = book(
        record("ada", checks=[check("test_a", 1)]), of("bob", "not started: task 1: add"), of("cyd", "It has not started: 1.")
    ).check_rates()
    assert (rate.passed, rate.failed, rate.not_started, rate.rate) == (1, 1, 1, 0.5)


def test_misconceptions_count_learners_not_checks(book: Book) -> None:
    twice = [scaled_by_d(), check("test_other", 2, Outcome.failed, diagnosis=Diagnosis("scale_by_d", "again"))]
    other = [check("test_mask", 1, Outcome.failed, diagnosis=Diagnosis("mask_after_softmax", "..."))]
    made = book(record("ada", checks=twice), record("bob", checks=twice), record("cyd", checks=other))
    assert [(m.name, m.learners) for m in made.misconceptions()] == [
        ("scale_by_d", ["ada", "bob"]),
        ("mask_after_softmax", ["cyd"]),
    ]


def test_budgets_hold_the_value_of_every_submission(book: Book) -> None:
    def with_flops(learner: str, value: float) -> ExerciseRecord:
        return record(
            learner,
            checks=[check("test_flops", 1, measures=[Measure("FLOPs", value, "FLOP", at_most=10.0, ok=value <= 10)])],
        )

    (use,) = book(with_flops("bob", 11.0), with_flops("ada", 9.5)).budgets()
    assert (use.name, use.at_most, use.at_least, use.trust) == ("FLOPs", 10.0, None, "replayed")
    assert use.values == [("ada", 9.5, True), ("bob", 11.0, False)]


def test_faults_of_the_grader_are_listed_until_the_exercise_was_judged(book: Book) -> None:
    def at(minute: int, state: State, cause: str = "") -> ExerciseRecord:
        return record("ada", state=state, cause=cause, graded_at=f"2026-03-04T10:{minute:02}:00Z")

    assert [
        (u.learner, u.check_id, u.cause) for u in book(at(0, State.infrastructure, "out of memory")).unjudged()
    ] == [("ada", "", "out of memory")]
    assert [
        u.cause
        for u in book(
            at(0, State.graded), at(1, State.infrastructure, "a"), at(2, State.infrastructure, "b")
        ).unjudged()
    ] == ["b"]
    assert book(at(0, State.infrastructure), at(1, State.graded)).unjudged() == []


def test_checks_that_were_not_judged_are_listed_with_their_cause(book: Book) -> None:
    (found,) = book(in_progress("ada")).unjudged()
    assert (found.exercise, found.check_id) == (SELF_ATTENTION, "test_correctness.py::test_merge_is_a_monoid")
    assert "needs test_streaming" in found.cause


def test_flags_come_with_what_was_printed(book: Book) -> None:
    flagged = check("test_a", 1, flags=["too good", "twice"], staff_output="hello")
    (flag,) = book(record("ada", checks=[flagged, check("test_b", 1)])).flags()
    assert (flag.check_id, flag.flags, flag.output) == ("test_correctness.py::test_a", ["too good", "twice"], "hello")


def test_hostile_texts_are_stored_as_texts(book: Book) -> None:
    names = [*HOSTILE_NAMES, "'); drop table record; --", "nul\0byte", "sur\udcffrogate"]
    made = book(*(hostile(name) for name in names))
    assert len(made.entries()) == len(names)
    assert {"=cmd()", "'); drop table record; --"} <= set(made.entries())
    assert len(made.misconceptions()) == 1


def test_an_empty_gradebook_answers_every_question(book: Book) -> None:
    made = book()
    assert made.entries() == {}
    assert made.totals(course()) == {}
    assert [made.check_rates(), made.misconceptions(), made.budgets(), made.unjudged(), made.flags()] == [[]] * 5


def test_two_programs_may_add_to_one_gradebook(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'book.db'}"
    with Gradebook.open(url) as one, Gradebook.open(url) as two:
        for i in range(6):
            (one, two)[i % 2].add(mastered("ada", KV_CACHE) if i < 5 else mastered("bob"))
        assert list(one.entries()) == list(two.entries()) == ["ada", "bob"]
        assert [rate.passed for rate in one.check_rates()] == [1] * 6
