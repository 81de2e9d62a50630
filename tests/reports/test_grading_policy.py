"""The course's policy on pages: deductions and their reason, extra credit, what is dropped, hidden checks withheld."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from llmkata.course import Course, Extension, ExtraCredit, Grading, Late
from llmkata.gradebook import MARKED_LATE, Gradebook, entry, total
from llmkata.records import ExerciseRecord, Outcome, RecordFile
from llmkata.reports import classpage, grades
from llmkata.reports.scorecard import to_html, to_json, to_markdown
from llmkata.reports.terminal import console, summary_table
from llmkata.reports.text import whole
from llmkata.reports.view import ExerciseCard, scorecard

from .factory import KV_CACHE, MATRIX_CALCULUS, SELF_ATTENTION, check, course, in_progress, mastered, showcase
from .pagecheck import check_page

#: Records of the factory were handed in 2026-03-03 22:58 UTC: a day and two minutes later.
DUE = datetime(2026, 3, 2, 22, 56, tzinfo=UTC)


def with_policy(grading: Grading | None = None, show_hidden: str = "always") -> Course:
    made = course()
    feedback = msgspec.structs.replace(made.policy.feedback, show_hidden=show_hidden)
    policy = msgspec.structs.replace(made.policy, grading=grading or Grading(), feedback=feedback)
    return msgspec.structs.replace(made, policy=policy)


LATE = with_policy(Grading("UTC", {0: DUE}, Late(10)))


def card_of(records: list[ExerciseRecord], made: Course, name: str = MATRIX_CALCULUS, **more) -> ExerciseCard:
    return next(card for card in scorecard("ada", records, made, **more).exercises if card.id == name)


def test_raw_points_deduction_and_why_stand_on_the_card() -> None:
    card = card_of([mastered("ada")], LATE)
    assert (card.points, card.max_points, card.deduction, card.percent) == (20, 20, 20, 80)
    assert card.late.endswith("20 % deducted (10 % a day)")
    assert card.due == "2026-03-02 22:56 UTC"
    card_of_ada = scorecard("ada", [mastered("ada")], LATE)
    for text in (to_html(card_of_ada), to_markdown(card_of_ada)):
        assert "2 days begun after 2026-03-02 22:56 UTC" in text
        assert "100 % less 20 % for lateness" in text.replace("100.0", "100").replace("20.0", "20")
    check_page(to_html(card_of_ada))
    assert msgspec.json.decode(to_json(card_of_ada))["exercises"][0]["deduction"] == 20


def test_in_time_nothing_is_said_but_when_it_was_due() -> None:
    extended = msgspec.structs.replace(LATE.policy.grading, extensions={"ada": Extension(2)})
    card = card_of([mastered("ada")], with_policy(extended))
    assert (card.deduction, card.late, card.percent) == (0, "", 100)
    assert card.due == "2026-03-04 22:56 UTC"
    assert "lateness" not in to_html(scorecard("ada", [mastered("ada")], with_policy(extended)))


def test_card_total_csv_and_class_page_say_the_same(tmp_path: Path) -> None:
    made = with_policy(Grading("UTC", {0: DUE, 2: DUE}, Late(10), drop_lowest=1))
    records = showcase("ada")
    file = RecordFile(tmp_path / "run.jsonl")
    file.append(*records)
    entries = {r.exercise: entry(r) for r in records}
    percent = total(made, entries).percent
    assert percent == pytest.approx((80 + 100 * 20 / 43 - 20) / 2), "the unreadable one of double weight is dropped"
    card = scorecard("ada", records, made)
    assert card.total.percent == percent
    assert [c.id for c in card.exercises if c.dropped] == [KV_CACHE]
    with Gradebook.open() as book:
        book.rebuild([file.path])
        header, row = csv.reader(io.StringIO(grades.to_csv(made, book.entries())))
        page = check_page(classpage.to_html(made, book, {}))
    cells = dict(zip(header, row, strict=True))
    assert float(cells["total_percent"]) == pytest.approx(percent, abs=0.01)
    assert (cells[f"{MATRIX_CALCULUS} deduction_percent"], cells[f"{MATRIX_CALCULUS} percent"]) == ("20.0", "80.0")
    assert cells[f"{MATRIX_CALCULUS} points"] == "20.0"
    assert cells[f"{MATRIX_CALCULUS} late"].startswith("handed in 2026-03-03 22:58")
    late = [cell for cell in page.all("table", "heat")[0].all("td") if "late" in cell.attrs.get("aria-label", "")]
    assert len(late) == 2
    assert all("deducted" in cell.attrs["title"] for cell in late)


def test_a_mark_of_another_system_reaches_card_and_gradebook(tmp_path: Path) -> None:
    marked = mastered("ada")
    marked.submitted_at, marked.notes = "", [MARKED_LATE]
    assert card_of([marked], LATE).percent == 90
    file = RecordFile(tmp_path / "run.jsonl")
    file.append(marked)
    with Gradebook.open() as book:
        book.rebuild([file.path])
        assert book.entries()["ada"][MATRIX_CALCULUS].marked_late
    marked.notes = [f"{MARKED_LATE}.py was not used"]
    assert card_of([marked], LATE).percent == 100, "a note that merely begins so is no mark"


def test_extra_credit_comes_on_top() -> None:
    records = [mastered("ada"), in_progress("ada")]
    entries = {r.exercise: entry(r) for r in records}
    plain = with_policy(Grading())
    extra = with_policy(Grading(extra_credit=ExtraCredit(("matrix_calculus",))))
    share = 20 / 43
    assert total(plain, entries).percent == pytest.approx(100 * (1 + share) / 4)
    assert total(extra, entries).percent == pytest.approx(100 * (1 + share) / 3)
    assert card_of(records, extra).extra
    assert "Extra credit" in to_html(scorecard("ada", records, extra))
    assert not card_of(records, plain).extra


def test_the_bar_of_the_total_shows_what_is_in_it() -> None:
    made = with_policy(Grading(drop_lowest=1, extra_credit=ExtraCredit(stretch=True)))
    page = check_page(to_html(scorecard("ada", showcase("ada"), made)))
    (bar,) = page.all("svg", "shares")
    assert "6.1" not in bar.attrs["aria-label"], "the one that is dropped"
    widths = [
        [float(rect.attrs["width"].rstrip("%")) for rect in bar.all("rect", kind)] for kind in ("track", "fill")
    ]
    assert len(widths[0]) == 2
    assert all(fill <= track for track, fill in zip(*widths, strict=True))


def test_stretch_tasks_as_extra_credit_lift_an_exercise_above_100() -> None:
    extra = with_policy(Grading(extra_credit=ExtraCredit(stretch=True)))
    assert card_of([mastered("ada")], extra).percent == pytest.approx(100 * 20 / 15)
    assert card_of([mastered("ada")], with_policy()).percent == 100


BEFORE, AFTER = DUE, DUE + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("when", "now", "shown"),
    [
        ("always", BEFORE, True),
        ("never", AFTER, False),
        ("after_deadline", BEFORE, False),
        ("after_deadline", AFTER, True),
    ],
)
def test_when_hidden_checks_are_told_one_by_one(when: str, now: datetime, shown: bool) -> None:
    made = with_policy(Grading("UTC", {2: DUE}), show_hidden=when)
    record = in_progress("ada")
    hidden = {c.title for c in record.checks if c.visibility == "hidden"}
    card = card_of([record], made, SELF_ATTENTION, now=now)
    titles = {c.title for task in card.tasks for c in task.checks}
    assert hidden <= titles if shown else not hidden & titles
    assert {c.title for c in record.checks if c.visibility == "visible"} <= titles
    assert sum(c.points for task in card.tasks for c in task.checks) == record.points == card.points
    assert sum(c.max_points for task in card.tasks for c in task.checks) == record.max_points
    staff = card_of([record], made, SELF_ATTENTION, now=now, audience="staff")
    assert hidden <= {c.title for task in staff.tasks for c in task.checks}


def test_withheld_checks_tell_nothing_but_what_they_came_to() -> None:
    record = in_progress("ada")
    card = card_of([record], with_policy(show_hidden="never"), SELF_ATTENTION)
    together = [c for task in card.tasks for c in task.checks if c.id.startswith("hidden::")]
    assert together
    for c in together:
        assert (c.diagnosis, c.evidence, c.hints, c.measures) == (None, None, [], [])
        assert "told together in this course" in c.title
    check_page(to_html(scorecard("ada", [record], with_policy(show_hidden="never"))))


def test_an_extension_moves_the_moment_for_its_learner_alone() -> None:
    grading = Grading("UTC", {0: DUE}, extensions={"bob": Extension(3)})
    made = with_policy(grading, show_hidden="after_deadline")
    titles = {
        name: {c.title for card in scorecard(name, [mastered(name)], made, now=AFTER).exercises for t in card.tasks
               for c in t.checks}
        for name in ("ada", "bob")
    }  # fmt: skip
    assert "Broadcast." in titles["ada"]
    assert "Broadcast." not in titles["bob"]
    assert any("told one by one after 2026-03-05 22:56 UTC" in title for title in titles["bob"])


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([Outcome.passed, Outcome.passed], Outcome.passed),
        ([Outcome.passed, Outcome.failed], Outcome.failed),
        ([Outcome.passed, Outcome.not_judged], Outcome.not_judged),
        ([Outcome.failed, Outcome.not_judged], Outcome.failed),
    ],
)
def test_outcome_of_checks_told_together(outcomes: list[Outcome], expected: Outcome) -> None:
    record = mastered("ada")
    record.checks = [check(f"test_{n}", 1, outcome) for n, outcome in enumerate(outcomes)]
    (together,) = card_of([record], with_policy(show_hidden="never")).tasks[0].checks
    assert together.outcome is expected
    assert bool(together.cause) == (expected is not Outcome.passed)


def test_the_table_in_the_terminal_shows_what_counts() -> None:
    text = io.StringIO()
    made = with_policy(Grading("UTC", {2: DUE}, Late(10)))
    console(text, width=140).print(summary_table([in_progress("ada")], made))
    assert f", {whole(100 * 20 / 43 - 20)} %" in text.getvalue()
    plain = io.StringIO()
    console(plain, width=140).print(summary_table([in_progress("ada")], with_policy()))
    assert f", {whole(100 * 20 / 43)} %" in plain.getvalue()
