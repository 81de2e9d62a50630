"""A report folder: the class page, ``grades.csv`` and one scorecard per learner as HTML, Markdown and JSON.

::

    report/index.html            for staff
    report/grades.csv            for staff
    report/learners/NAME.html    for handing out, as are .md and .json
    report/staff/NAME.html       for staff, where grades are released by hand
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from llmkata.gradebook import Gradebook
from llmkata.places import CARDS, STAFF
from llmkata.records import ExerciseRecord
from llmkata.records.pairs import Pair

from . import classpage, grades, pages, scorecard
from .policy import Audience, Level
from .spread import spread
from .text import slug
from .view import Past
from .view import scorecard as make_card

if TYPE_CHECKING:
    from llmkata.course import Course


@dataclass(frozen=True)
class Report:
    """Where the pages are."""

    index: Path
    grades: Path
    #: Learner -> the HTML card.
    cards: dict[str, Path]


def write_report(
    out: Path | str, course: Course, records: Iterable[ExerciseRecord], book: Gradebook, *,
    feedback: Level | None = None, pairs: Sequence[Pair] | None = None, people: Mapping[str, Sequence[str]] | None = None,
    released: Collection[str] | None = None,
) -> Report:
    """Write the report of a class into the folder ``out``, which is made where needed; files of that name are replaced.

    ``records`` are those that count, one for each learner and exercise, and ``book`` the index of the run. ``feedback``:
    level for hidden checks, by default the course's. ``pairs``: submissions that are alike, for the class page alone; None
    where nobody looked for them. ``people``: name and section of learners, for
    class page and grades.csv. ``released``: ids of the exercises that learners' cards tell of; staff then have cards of
    their own, of all; None: no matter.
    """
    out = Path(out)
    by_learner: dict[str, list[ExerciseRecord]] = {}
    for record in records:
        by_learner.setdefault(record.learner, []).append(record)
    counted = {exercise.id for exercise in course.available}
    shown = course if released is None else course.narrowed(counted & set(released))

    def write(learner: str) -> tuple[Path | None, Path | None]:
        """The cards of a learner: their own, and that for staff."""
        mine, card, for_staff = by_learner[learner], None, None
        told = mine if released is None else [record for record in mine if record.exercise in released]
        if told:
            card = write_card(out / CARDS, learner, told, shown, feedback=feedback)
        else:
            _remove_card(out / CARDS, learner)
        if released is not None:
            for_staff = write_card(out / STAFF, learner, mine, course, audience="staff")
        else:
            _remove_card(out / STAFF, learner)
        return card, for_staff

    pages.compiled()
    written = dict(zip(by_learner, spread(write, list(by_learner)), strict=True))
    cards = {learner: card for learner, (card, _) in written.items() if card is not None}
    staff = {learner: card for learner, (_, card) in written.items() if card is not None}
    links = {learner: f"{path.parent.name}/{quote(path.name)}" for learner, path in (cards | staff).items()}
    _write(out / "index.html", classpage.to_html(course, book, links, pairs, people))
    _write(out / "grades.csv", grades.to_csv(course, book.entries(), people))
    return Report(out / "index.html", out / "grades.csv", cards)


def write_card(
    folder: Path | str, learner: str, records: Iterable[ExerciseRecord], course: Course, *,
    feedback: Level | None = None, audience: Audience = "learner", past: Past | None = None,
) -> Path:
    """Write one learner's card as HTML, Markdown and JSON; the path of the HTML file. ``past``: see :class:`.view.Past`."""
    folder = Path(folder)
    card = make_card(learner, records, course, feedback=feedback, audience=audience, past=past)
    name = slug(learner)
    _write(folder / f"{name}.md", scorecard.to_markdown(card))
    _write(folder / f"{name}.json", scorecard.to_json(card))
    return _write(folder / f"{name}.html", scorecard.to_html(card))


def _remove_card(folder: Path, learner: str) -> None:
    for suffix in (".html", ".md", ".json"):
        (folder / f"{slug(learner)}{suffix}").unlink(missing_ok=True)


def _write(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all: somebody may be looking at the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        # mkstemp makes files for the owner alone; a report is made to be read.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
