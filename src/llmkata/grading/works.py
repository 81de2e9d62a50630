"""What lies in the folder of a class -> the works of its learners, not opened yet.

Understood beside each other: a folder or archive per learner; the loose files and folders of a bulk download from Canvas
or Moodle (:mod:`.bulk`); working copies and bare clones of git; nbgrader's ``submitted/<learner>/<assignment>/``. Names in
the folder of a class are the instructor's, or of the system that made it; names within a work are the learner's, and
decide nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import archive
from .bulk import BulkName, bulk_name
from .folder import by_name, is_junk, printable
from .repository import is_bare, is_repository

#: What lies beside nbgrader's submitted/ in the folder of a course.
_NBGRADER = frozenset({"source", "release", "autograded", "gradebook.db", "nbgrader_config.py"})
SUBMITTED = "submitted"


@dataclass(frozen=True)
class Piece:
    """A folder, an archive or a file of a work."""

    path: Path
    #: Its name within the work; "" where it is the whole of it.
    name: str = ""
    marked_late: bool = False
    #: Which of several files of that name, from 1.
    attempt: int = 1
    #: Something typed into a page, or whose owner is in doubt: not read, told with this reason.
    left_out: str = ""


@dataclass(frozen=True)
class Work:
    """All that was handed in under one name."""

    #: Escaped, for people.
    name: str
    pieces: tuple[Piece, ...]
    #: "files", "repository", or "nbgrader": the learner's assignments, each with a time stamp of nbgrader's.
    kind: str = "files"
    #: Other names of the person.
    names: tuple[str, ...] = ()
    canvas_id: str = ""


@dataclass
class Found:
    """The works in the folder of a class, in order of their names, and what no learner answers to."""

    works: list[Work] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


def class_folder(folder: Path) -> tuple[Path, bool]:
    """(the folder that holds the works, whether it is nbgrader's ``submitted/``): the folder itself, or the one of that
    name in the folder of a course of nbgrader."""
    inner = folder / SUBMITTED
    if inner.is_dir() and any((folder / name).exists() for name in _NBGRADER):
        return inner, True
    return folder, folder.resolve().name == SUBMITTED


def works(folder: Path) -> Found:
    """What lies in the folder. Raises ``OSError`` where it cannot be opened."""
    folder, nbgrader = class_folder(folder)
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=by_name)
    found = Found()
    bulk: list[tuple[BulkName, os.DirEntry]] = []
    packed: list[os.DirEntry] = []
    for entry in entries:
        if is_junk(entry.name):
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        named = bulk_name(entry.name, folder=is_folder) if is_folder or entry.is_file(follow_symlinks=False) else None
        if named is not None:
            bulk.append((named, entry))
        elif is_folder and not entry.name.startswith((".", "__")):
            found.works.append(_folder(Path(entry.path), nbgrader))
        elif archive.is_archive(entry.name) and not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
            packed.append(entry)
        else:
            found.strays.append(printable(entry.name))
    # A folder comes before an archive, and one archive before another, of the same name.
    taken = {work.name for work in found.works}
    for entry in packed:
        name = printable(archive.stem(entry.name))
        if name in taken:
            found.strays.append(printable(entry.name))
        else:
            found.works.append(Work(name, (Piece(Path(entry.path)),)))
        taken.add(name)
    found.works += _of_bulk(bulk)
    found.works.sort(key=lambda work: work.name)
    found.strays.sort()
    return found


def _folder(path: Path, nbgrader: bool) -> Work:
    if is_repository(path):
        return Work(printable(path.name.removesuffix(".git") if is_bare(path) else path.name), (Piece(path),), "repository")
    return Work(printable(path.name), (Piece(path),), "nbgrader" if nbgrader else "files")


def _of_bulk(found: Iterable[tuple[BulkName, os.DirEntry]]) -> list[Work]:
    found = list(found)
    people: dict[tuple[str, str, str], list[tuple[BulkName, os.DirEntry]]] = {}
    for named, entry in found:
        people.setdefault((named.system, named.person, named.user), []).append((named, entry))
    # Moodle's numbers change from one assignment to the next: they are not used where the name is enough.
    names = [person for system, person, _ in people if system == "Moodle"]
    works = []
    for (system, person, user), mine in people.items():
        pieces = tuple(piece for named, entry in mine for piece in _pieces(named, entry))
        if system == "Canvas":
            anonymous = user.startswith("anon_")
            shown = user if anonymous or not person else f"{person}_{user}"
            works.append(Work(printable(shown), pieces, names=(person,), canvas_id="" if anonymous else user))
        else:
            alone = names.count(person) == 1 and person != "Participant"
            shown = person if alone else f"{person} {user}"
            works.append(Work(printable(shown), pieces, names=(f"{person} {user}", *([person] if alone else []))))
    return works


def _pieces(named: BulkName, entry: os.DirEntry) -> Iterator[Piece]:
    left_out = "typed into the page, not a file" if named.typed else ""
    if named.doubtful:
        left_out = "whose it is can be read in two ways; put it into a folder of the learner's name"
    path = Path(entry.path)
    yield Piece(path, named.file, named.late, named.attempt, left_out)
    if not named.file and not left_out:
        # A folder of Moodle holds what was uploaded: an archive in it is a whole work as often as not.
        try:
            with os.scandir(path) as scan:
                inside = sorted(scan, key=by_name)
        except OSError:  # told when the folder itself is read
            return
        yield from (
            Piece(Path(e.path), e.name)
            for e in inside if archive.is_archive(e.name) and not is_junk(e.name) and e.is_file(follow_symlinks=False)
        )  # fmt: skip
