"""A learner's git repository -> what it held at one commit; nothing of it is run.

git never reads the repository's own configuration, hooks, attributes, index or references: it works in an empty
repository of ours that merely borrows the learner's objects, without network, with no more than ``cat-file``,
``ls-tree`` and ``rev-list``. References are read here, as text. A repository that borrows objects from elsewhere, or is
linked to elsewhere, is refused: it could show what is not the learner's.

Times of commits are what the learner's git wrote, and can be set at will.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from os.path import isdir, isfile, lexists
from pathlib import Path
from tempfile import TemporaryDirectory

from . import git
from .folder import MAX_DEPTH, MAX_ENTRIES, Entry, is_junk, never_entered, read_bytes

#: Seconds that one call of git may take (of processor time, where it is read as it comes); bytes of memory it may have; commits looked at.
PATIENCE = 60.0
MEMORY = 2 << 30
MAX_COMMITS = 20_000
_MAX_REF = 4096
_MAX_PACKED_REFS = 16 << 20
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"refs/[\w./@+-]{1,400}")
#: The first two: indexes that a learner could have written, which may tell other parents and times than the commits do.
_SETTINGS = (
    "core.commitGraph=false", "core.multiPackIndex=false", "protocol.allow=never", f"core.hooksPath={os.devnull}",
    "safe.directory=*", "core.packedGitLimit=256m", "core.packedGitWindowSize=16m",
)  # fmt: skip
#: An hour: clocks of two machines may differ.
_SKEW = 3600


class RepositoryError(ValueError):
    """A repository that cannot be read; the message says why and what to do."""


class NothingCommitted(RepositoryError):
    """A repository without any commit, as one that could not be fetched."""


@dataclass(frozen=True)
class Commit:
    """One commit of the line that is graded."""

    sha: str
    #: When it was committed, as it says.
    at: datetime

    @property
    def shown(self) -> str:
        return f"{self.sha[:12]} of {self.at:%Y-%m-%d %H:%M} UTC"


def is_repository(folder: Path) -> bool:
    """Whether the folder is a working copy or a bare clone (or says it is)."""
    return is_bare(folder) or _holds_objects(folder / ".git") or isfile(folder / ".git")


def is_bare(folder: Path) -> bool:
    return _holds_objects(folder) and not lexists(folder / ".git")


def _holds_objects(folder: Path) -> bool:
    # Not the methods of Path: they raise where a folder may not be looked into.
    return isfile(folder / "HEAD") and isdir(folder / "objects") and (
        isdir(folder / "refs") or isfile(folder / "packed-refs")
    )


@contextmanager
def opened(folder: Path) -> Iterator[Repository]:
    """The repository in the folder, to be read. Raises :class:`RepositoryError`."""
    place = folder if is_bare(folder) else folder / ".git"
    if place.is_symlink() or not place.is_dir():
        raise RepositoryError("its .git leads elsewhere (a worktree or a submodule); hand in a clone of its own")
    objects = place / "objects"
    if objects.is_symlink() or any((objects / "info" / name).is_file() for name in ("alternates", "http-alternates")):
        raise RepositoryError("it borrows objects from another repository; clone it again, without --shared or --reference")
    if (place / "reftable").exists():
        raise RepositoryError("it keeps its references as a reftable; clone it again with --ref-format=files")
    with TemporaryDirectory(prefix="kata-git-") as own:
        repository = Repository(place, Path(own))
        yield repository


class Repository:
    """A repository that is open; see :func:`opened`."""

    def __init__(self, place: Path, own: Path) -> None:
        self._place, self._own = place, own
        self._git_dir = own / "git"
        self._head = self._reference("HEAD")
        kind = "sha256" if self._head and len(self._head) == 64 else "sha1"
        if shutil.which("git") is None:
            raise RepositoryError("git is not installed here, which reads repositories")
        self._git("init", "--quiet", "--bare", "--template=", f"--object-format={kind}", str(self._git_dir))
        # By way of a link of ours: git would take some characters of a learner's path for its own.
        (own / "objects").symlink_to((place / "objects").resolve(), target_is_directory=True)
        (self._git_dir / "objects" / "info").mkdir(exist_ok=True)
        (self._git_dir / "objects" / "info" / "alternates").write_text(f"{own / 'objects'}\n")
        shallow = self._text("shallow", _MAX_PACKED_REFS)
        if shallow:
            lines = [line for line in shallow.split() if _SHA.fullmatch(line)]
            (self._git_dir / "shallow").write_text("".join(f"{line}\n" for line in lines))

    def head(self) -> Commit:
        """The last commit of the branch that is checked out. Raises :class:`NothingCommitted` where there is none."""
        if self._head is None:
            raise NothingCommitted("nothing was committed to it")
        return self._commit(self._head)

    def at(self, name: str) -> Commit:
        """The commit of a tag, a branch (also one of ``origin``) or a hash, in this order. Raises
        :class:`RepositoryError` where there is none of that name.
        """
        for full in (f"refs/tags/{name}", f"refs/heads/{name}", f"refs/remotes/origin/{name}", name):
            found = self._reference(full) if full.startswith("refs/") or full == "HEAD" else None
            if found:
                return self._commit(found)
        if re.fullmatch(r"[0-9a-f]{7,64}", name):
            return self._commit(name)
        raise RepositoryError(f"it has no tag, branch or commit {name!r}")

    def line(self, tip: Commit) -> list[Commit]:
        """``tip`` and what came before it on its line (first parents), newest first."""
        said = self._git("rev-list", "--first-parent", "--timestamp", f"--max-count={MAX_COMMITS}", tip.sha)
        return [self._parsed(row) for row in said.splitlines()]

    def changed(self, path: str, tip: Commit) -> Commit:
        """The last commit up to ``tip`` that changed the file."""
        said = self._git("rev-list", "--first-parent", "--timestamp", "--max-count=1", tip.sha, "--", path)
        return self._parsed(said) if said.strip() else tip

    def files(self, commit: Commit, wanted: Iterable[str], limit: int) -> tuple[list[Entry], list[str]]:
        """What the commit held, as :func:`.folder.walk` gives it; of files whose name is ``wanted`` at most ``limit + 1``
        bytes can be read.
        """
        entries: dict[tuple[str, ...], Entry] = {}
        blobs: list[tuple[str, Path]] = []
        names = set(wanted)
        notes: list[str] = []
        for mode, sha, parts in self._tree(commit):
            if len(entries) >= MAX_ENTRIES:
                notes = [f"more than {MAX_ENTRIES:,} files were handed in; the rest was not looked at"]
                break
            if any(map(is_junk, parts)):
                continue
            closed = next((n for n, part in enumerate(parts[:-1], 1) if never_entered(part) or n > MAX_DEPTH), None)
            if closed:
                entries.setdefault(parts[:closed], Entry(self._own, parts[:closed], "not entered"))
                continue
            for n in range(1, len(parts)):
                entries.setdefault(parts[:n], Entry(self._own, parts[:n], "folder"))
            kind = {"120000": "a link", "160000": "a submodule"}.get(mode, "file")
            path = self._own / f"blob{len(blobs)}"
            if kind == "file" and parts[-1] in names:
                blobs.append((sha, path))
            entries[parts] = Entry(path, parts, kind)
        self._write(blobs, limit + 1)
        return [entries[parts] for parts in sorted(entries)], notes

    def _tree(self, commit: Commit) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """(mode, hash, parts of the path); a tree may hold more than fits anywhere, so it is read as it comes."""
        with self._started("ls-tree", "-r", "-z", "--full-tree", commit.sha) as process:
            assert process.stdout is not None
            rest = b""
            while chunk := process.stdout.read1(1 << 16):
                *rows, rest = (rest + chunk).split(b"\0")
                for row in rows:
                    head, _, path = row.partition(b"\t")
                    mode, _, sha = head.decode("ascii", "replace").split(" ")
                    yield mode, sha, tuple(os.fsdecode(path).split("/"))
                if len(rest) > 1 << 16:
                    raise RepositoryError("it holds a path that is too long")

    def _write(self, blobs: list[tuple[str, Path]], most: int) -> None:
        if not blobs:
            return
        with self._started("cat-file", "--batch", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            for sha, path in blobs:
                process.stdin.write(f"{sha}\n".encode())
                process.stdin.flush()
                head = process.stdout.readline(200).decode("ascii", "replace").split()
                if len(head) != 3 or head[1] != "blob":
                    raise RepositoryError("objects are missing from it (a partial or damaged clone); clone it again")
                left = int(head[2]) + 1  # and the newline after it
                with path.open("wb") as file:
                    while left > 0 and (chunk := process.stdout.read(min(left, 1 << 18))):
                        left -= len(chunk)
                        kept = chunk if left else chunk[:-1]
                        file.write(kept[: max(0, most - file.tell())])
            process.stdin.close()

    def _commit(self, sha: str) -> Commit:
        try:
            said = self._git("rev-list", "--timestamp", "--max-count=1", f"{sha}^{{commit}}", "--")
        except RepositoryError:
            raise RepositoryError(f"it has no commit {sha[:12]} (a partial or damaged clone); clone it again") from None
        return self._parsed(said)

    @staticmethod
    def _parsed(row: str) -> Commit:
        seconds, _, sha = row.strip().partition(" ")
        try:
            return Commit(sha, datetime.fromtimestamp(int(seconds), UTC))
        except (ValueError, OverflowError, OSError):
            raise RepositoryError(f"commit {sha[:12]} has no time that can be read") from None

    def _reference(self, name: str, depth: int = 0) -> str | None:
        """The hash a reference leads to; None where it leads nowhere."""
        if name != "HEAD" and (not _REF.fullmatch(name) or ".." in name or depth > 5):
            return None
        said = self._text(name, _MAX_REF).strip()
        if said.startswith("ref: "):
            return self._reference(said[5:].strip(), depth + 1)
        if _SHA.fullmatch(said):
            return said
        for row in self._text("packed-refs", _MAX_PACKED_REFS).splitlines():
            sha, _, packed = row.partition(" ")
            if packed == name and _SHA.fullmatch(sha):
                return sha
        return None

    def _text(self, name: str, most: int) -> str:
        try:
            return read_bytes(self._place / name, most).decode("utf-8", "replace")
        except OSError:
            return ""

    def _git(self, *words: str) -> str:
        with self._started(*words) as process:
            try:
                said, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise RepositoryError(f"git took more than {PATIENCE:g} s to read it") from None
        if process.returncode:
            raise RepositoryError("git cannot read it (objects are missing or damaged); clone it again")
        return said.decode("utf-8", "replace")

    @contextmanager
    def _started(self, *words: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
        # Objects are hostile: a small one may say to be made of huge ones.
        limited = ["sh", "-c", f'ulimit -v {MEMORY >> 10}; ulimit -t {PATIENCE:.0f}; exec git "$@"', "git"]
        settings = (word for setting in _SETTINGS for word in ("-c", setting))
        process = subprocess.Popen(
            [*(limited if os.name == "posix" else ["git"]), *settings, *words], cwd=self._own, env=self._environment(), stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:  # what was not sent yet, to a process that has ended
                        continue

    def _environment(self) -> dict[str, str]:
        return git.environment() | {
            "HOME": str(self._own), "GIT_DIR": str(self._git_dir), "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1", "GIT_LITERAL_PATHSPECS": "1", "GIT_OPTIONAL_LOCKS": "0",
        }  # fmt: skip


def before(line: list[Commit], moment: datetime) -> Commit | None:
    """The newest commit of the line not later than the moment; None where all are."""
    return next((commit for commit in line if commit.at <= moment), None)


def backwards(line: list[Commit]) -> bool:
    """Whether a commit says to be older than the one before it: at least one of the two times was set by hand."""
    return any((parent.at - child.at).total_seconds() > _SKEW for child, parent in pairwise(line))

