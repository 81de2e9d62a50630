"""What ``kata report`` says of grades that stood before: those that moved when work was graded again, and what waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmkata.cli.common import prog, shown
from llmkata.cli.report import changes_of, gradebook_of, log_of, released_in, roster_of

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.gradebook.book import Identity
    from llmkata.gradebook.moves import Move
    from llmkata.records import ExerciseRecord

#: Grades that are named one by one.
MOST_NAMED = 5


def stood(folder: Path) -> Mapping[tuple[str, str], Identity]:
    """Which record stood for each (learner, exercise) when pages were written for the last time."""
    from llmkata.gradebook.place import exists

    if not exists(folder):
        return {}
    with gradebook_of(folder) as book:
        return book.identities()


def tell_settled(
    course: Course, folder: Path, before: Mapping[tuple[str, str], Identity], read: Sequence[ExerciseRecord],
    standing: Iterable[ExerciseRecord],
) -> None:
    """Log and tell the grades that moved by grading alone, and tell what waits where grades are frozen.

    ``before``: :func:`stood`; ``read``: all records of the run; ``standing``: those that count now.
    """
    from llmkata.gradebook.in_force import with_changes
    from llmkata.grading.roster import enrolled

    course = enrolled(course, roster_of(course, folder))
    changes = changes_of(folder)
    live = with_changes(course, changes, frozen=False)
    moved = _regraded(live, folder, before, read, standing)
    _tell(course, moved, "moved by grading (kata log)", "moved by grading (kata log)")
    in_force = with_changes(course, changes).policy.grading.by_hand
    if not in_force.freezes:
        return
    from llmkata.gradebook.moves import grades_of, moves

    held = moves(grades_of(with_changes(course, changes), read), grades_of(live, read), in_force.freezes)
    _tell(course, held, "waits, since it is frozen", "wait, since they are frozen")
    names = {m.exercise for m in held} | in_force.waiting.keys()
    for command, chosen in {
        "freeze": names - in_force.released.keys(), "release-grades": names & in_force.released.keys()
    }.items():
        numbers = [e.number for e in course.exercises if e.id in chosen]
        if numbers:
            typer.echo(f"Next: {prog()} {command} {' '.join(numbers)} --in {shown(folder)}     # shows what waits")


def tell_unreleased(course: Course, folder: Path) -> None:
    """Say which exercises learners are not told of yet."""
    released = released_in(course)
    held = [e.number for e in course.available if released is not None and e.id not in released]
    if held:
        names = ", ".join(held) if len(held) <= 8 else f"{len(held)} of {len(course.available)} exercises"
        typer.echo(f"not released: {names} (learners' cards leave them out)")
        typer.echo(f"Next: {prog()} release-grades {' '.join(held) if len(held) <= 8 else '[EXERCISE...]'} --in {shown(folder)}")


def _regraded(
    live: Course, folder: Path, before: Mapping[tuple[str, str], Identity], read: Sequence[ExerciseRecord],
    standing: Iterable[ExerciseRecord],
) -> list[Move]:
    """Log the grades that moved because another record counts than before. What was handed in for the first time moved
    nothing.
    """
    from llmkata.gradebook.changes import Action, Change, now, who
    from llmkata.gradebook.moves import regraded
    from llmkata.records import State

    by_identity = {(r.learner, r.exercise, r.graded_at, r.submission_sha): r for r in read}
    was, is_ = {}, {}
    for record in standing:
        pair, identity = (record.learner, record.exercise), (record.graded_at, record.submission_sha)
        old = by_identity.get((*pair, *before[pair])) if before.get(pair, identity) != identity else None
        if old is not None and old.state not in (State.missing, State.not_started):
            was[pair], is_[pair] = old, by_identity[*pair, *identity]
    moved = regraded(live, list(was.values()), list(is_.values()))
    at, by = now(), who()
    lines = []
    for move in moved:
        pair = (move.learner, move.exercise)
        same = was[pair].submission_sha == is_[pair].submission_sha
        why = "the same file, graded again" if same else "another file counts"
        lines.append(Change(
            0, at, by, Action.regrade, move.exercise, learner=move.learner, text=why, before=move.before, after=move.after
        ))  # fmt: skip
    if lines:
        log_of(folder).append(*lines)
    return moved


def _tell(course: Course, found: list[Move], one: str, many: str) -> None:
    from llmkata.reports.text import line, percent

    if not found:
        return
    numbers = {e.id: e.number for e in course.exercises}
    named = [f"{line(m.learner, 40)} {numbers[m.exercise]} {percent(m.before)} → {percent(m.after)}" for m in found[:MOST_NAMED]]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    said = f"1 grade {one}" if len(found) == 1 else f"{len(found)} grades {many}"
    typer.echo(f"{said}: {', '.join(named)}{more}")
