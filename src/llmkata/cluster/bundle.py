"""What a worker needs of the course, as one block of bytes that goes by its hash, and the folder it is unpacked into.

The folder keeps the layout of the course, so that checks, hashes and keys come out as they do where the course lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from llmkata.course import Course

#: Read by learners' code, which may run as another user: all else is for the account of the worker alone.
_PUBLIC = "components"


@dataclass(frozen=True)
class Bundle:
    """``data``: the compressed files; ``digest``: SHA-256 over their names and contents, hexadecimal."""

    digest: str
    data: bytes


class BundleError(ValueError):
    """The bytes are not the bundle that they were said to be."""


def pack(course: Course) -> Bundle:
    """Course file, lock, components, and of each available exercise its folder, graders, reference and model answer."""
    files = {path.relative_to(course.root).as_posix(): path.read_bytes() for path in _files(course)}
    raw = msgspec.msgpack.encode(dict(sorted(files.items())))
    return Bundle(hashlib.sha256(raw).hexdigest(), zlib.compress(raw, 6))


def _files(course: Course) -> Iterator[Path]:
    parts = [course.root / "course.yaml", course.root / "requirements.lock", course.root / _PUBLIC]
    for exercise in course.available:
        parts += [exercise.folder, exercise.graders_dir, exercise.reference, exercise.solution]
    for part in parts:
        for path in [part] if part.is_file() else part.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def cached(digest: str) -> Path | None:
    """The folder of that bundle on this machine, None where it was never unpacked. Raises ``OSError`` as :func:`unpack`."""
    folder = _store() / digest
    return folder if folder.is_dir() else None


def unpack(digest: str, data: bytes) -> Path:
    """Unpack once on each machine -> the root of the course there.

    Raises:
        BundleError: the bytes are damaged, or have another hash.
        OSError: no space, or somebody else has the place of the cache.
    """
    there = cached(digest)
    if there is not None:
        return there
    try:
        raw = zlib.decompress(data)
    except zlib.error as error:
        raise BundleError(f"the bundle of the course is damaged: {error}") from None
    if hashlib.sha256(raw).hexdigest() != digest:
        raise BundleError("the bundle of the course has another hash than the one announced")
    store = _store()
    part = Path(tempfile.mkdtemp(prefix="part-", dir=store))
    try:
        for name, content in msgspec.msgpack.decode(raw, type=dict[str, bytes]).items():
            _write(part, PurePosixPath(name), content)
        part.chmod(0o711)
        with contextlib.suppress(OSError):  # another worker of this machine was faster
            part.rename(store / digest)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return store / digest


def _write(root: Path, name: PurePosixPath, content: bytes) -> None:
    if name.is_absolute() or ".." in name.parts:
        raise BundleError(f"the bundle of the course holds {name}, which leads out of it")
    public = name.parts[0] == _PUBLIC
    folder = root
    for part in name.parts[:-1]:
        folder /= part
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755 if public else 0o700)
    path = root / name
    path.write_bytes(content)
    path.chmod(0o644 if public else 0o600)


def _store() -> Path:
    """The cache of this account; others can pass through it and list nothing."""
    folder = Path(tempfile.gettempdir()) / f"llmkata-bundles-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o711)
        folder.chmod(0o711)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to somebody else, or others may write there")
    return folder
