"""The page of a class, for staff: heat map, distribution, hardest checks, misconceptions, budgets, time line,
submissions that are alike, faults.

It asks the gradebook and holds no record itself. Names of learners link to their cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from llmkata.gradebook.answers import BudgetUse, CheckRate, Flag, Misconception, Unjudged
from llmkata.gradebook.standing import Entry, Standing, grade, total

from . import figures, pages
from .by_hand import signed
from .class_by_hand import exercise_states, hand_rows
from .text import amount, line, plain

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.gradebook import Gradebook
    from llmkata.records.pairs import Pair

#: Rows that a list shows before the rest is folded away.
SHOWN = 15

#: The sign of a standing in the heat map, beside the shade and the number. Text, for a cell to be one node: a class of
#: five hundred has many cells.
SIGNS = {
    Standing.mastered: "★", Standing.passed: "✓", Standing.in_progress: "◐", Standing.not_started: "○",
    Standing.missing: "–", Standing.unreadable: "△", Standing.infrastructure: "‖",
}


@dataclass(frozen=True)
class Cell:
    """One exercise of one learner in the heat map; ``level`` is the shade, 0..4, or None for no shade."""

    standing: str
    percent: float | None
    level: int | None
    #: Sorts by percent, with what is not there below 0 %.
    key: float
    #: How late it was handed in and what that costs; "" in time.
    late: str = ""
    #: Points given by hand, with their reasons; "" for none.
    given: str = ""


@dataclass(frozen=True)
class Row:
    """One learner in the heat map."""

    learner: str
    #: Name and section, where a roster tells them.
    about: str
    link: str
    total: float | None
    key: float
    cells: list[Cell]


@dataclass(frozen=True)
class Doubt:
    """A check that could not be judged for one reason, and whose."""

    exercise: str
    check_id: str
    cause: str
    learners: list[str]


@dataclass(frozen=True)
class BudgetRow:
    """One budget of the class."""

    use: BudgetUse
    middle: str
    near: list[str]
    over: int
    dots: list[figures.Dot]
    limit_at: float
    log: bool


def to_html(
    course: Course, book: Gradebook, links: Mapping[str, str], pairs: Sequence[Pair] | None = None,
    people: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The page; ``links`` leads from a learner to the address of the card, relative to the page. ``pairs``: submissions
    that are alike; None where nobody looked for them. ``people``: what else is known of a learner (name, section).
    """
    entries = book.entries()
    about = {learner: ", ".join(filter(None, map(line, known))) for learner, known in (people or {}).items()}
    rows = [
        _row(course, learner, known, links.get(learner, ""), about.get(learner, "")) for learner, known in entries.items()
    ]
    totals = [row.total for row in rows if row.total is not None]
    numbers = {exercise.id: exercise.number for exercise in course.exercises}
    unjudged = book.unjudged()
    handed_in = [
        entry for known in entries.values() for entry in known.values() if entry.standing is not Standing.missing
    ]
    stamps = [entry.submitted_at for entry in handed_in if entry.submitted_at]
    rates = [_clean_rate(rate) for rate in book.check_rates()]
    return pages.html().get_template("class.html").render(
        course=course, script="class.js", rows=rows, totals=totals, shown=SHOWN, numbers=numbers, links=links,
        middle=median(totals) if totals else None, mean=sum(totals) / len(totals) if totals else None,
        histogram=figures.histogram(totals),
        graded_at=max((entry.graded_at for known in entries.values() for entry in known.values()), default=""),
        rates=[rate for rate in rates if rate.failed and rate.max_points],
        misconceptions=[_clean_misconception(found) for found in book.misconceptions()],
        budgets=_budgets(book.budgets()),
        faults=[Unjudged(u.learner, line(u.exercise), "", line(u.cause)) for u in unjudged if not u.check_id],
        doubts=_doubts(unjudged), pairs=pairs,
        timeline=figures.timeline(stamps), undated=len(handed_in) - len(stamps),
        standings=[where.value for where in Standing], signs=SIGNS,
        late=any(cell.late for row in rows for cell in row.cells), absent=_absent(entries),
        given=any(cell.given for row in rows for cell in row.cells), hands=hand_rows(course),
        states=exercise_states(course, entries),
        flags=[
            Flag(f.learner, line(f.exercise), line(f.check_id), [line(flag) for flag in f.flags], plain(f.output))
            for f in book.flags()
        ],
        unreadable=[
            entry for known in entries.values() for entry in known.values() if entry.standing is Standing.unreadable
        ],
    )


def _absent(entries: Mapping[str, Mapping[str, Entry]]) -> list[Entry]:
    """Of each learner of whom every exercise is missing, the first: its cause is that of all."""
    return [
        next(iter(known.values()))
        for known in entries.values()
        if known and all(entry.standing is Standing.missing for entry in known.values())
    ]


def _row(course: Course, learner: str, entries: Mapping[str, Entry], link: str, about: str) -> Row:
    reached = total(course, entries)
    cells = [_cell(course, exercise, entries.get(exercise.id)) for exercise in course.available]
    return Row(learner, about, link, reached.percent, -1.0 if reached.percent is None else reached.percent, cells)


def _cell(course: Course, exercise: Exercise, known: Entry | None) -> Cell:
    if known is None:
        return Cell(Standing.not_started.value, None, None, _NOTHING_THERE[Standing.not_started])
    made, where = grade(course, exercise, known), known.standing
    given = _given(course, exercise, known.learner)
    if where in _NOTHING_THERE and not made.adjustment:
        return Cell(where.value, None, 0 if where is Standing.unreadable else None, _NOTHING_THERE[where], "", given)
    share = made.counted or 0.0
    level = {Standing.mastered: 4, Standing.passed: 3}.get(where, 2 if share >= 0.5 else 1)
    return Cell(where.value, 100 * share, level, 100 * share, made.why if made.days_late else "", given)


def _given(course: Course, exercise: Exercise, learner: str) -> str:
    given = course.policy.grading.by_hand.adjustments.get((learner, exercise.id), ())
    return "; ".join(f"{signed(a.points)} by hand: {line(a.reason)}" for a in given)


_NOTHING_THERE = {
    Standing.unreadable: -1.0, Standing.not_started: -2.0, Standing.missing: -3.0, Standing.infrastructure: -4.0,
}


def _doubts(unjudged: Iterable[Unjudged]) -> list[Doubt]:
    """Checks that could not be judged, by check and cause, those of most learners first: a class shares its gates."""
    found: dict[tuple[str, str, str], Doubt] = {}
    for u in unjudged:
        if u.check_id:
            key = (line(u.exercise), line(u.check_id), line(u.cause))
            found.setdefault(key, Doubt(*key, [])).learners.append(u.learner)
    return sorted(found.values(), key=lambda doubt: (-len(doubt.learners), doubt.exercise, doubt.check_id))


def _budgets(uses: list[BudgetUse]) -> list[BudgetRow]:
    """Budgets with somebody near or over the limit, those with most learners near it first."""
    rows = []
    for use in map(_clean_budget, uses):
        shares = [
            (line(learner), share, amount(value, use.unit), ok)
            for learner, value, ok in use.values
            if (share := figures.usage(value, use.at_most, use.at_least)) is not None
        ]
        close = [learner for learner, share, _, _ in shares if figures.near(share)] if _has_room(use) else []
        over = sum(not ok for _, _, ok in use.values)
        if shares and (close or over):
            middle = amount(median(value for _, value, _ in use.values), use.unit)
            rows.append(BudgetRow(use, middle, close, over, *figures.strip(shares)))
    return sorted(rows, key=lambda row: (-len(row.near), -row.over, row.use.exercise, row.use.name))


def _has_room(use: BudgetUse) -> bool:
    """Whether one can be well within the limits: an exact count, with a floor just below its limit, leaves no room."""
    return use.at_most is None or use.at_least is None or use.at_least < (1 - 2 * figures.NEAR) * use.at_most


def _clean_budget(use: BudgetUse) -> BudgetUse:
    return BudgetUse(line(use.exercise), line(use.check_id), line(use.name), line(use.unit), use.trust,
                     use.at_most, use.at_least, use.reference, use.values)


def _clean_rate(rate: CheckRate) -> CheckRate:
    return CheckRate(line(rate.exercise), line(rate.check_id), line(rate.title), rate.task, rate.tier, rate.passed,
                     rate.failed, rate.not_judged, rate.not_started, rate.max_points)


def _clean_misconception(found: Misconception) -> Misconception:
    return Misconception(line(found.exercise), line(found.name), line(found.feedback), found.learners)
