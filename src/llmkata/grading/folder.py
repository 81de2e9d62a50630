"""What lies in one learner's folder: every entry once, links not followed, bounded in number and depth."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmkata.course import Exercise

#: Entries looked at per learner, and folders within folders.
MAX_ENTRIES = 20_000
MAX_DEPTH = 12
#: Ignored entries listed per submission.
MAX_LISTED = 30

_NEVER_ENTERED = re.compile(r"\..*|__pycache__|node_modules|site-packages|venv|.*\.(dist-info|egg-info)", re.IGNORECASE)
_JUNK = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", ".gitkeep"})


@dataclass(frozen=True)
class Entry:
    """Something in a learner's folder, as it was listed; nothing of it was opened."""

    path: Path
    #: Parts of the path within the learner's folder.
    parts: tuple[str, ...]
    #: "file", "folder", or why it plays no part: "not entered", "a link", "not a plain file", "cannot be opened".
    kind: str

    @property
    def shown(self) -> str:
        return "/".join(map(printable, self.parts))

    @property
    def label(self) -> str:
        """``shown`` with the reason it plays no part, where that is not plain."""
        tail = {"folder": "/", "not entered": "/", "file": ""}.get(self.kind, f" ({self.kind})")
        return self.shown + tail


def printable(text: str) -> str:
    """``text`` with control characters and undecodable bytes escaped, so that it can be shown and encoded anywhere."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def never_entered(name: str) -> bool:
    """Whether folders of that name hold nothing that anybody hands in: hidden ones, caches, environments."""
    return _NEVER_ENTERED.fullmatch(name) is not None


def is_junk(name: str) -> bool:
    """Whether the name is one that an operating system leaves behind by itself, or that stands for an empty folder."""
    return name in _JUNK or name.startswith("._")


def by_name(entry: os.DirEntry) -> str:
    return entry.name


def walk(folder: Path) -> tuple[list[Entry], list[str]]:
    """The entries of a learner's folder, in order, and a remark where there were too many. Raises ``OSError`` where the
    folder itself cannot be opened.
    """
    entries: list[Entry] = []
    pending: list[tuple[Path, tuple[str, ...]]] = [(folder, ())]
    while pending:
        here, parts = pending.pop()
        try:
            with os.scandir(here) as scan:
                found = sorted(scan, key=by_name)
        except OSError:
            if not parts:
                raise
            entries.append(Entry(here, parts, "cannot be opened"))
            continue
        for entry in found:
            if len(entries) >= MAX_ENTRIES:
                return entries, [f"more than {MAX_ENTRIES:,} files were handed in; the rest was not looked at"]
            if is_junk(entry.name):
                continue
            inner = (*parts, entry.name)
            kind = _kind(entry, len(inner))
            entries.append(Entry(Path(entry.path), inner, kind))
            if kind == "folder":
                pending.append((Path(entry.path), inner))
    return sorted(entries, key=lambda e: e.parts), []


def _kind(entry: os.DirEntry, depth: int) -> str:
    mode = entry.stat(follow_symlinks=False).st_mode
    if entry.is_symlink() or getattr(entry, "is_junction", bool)():
        return "a link"
    if stat.S_ISDIR(mode):
        return "not entered" if never_entered(entry.name) or depth >= MAX_DEPTH else "folder"
    return "file" if stat.S_ISREG(mode) else "not a plain file"


def stands_for(entry: Entry, exercise: Exercise) -> bool:
    """Whether the entry has the name of the exercise's file, or of a notebook in its place."""
    name = entry.parts[-1]
    if name not in (f"{exercise.slug}.py", f"{exercise.slug}.ipynb"):
        return False
    # A copy of the whole course holds other files of these names.
    return not {"solutions", "reference", "graders"}.intersection(entry.parts[:-1])


def rank(entry: Entry, exercise: Exercise) -> int:
    """0 for the exercise tree, 1 for ``moduleN/<slug>.py``, 2 for any other place."""
    module = f"module{exercise.module}"
    if entry.parts[-3:-1] == (module, exercise.slug):
        return 0
    return 1 if entry.parts[-2:-1] == (module,) else 2


def shipped(entry: Entry, course: dict[str, Exercise]) -> bool:
    """Whether every learner's repository has this file beside its exercise, so that nobody needs to be told of it."""
    exercise = course.get("/".join(entry.parts[-3:-1]))
    if exercise is None:
        return False
    given = {exercise.brief.name, exercise.visible_checks.name, exercise.feedback.name}
    return entry.parts[-1] in (given if exercise.available else given | {exercise.stub.name})


#: How a repository is told that ``kata release`` made, and what that put beside the exercises.
RELEASE = ".kata-release.json"
RELEASED = frozenset({
    RELEASE, ".github", ".gitignore", ".kata-stubs", "LICENSE", "README.md", "components", "course.yaml", "docs", "kata",
    "kata.cmd", "pyproject.toml", "requirements.lock", "vendor",
})  # fmt: skip


def released(entries: Iterable[Entry]) -> set[Entry]:
    """What a learner's repository came with. It plays no part, and nobody needs to be told of it."""
    entries = list(entries)
    roots = [e.parts[:-1] for e in entries if e.parts[-1:] == (RELEASE,) and e.kind == "file"]
    return {e for root in roots for e in entries if e.parts[: len(root)] == root and e.parts[len(root)] in RELEASED}


def owner(entry: Entry, course: dict[str, Exercise]) -> str | None:
    """Id of the exercise in whose folder the entry lies."""
    pairs = zip(entry.parts[:-2], entry.parts[1:-1], strict=True)
    return next((f"{a}/{b}" for a, b in pairs if f"{a}/{b}" in course), None)


def listed(ignored: list[Entry], needed: set[tuple[str, ...]]) -> list[str]:
    """Names of ignored entries; a folder outside of ``needed`` (parts of paths) stands for all it holds."""
    shown: dict[str, None] = {}
    for entry in ignored:
        whole = next((n for n in range(1, len(entry.parts)) if entry.parts[:n] not in needed), None)
        shown["/".join(map(printable, entry.parts[:whole])) + "/" if whole else entry.label] = None
    return cut(list(shown))


def cut(names: list[str]) -> list[str]:
    """At most ``MAX_LISTED`` names, and how many more there are."""
    return names if len(names) <= MAX_LISTED else [*names[:MAX_LISTED], f"and {len(names) - MAX_LISTED} more"]


def similar_names(exercise: Exercise, entries: list[Entry]) -> Iterator[Entry]:
    """Files whose names differ from the one wanted by case, separators, or a copy number: ``Self-Attention (1).py``."""
    for entry in entries:
        stem, _, suffix = entry.parts[-1].rpartition(".")
        letters = re.sub(r"[^a-z]", "", stem.lower().removesuffix(".py")).removesuffix("copy").removesuffix("final")
        if (
            entry.kind == "file"
            and suffix.lower() in ("py", "ipynb", "txt")
            and letters == re.sub(r"[^a-z]", "", exercise.slug)
        ):
            yield entry


def read_bytes(path: Path, most: int) -> bytes:
    """At most the first ``most`` bytes of a plain file. Raises ``OSError`` for a link or anything else."""
    # A pipe or device that took the place of the file since it was listed must neither block nor be read.
    flags = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))
    fd = os.open(path, os.O_RDONLY | sum(flags))
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a plain file")
        return file.read(most)
