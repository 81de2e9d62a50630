"""An uploaded archive (.zip, .tar, .tar.gz) -> a folder with its plain files and nothing else.

The archive is hostile. No member is extracted by a library: names are taken apart here, contents are copied as bytes
into files that are created anew. Links, devices, absolute names and names with ``..`` are left out and told; the number
of members, the bytes of each and of all, and the time to read them are bounded. Deflate is the one compression taken:
others allocate what the archive asks for.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from .folder import MAX_DEPTH, is_junk, printable


class Limits(NamedTuple):
    """What one archive may hold and take."""

    members: int = 20_000
    #: Bytes of all files unpacked, of everything passed over, and of the archive itself.
    bytes: int = 64 << 20
    passed: int = 1 << 30
    archive: int = 64 << 20
    #: Bytes of the directory of a .zip, which is read at once.
    directory: int = 4 << 20
    #: Seconds of processor time: compressed data can be slow to read and small to send.
    seconds: float = 20.0


#: Of one learner, and of a class as a system lets it be downloaded.
LEARNER = Limits()
CLASS = Limits(members=500_000, bytes=8 << 30, passed=16 << 30, archive=8 << 30, directory=128 << 20, seconds=600.0)
#: Bytes of one header of a .tar.
_MAX_HEADER = 1 << 20

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_CHUNK = 1 << 18
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError,
           ArithmeticError, MemoryError)


class ArchiveError(ValueError):
    """An archive that cannot be used; the message says why and what to do."""


class _Member(NamedTuple):
    name: str
    size: int
    #: "file", "folder", or why it plays no part.
    kind: str
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Whether the name is that of an archive this module unpacks."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """The name of an archive without its suffix."""
    return next((name[: -len(s)] for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), name)


def unpack(archive: Path, into: Path, limits: Limits = LEARNER) -> list[str]:
    """Unpack into the empty folder ``into`` -> what was left out, with the reason, names escaped.

    Of members whose names are the same, also where upper and lower case are (or their Unicode forms), the first counts.

    Raises:
        ArchiveError: not an archive, encrypted, damaged, a link, or more than the limits allow.
    """
    try:
        fd = os.open(archive, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ArchiveError(f"the archive cannot be opened ({error.strerror})") from None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ArchiveError("the archive is not a plain file")
        if info.st_size > limits.archive:
            raise ArchiveError(f"the archive is larger than {limits.archive >> 20} MiB; leave out data and outputs")
        try:
            return _Unpacking(into, limits).run(_members(file, limits))
        except ArchiveError:
            raise
        except _BROKEN as error:  # RecursionError among them: a header that announces a header that announces one
            raise ArchiveError(f"the archive is damaged ({printable(str(error))[:120]}); pack it again") from None


class _Unpacking:
    def __init__(self, into: Path, limits: Limits) -> None:
        self.into, self.limits = into, limits
        self.left_out: list[str] = []
        self.taken: set[str] = set()
        self.bytes = self.passed = 0
        self.until = time.process_time() + limits.seconds

    def run(self, members: Iterator[_Member]) -> list[str]:
        for count, member in enumerate(members, start=1):
            if count > self.limits.members:
                raise ArchiveError(f"the archive holds more than {self.limits.members:,} entries; hand in the files asked for")
            self.in_time()
            self.passed += member.size
            if member.size < 0 or self.passed > self.limits.passed:
                raise ArchiveError(f"the archive holds more than {self.limits.passed >> 30} GiB; hand in the files asked for")
            parts = member.name.replace("\\", "/").split("/")
            parts = [p for p in parts if p not in ("", ".")]
            if parts and any(map(is_junk, parts)):
                continue
            if why := self.refused(member, parts):
                self.left_out.append(f"{printable(member.name)[:200]} ({why})")
            elif member.kind == "file":
                self.write(member, parts)
        return self.left_out

    def refused(self, member: _Member, parts: list[str]) -> str:
        """Why a member is left out; "" for one that is not."""
        if member.name.startswith(("/", "\\")) or ":" in member.name.split("/")[0]:
            return "an absolute name"
        if ".." in parts:
            return "a name that leads out"
        if member.kind not in ("file", "folder"):
            return member.kind
        if member.kind == "file" and not parts:
            return "no name"
        if any(ord(c) < 32 for c in member.name) or any(len(os.fsencode(_storable(p))) > 255 for p in parts):
            return "not a name"
        if len(parts) > MAX_DEPTH + 1:
            return "too deep"
        if member.kind == "file" and self.key(parts) in self.taken:
            return "a name that was there before"
        return ""

    @staticmethod
    def key(parts: list[str]) -> str:
        """Equal for names that some file system takes for one."""
        return unicodedata.normalize("NFKC", "/".join(parts)).casefold()

    def write(self, member: _Member, parts: list[str]) -> None:
        self.bytes += member.size
        if self.bytes > self.limits.bytes:
            raise ArchiveError(f"the archive holds more than {self.limits.bytes >> 20} MiB; leave out data and outputs")
        self.taken.add(self.key(parts))
        target = self.into.joinpath(*map(_storable, parts))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except (FileExistsError, NotADirectoryError):  # a file where another member needs a folder
            self.left_out.append(f"{printable(member.name)[:200]} (a name that was there before)")
            return
        with os.fdopen(out, "wb") as file, member.open() as source:
            left = member.size  # what the directory of the archive says is what is taken: a lie costs the liar
            while left > 0 and (data := source.read(min(_CHUNK, left))):
                self.in_time()
                file.write(data)
                left -= len(data)
        if left:
            raise ArchiveError("the archive is damaged (a file ends too early); pack it again")

    def in_time(self) -> None:
        if time.process_time() > self.until:
            raise ArchiveError("the archive takes too long to read; pack it again, as a .zip")


def _storable(part: str) -> str:
    """A part of a name as any file system can hold it."""
    return part.encode("utf-8", "backslashreplace").decode("utf-8")


def _members(file: IO[bytes], limits: Limits) -> Iterator[_Member]:
    start = file.read(4)
    file.seek(0)
    if start[:2] == b"PK":
        return _of_zip(file, limits)
    return _of_tar(_Metered(gzip.GzipFile(fileobj=file) if start[:2] == b"\x1f\x8b" else file))


def _of_zip(file: IO[bytes], limits: Limits) -> Iterator[_Member]:
    if _directory_bytes(file) > limits.directory:
        raise ArchiveError(f"the archive holds more than {limits.members:,} entries; hand in the files asked for")
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16 if info.create_system == 3 else 0
            kind = "folder" if info.is_dir() else "file"
            if info.flag_bits & 1:
                kind = "encrypted"
            elif stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "not a plain file"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                kind = "a compression that is not taken"
            # The library cuts a name at a NUL; the name as it is in the archive decides.
            yield _Member(info.orig_filename, info.file_size, kind, lambda info=info: archive.open(info))


def _directory_bytes(file: IO[bytes]) -> int:
    """Bytes of the directory at the end of a .zip, which the library reads whole before it says how much there is."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22 - 0xFFFF - 20))
    end = file.read()
    # Where the library looks for it: at the very end if there is no comment, else the last one.
    at = len(end) - 22 if end[-22:-18] == b"PK\5\6" and end[-2:] == b"\0\0" else end.rfind(b"PK\5\6")
    if at < 0 or len(end) < at + 22:
        raise ArchiveError("the archive is damaged (no directory at its end); pack it again")
    if end[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise ArchiveError("the archive is of the kind for more than 4 GiB; pack it again")
    file.seek(0)
    return int.from_bytes(end[at + 12 : at + 16], "little")


def _of_tar(file: _Metered) -> Iterator[_Member]:
    try:
        opened = tarfile.TarFile(fileobj=file)
    except tarfile.ReadError:
        raise ArchiveError("it is no archive (.zip or .tar.gz)") from None
    with opened as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # the library keeps all it has seen
            kind = "file" if info.isreg() else "folder" if info.isdir() else "not a plain file"
            if info.issym() or info.islnk():
                kind = "a link"
            elif info.issparse():
                kind = "a sparse file"
            yield _Member(info.name, info.size, kind, lambda info=info: archive.extractfile(info))


class _Metered:
    """What the .tar library reads from. It takes the length of a header from the archive, and all of it at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("a header that is too long")
        return self._file.read(size)

    def seek(self, *to: int) -> int:
        return self._file.seek(*to)

    def tell(self) -> int:
        return self._file.tell()
