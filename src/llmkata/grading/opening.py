"""One work, opened and read: its files, the time it was handed in, the commit of a repository."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from llmkata.authoring.stub import is_stub
from llmkata.course import Course
from llmkata.policy import due

from . import archive
from .choose import chosen_from
from .folder import Entry, cut, printable, read_bytes, walk
from .repository import Commit, NothingCommitted, Repository, RepositoryError, backwards, before, opened
from .submission import Submission
from .works import Piece, Work

#: What nbgrader writes beside what it collects.
_STAMP = "timestamp.txt"


class _Fact(NamedTuple):
    """What is known of the files of a piece."""

    submitted_at: str = ""
    marked_late: bool = False
    note: str = ""


def read_work(work: Work, learners: Sequence[str], course: Course, *, at: str = "") -> list[Submission]:
    """What the work holds for each available exercise, of the first of ``learners`` (who are the members of a group
    where there are several); not compiled yet. Never raises. ``at``: see :func:`.intake.read_class`.
    """
    learner = learners[0]
    try:
        if work.kind == "repository":
            read = _of_repository(work.pieces[0].path, learners, course, at)
        else:
            read = _of_files(work, learner, course)
    except NothingCommitted:
        cause = f"Nothing was committed to the repository of {work.name}."
        read = [Submission(learner, e.id, cause=cause) for e in course.available]
    except RepositoryError as error:
        cause = f"The repository of {work.name} cannot be read: {error}."
        read = [Submission(learner, e.id, file=f"{work.name}/.git", cause=cause) for e in course.available]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        cause = f"The folder cannot be read ({type(error).__name__}: {printable(str(error))[:200]}). Hand it in again."
        read = [Submission(learner, e.id, file=work.name, cause=cause) for e in course.available]
    return [replace(s, mates=tuple(learners[1:])) for s in read]


def _of_files(work: Work, learner: str, course: Course) -> list[Submission]:
    facts: dict[str, _Fact] = {}
    entries: list[Entry] = []
    notes: list[str] = []
    left_out: list[str] = []
    broken: list[tuple[str, str]] = []
    with ExitStack() as stack:
        for piece in _newest(work.pieces, left_out):
            prefix = (archive.stem(piece.name) if archive.is_archive(piece.name) else piece.name,) if piece.name else ()
            if prefix:
                again = f"{piece.name}: attempt {piece.attempt}" if piece.attempt > 1 else ""
                facts[prefix[0]] = _Fact(marked_late=piece.marked_late, note=again)
            try:
                found, said = _entries(piece, stack, left_out)
            except archive.ArchiveError as error:
                broken.append((printable(piece.path.name), str(error)))
                continue
            # An archive in a folder of Moodle is a piece of its own.
            own = {p.name for p in work.pieces if p.name} if not prefix else set()
            entries += [replace(e, parts=(*prefix, *e.parts)) for e in found if e.parts[:1] == () or e.parts[0] not in own]
            notes += said
        if work.kind == "nbgrader":
            facts |= {
                e.parts[0]: _stamped(e.path)
                for e in entries if len(e.parts) == 2 and e.parts[1] == _STAMP and e.kind == "file"
            }
            entries = [e for e in entries if not (len(e.parts) == 2 and e.parts[1] == _STAMP)]
        read = chosen_from(sorted(entries, key=lambda e: e.parts), learner, course, notes)
    read = [_with_facts(s, facts) for s in read]
    read = [replace(s, ignored=cut([*s.ignored, *left_out])) for s in read] if left_out else read
    if broken:
        name, error = broken[0]
        read = [s if s.file else replace(s, file=name, cause=f"{name}: {error}.") for s in read]
    return read


def _newest(pieces: Sequence[Piece], left_out: list[str]) -> list[Piece]:
    """Of files of one name the last attempt; what is not read at all is told."""
    newest: dict[str, Piece] = {}
    for piece in sorted(pieces, key=lambda p: p.attempt):
        if piece.left_out:
            left_out.append(f"{printable(piece.path.name)} ({piece.left_out})")
            continue
        # A folder of Moodle has no name within the work; there may be several.
        key = piece.name or str(piece.path)
        if key in newest:
            left_out.append(f"{printable(newest[key].path.name)} (a later attempt is there)")
        newest[key] = piece
    return list(newest.values())


def _entries(piece: Piece, stack: ExitStack, left_out: list[str]) -> tuple[list[Entry], list[str]]:
    if archive.is_archive(piece.path.name) and not piece.path.is_dir():
        unpacked = Path(stack.enter_context(TemporaryDirectory(prefix="kata-archive-")))
        left_out += archive.unpack(piece.path, unpacked)
        return walk(unpacked)
    if piece.name:
        return [Entry(piece.path, (), "file")], []
    return walk(piece.path)


def _with_facts(submission: Submission, facts: dict[str, _Fact]) -> Submission:
    if not submission.file:
        return submission
    top = submission.file.split("/")[0]
    fact = next((fact for name, fact in facts.items() if printable(name) == top), _Fact())
    notes = [*submission.notes, fact.note] if fact.note else submission.notes
    return replace(submission, submitted_at=fact.submitted_at, marked_late=fact.marked_late, notes=notes)


def _stamped(path: Path) -> _Fact:
    """The time in a ``timestamp.txt``: ``2026-10-05 21:59:00.123456 UTC``, a name or an offset of a zone; none is UTC."""
    from zoneinfo import ZoneInfo

    text = read_bytes(path, 200).decode("utf-8", "replace").strip()
    for candidate in (text, text.replace(" UTC", "+00:00")):
        try:
            moment = datetime.fromisoformat(candidate)
        except ValueError:
            continue
        return _Fact((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat())
    clock, _, zone = text.rpartition(" ")
    try:
        if zone[:1] in "+-":
            return _Fact(datetime.fromisoformat(clock + zone).isoformat())
        return _Fact(datetime.fromisoformat(clock).replace(tzinfo=ZoneInfo(zone)).isoformat())
    except (ValueError, OSError, KeyError):
        return _Fact(note=f"{_STAMP} holds no time that can be read: {printable(text)[:60]!r}")


def _of_repository(folder: Path, learners: Sequence[str], course: Course, at: str) -> list[Submission]:
    with opened(folder) as repository:
        if at:
            commit = repository.at(at)
            read = _at_commit(repository, commit, learners[0], course)
            note = f"commit {commit.shown}, which {printable(at)} names"
            return [_dated(repository, s, commit, note) for s in read.values()]
        line = repository.line(repository.head())
        head = line[0]
        known: dict[str, dict[str, Submission]] = {}

        def held(commit: Commit, exercise: str) -> Submission:
            if commit.sha not in known:
                known[commit.sha] = _at_commit(repository, commit, learners[0], course)
            return known[commit.sha][exercise]

        odd = ["commit times go backwards: not all were set by a clock"] if backwards(line) else []
        done = []
        for exercise in course.available:
            commit = _in_time(line, learners, course, exercise.module) or head
            found = held(commit, exercise.id)
            newest = found if commit is head else held(head, exercise.id)
            # Compared with the stub last, which takes longest.
            changed = newest.file and newest.source != found.source
            if changed and (found.source is None or is_stub(exercise, found.source)):
                commit, found = head, newest
            after = 0 if commit is head else line.index(commit)
            note = f"commit {commit.shown}" + (
                f", the last before the deadline; {after} later {'ones' if after > 1 else 'one'} not looked at"
                if after else ""
            )  # fmt: skip
            done.append(_dated(repository, found, commit, note, odd))
        return done


def _in_time(line: list[Commit], learners: Sequence[str], course: Course, module: int) -> Commit | None:
    """The last commit before the latest deadline that one of the learners has for the module; the newest without one."""
    grading = course.policy.grading
    deadlines = [deadline for learner in learners if (deadline := due(grading, module, learner)) is not None]
    if not deadlines:
        return line[0]
    grace = timedelta(minutes=grading.late.grace if grading.late else 0)
    return before(line, max(deadline.astimezone(UTC) for deadline in deadlines) + grace)


def _at_commit(repository: Repository, commit: Commit, learner: str, course: Course) -> dict[str, Submission]:
    names = [f"{exercise.slug}{suffix}" for exercise in course.available for suffix in (".py", ".ipynb")]
    entries, notes = repository.files(commit, names, course.limits.submission * 1024)
    return {s.exercise_id: s for s in chosen_from(entries, learner, course, notes)}


def _dated(
    repository: Repository, submission: Submission, commit: Commit, note: str, more: Sequence[str] = ()
) -> Submission:
    """With the time the file got what it holds, and a note on the commit."""
    if not submission.file:
        return submission
    changed = repository.changed(submission.file, commit)
    return replace(submission, submitted_at=changed.at.isoformat(), notes=[*submission.notes, note, *more])
