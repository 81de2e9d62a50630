"""The submissions of a class -> what each learner handed in for each exercise.

:mod:`.works` says what is understood: folders and archives of learners, bulk downloads, repositories, nbgrader's tree.
Within a work a file is found as ``exercises/module2/self_attention/self_attention.py``, ``module2/self_attention.py``, or
by its name alone where only one such file is there; ``.ipynb`` stands for ``.py``.
Everything found is hostile: links are not followed, only plain files of the names asked for are opened, sizes, depth
and number of entries are bounded, and no learner's folder can stop the intake of another's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from llmkata.course import Course, Exercise

from . import archive
from .choose import compiled, read_entry
from .folder import Entry, printable
from .groups import counted
from .opening import read_work
from .roster import AmbiguousName, Person, Roster
from .submission import Submission
from .times import Times
from .works import Found, Piece, Work, class_folder, works

__all__ = ["Intake", "IntakeError", "Submission", "read_class", "read_file", "read_learner", "read_submissions"]


class IntakeError(ValueError):
    """The submissions themselves cannot be used; the message says why and what to give instead."""


@dataclass
class Intake:
    """A class as it was handed in."""

    #: Every available exercise of every learner, learners and exercises in order.
    submissions: list[Submission] = field(default_factory=list)
    #: What lies beside the works and no learner answers to: loose files, links, an archive beside the folder of that name.
    strays: list[str] = field(default_factory=list)
    #: Works of nobody on the roster, with the reason where the name is not plain.
    strangers: list[str] = field(default_factory=list)


def read_class(
    place: Path | str, course: Course, roster: Roster | None = None, *, at: str = "", times: Times | None = None
) -> Intake:
    """What a class handed in. A learner who handed in nothing, on the roster or with an empty folder, has a ``missing``
    submission for each exercise. Never raises for one learner.

    Args:
        place: a folder, or one archive that holds it (a bulk download as it came).
        course: with the extensions of the roster (:func:`.roster.enrolled`): the deadline decides which commit of a
            repository is read.
        roster: who is in the class; learners go by its ids. Without it they go by the names of their works.
        at: tag, branch or hash to read of each repository, whatever the deadline.
        times: when learners handed in, as another system tells it; it decides before any other time.

    Raises:
        IntakeError: ``place`` is neither, holds no work and there is no roster, or is one learner's own folder.
    """
    with _opened(Path(place)) as folder:
        found = _works(folder, course, str(place), empty=roster is not None)
        owned, strangers = owners(found, roster)
        read = [s for work, learners in owned for s in read_work(work, learners, course, at=at)]
    if times is not None:
        read = times.stamped(read, roster)
    submissions = counted(read, roster, course)
    return Intake(compiled(submissions), found.strays, strangers)


def read_submissions(folder: Path | str, course: Course) -> list[Submission]:
    """The submissions of :func:`read_class`, without a roster."""
    return read_class(folder, course).submissions


def read_learner(folder: Path, course: Course) -> list[Submission]:
    """The submissions of the learner whose folder or archive this is, one for each available exercise, as it lies there.
    Never raises.
    """
    packed = archive.is_archive(folder.name) and not folder.is_dir()
    learner = printable(archive.stem(folder.name) if packed else folder.name)
    return compiled(read_work(Work(learner, (Piece(folder),)), (learner,), course))


def read_file(path: Path | str, exercise: Exercise, course: Course, *, learner: str = "you") -> Submission:
    """One file, named by the person who asks, as the submission for ``exercise``. Links are followed. Never raises."""
    path = Path(path)
    entry = Entry(path.resolve(), (path.name,), "file")
    read = read_entry(entry, Submission(learner, exercise.id, file=entry.shown), course)
    return compiled([read])[0]


@contextmanager
def _opened(place: Path) -> Iterator[Path]:
    if not (archive.is_archive(place.name) and place.is_file()):
        yield place
        return
    with TemporaryDirectory(prefix="kata-class-") as unpacked:
        folder = Path(unpacked) / (printable(archive.stem(place.name)) or "class")
        folder.mkdir()
        try:
            archive.unpack(place, folder, archive.CLASS)
        except archive.ArchiveError as error:
            raise IntakeError(f"{place}: {error}") from None
        inner = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        # An archive of one folder is that folder, unless it is itself the one work of a bulk download.
        found = works(folder)
        lone = len(inner) == 1 and inner[0].is_dir() and found.works and not found.works[0].names
        yield inner[0] if lone else folder


def _works(folder: Path, course: Course, shown: str, *, empty: bool) -> Found:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise IntakeError(f"{shown} {what}; give a folder (or an archive) that holds one folder per learner")
    inside, _ = class_folder(folder)
    try:
        names = set(os.listdir(inside))
        found = works(folder)
    except OSError as error:
        raise IntakeError(f"{shown} cannot be opened: {error.strerror or error}") from None
    modules = {f"module{m.number}" for m in course.modules}
    if names & (modules | {"exercises"}) or any(
        f"{e.slug}{s}" in names for e in course.exercises for s in (".py", ".ipynb")
    ):
        raise IntakeError(
            f"{shown} looks like the folder of one learner; give the folder above, which holds one folder per learner"
        )
    if not found.works and not empty:
        raise IntakeError(f"{shown} holds no folder; give a folder that holds one folder (or archive) per learner")
    return found


def owners(found: Found, roster: Roster | None) -> tuple[list[tuple[Work, tuple[str, ...]]], list[str]]:
    """Each work with the learners it is of (all members of a group whose name it has), and whose are on no roster."""
    if roster is None:
        return [(work, (work.name,)) for work in found.works], []
    owned: list[tuple[Work, tuple[str, ...]]] = []
    strangers = []
    for work in found.works:
        members = _group(work, roster)
        try:
            person = None if members else roster.find(*work.names, work.name, canvas_id=work.canvas_id)
        except AmbiguousName as error:
            person = None
            strangers.append(f"{work.name} ({error})")
        else:
            if person is None and not members:
                strangers.append(work.name)
        owned.append((work, tuple(p.id for p in members) or ((person.id,) if person else (work.name,))))
    return owned, strangers


def _group(work: Work, roster: Roster) -> tuple[Person, ...]:
    found = (roster.group(name) for name in (*work.names, work.name) if name)
    return next((members for members in found if members), ())
