"""Archives: what is unpacked, what is left out, what is refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from llmkata.course import load_course
from llmkata.grading import archive
from llmkata.grading.archive import ArchiveError, unpack
from llmkata.grading.intake import read_class, read_submissions
from llmkata.records import State

TOY = load_course(Path(__file__).parents[1] / "toy")


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "box" / "into"
    folder.mkdir(parents=True)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """All plain files below; anything else fails the test."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
        if stat.S_ISREG(mode):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", ["../out.py", "a/../../out.py", "/tmp/out.py", "..\\out.py", "C:\\out.py", "C:/out.py",
                                  "\\\\host\\out.py", "a/\n.py", "x" * 300 + ".py", "a\0.py", "/".join("abcdefghijklmnop")])
@pytest.mark.parametrize("make", ["zip", "tar"])
def test_names_that_lead_elsewhere_are_left_out(tmp_path, into, name, make):
    if make == "zip":
        plain = zipfile.ZipInfo("b.py")  # the constructor would mend the name
        plain.filename = plain.orig_filename = name
        path = zipped(tmp_path / "a.zip", ("ok.py", b"1"), (plain, b"2"))
    else:
        if "\0" in name:
            pytest.skip("a .tar ends names at a NUL")
        path = tarred(tmp_path / "a.tar.gz", (entry("ok.py"), b"1"), (entry(name), b"2"))
    left_out = unpack(path, into)
    assert files(into) == {"ok.py": b"1"} and files(into.parent) == {"into/ok.py": b"1"}
    assert len(left_out) == 1 and left_out[0].isprintable()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_a_tar_are_left_out(tmp_path, into, kind):
    """And a file that would be written through the link is a file of its own."""
    path = tarred(tmp_path / "a.tgz", (entry("toy", kind, "/etc"), b""), (entry("toy/toy.py"), b"1"))
    assert len(unpack(path, into)) == 1 and files(into) == {"toy/toy.py": b"1"}


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_of_a_zip_are_left_out(tmp_path, into, mode):
    path = zipped(tmp_path / "a.zip", (unix("toy.py", mode | 0o777), b"/etc/passwd"), ("ok.py", b"1"))
    assert len(unpack(path, into)) == 1 and files(into) == {"ok.py": b"1"}


def test_modes_and_owners_are_not_taken(tmp_path, into):
    info = entry("toy.py")
    info.mode, info.uid = 0o6777, 0
    unpack(tarred(tmp_path / "a.tgz", (info, b"1")), into)
    assert stat.S_IMODE((into / "toy.py").stat().st_mode) == 0o600


@pytest.mark.parametrize("names", [("toy.py", "toy.py"), ("toy.py", "TOY.py"), ("a/toy.py", "A/toy.py"), ("toy.py", "./toy.py"),
                                   ("caf\u00e9.py", "cafe\u0301.py"), ("toy.py", "toy.py/toy.py"), ("a//toy.py", "a\\toy.py")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_names_that_are_one_the_first_counts(tmp_path, into, names):
    for path in (zipped(tmp_path / "a.zip", *((n, str(i).encode()) for i, n in enumerate(names))),
                 tarred(tmp_path / "a.tgz", *((entry(n), str(i).encode()) for i, n in enumerate(names)))):
        box = into / path.suffix
        box.mkdir()
        left_out = unpack(path, box)
        assert list(files(box).values()) == [b"0"] and "there before" in left_out[0]


def test_bombs_are_refused_before_they_go_off(tmp_path, into):
    zeros = bytes(80 << 20)
    bombs = [zipped(tmp_path / "a.zip", ("zeros", zeros)), tarred(tmp_path / "a.tgz", (entry("zeros"), zeros)),
             zipped(tmp_path / "b.zip", *((f"z{i}", zeros[: 9 << 20]) for i in range(8)))]
    for bomb in bombs:
        assert bomb.stat().st_size < 1 << 20
        began = time.process_time()
        with pytest.raises(ArchiveError, match="more than 64 MiB"):
            unpack(bomb, into)
        assert time.process_time() - began < 2
        assert sum(map(len, files(into).values())) <= archive.LEARNER.bytes


def test_a_directory_that_lies_about_a_size_costs_the_liar(tmp_path, into):
    path = zipped(tmp_path / "a.zip", ("zeros", bytes(1 << 20)))
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 10)))
    try:
        unpack(path, into)
    except ArchiveError:
        pass
    assert sum(map(len, files(into).values())) <= 10


def test_what_is_passed_over_is_bounded_too(tmp_path, into):
    """A stream of zeros announced as junk would have to be read to its end to get past it."""
    info = entry("__MACOSX/zeros")
    info.size = 1 << 40
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(info.tobuf()))
    with pytest.raises(ArchiveError, match="more than 1 GiB"):
        unpack(path, into)


def test_a_header_that_asks_for_memory_gets_none(tmp_path, into):
    info = entry("pax", tarfile.XHDTYPE)
    info.size = 200 << 20
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(info.tobuf() + bytes(200 << 20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError):
            unpack(path, into)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_headers_of_headers_of_headers(tmp_path, into):
    info = entry("x", tarfile.GNUTYPE_LONGNAME)
    info.size = 2
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress((info.tobuf() + b"a\0" + bytes(510)) * 5000 + entry("toy.py").tobuf()))
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(path, into)


def test_ten_thousand_entries_are_unpacked_and_too_many_refused(tmp_path, into):
    path = zipped(tmp_path / "a.zip", *((f"d{i % 100}/f{i}.txt", b"") for i in range(9_999)), ("toy.py", b"1"))
    began = time.process_time()
    assert unpack(path, into) == [] and len(files(into)) == 10_000
    assert time.process_time() - began < 10
    with pytest.raises(ArchiveError, match="9,999 entries"):
        unpack(path, into, archive.Limits(members=9_999))


def test_a_directory_of_a_million_entries_is_not_read(tmp_path, into, monkeypatch):
    path = zipped(tmp_path / "a.zip", *((f"f{i}", b"") for i in range(100)))
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda self: pytest.fail("it was read"))
    with pytest.raises(ArchiveError, match="entries"):
        unpack(path, into, archive.Limits(directory=1000))


def test_a_forged_end_does_not_hide_the_directory(tmp_path, into):
    """The library takes the last end in the file; so do we."""
    path = zipped(tmp_path / "a.zip", ("toy.py", b"1"))
    end = path.read_bytes()
    path.write_bytes(end + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 0xFFFFFFF, 0, 0))
    with pytest.raises(ArchiveError):
        unpack(path, into)


@pytest.mark.parametrize(("data", "said"), [
    (b"", "no archive"), (b"hello", "no archive"), (b"PK\3\4" + bytes(99), "damaged"), (b"\x1f\x8b" + bytes(30), "damaged"),
    (gzip.compress(b"hello", mtime=0), "no archive"), (gzip.compress(entry("a").tobuf(), mtime=0)[:40], "damaged|no archive"),
], ids=["nothing", "text", "zip cut off", "gzip of zeros", "gzip of text", "gzip cut off"])
def test_what_is_no_archive_says_so(tmp_path, into, data, said):
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=said):
        unpack(path, into)


def test_encrypted_members_and_other_compressions_are_told(tmp_path, into):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.py", b"1", zipfile.ZIP_LZMA)
        file.writestr("toy.py", b"1")
    assert "compression" in unpack(path, into)[0]
    zipped(path, ("b.py", b"1"))
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in unpack(path, into)[0] and list(files(into)) == ["toy.py"]


def test_a_link_or_a_pipe_is_not_opened(tmp_path, into):
    (tmp_path / "real.zip").write_bytes(zipped(tmp_path / "r.zip", ("toy.py", b"1")).read_bytes())
    (tmp_path / "a.zip").symlink_to(tmp_path / "real.zip")
    os.mkfifo(tmp_path / "b.zip")
    for name in ("a.zip", "b.zip"):
        with pytest.raises(ArchiveError):
            unpack(tmp_path / name, into)


def test_archives_of_a_class(tmp_path):
    """One archive a learner; a bad one costs its own learner only, a folder comes before an archive of its name."""
    solution = TOY.exercise("toy").solution.read_bytes()
    zipped(tmp_path / "ann.zip", ("work/toy.py", solution), ("../evil.py", b""))
    tarred(tmp_path / "bob.tar.gz", (entry("toy.py"), solution))
    (tmp_path / "eve.zip").write_bytes(b"PK\3\4")
    (tmp_path / "kim").mkdir()
    (tmp_path / "kim" / "toy.py").write_bytes(solution)
    zipped(tmp_path / "kim.zip", ("toy.py", b"1 / 0"))
    found = {s.learner: s for s in read_submissions(tmp_path, TOY)}
    assert list(found) == ["ann", "bob", "eve", "kim"]
    assert {found[n].source for n in ("ann", "bob", "kim")} == {solution}
    assert found["ann"].file == "work/toy.py" and "leads out" in found["ann"].ignored[0]
    assert found["eve"].state is State.unreadable and "damaged" in found["eve"].cause
    assert read_class(tmp_path, TOY).strays == ["kim.zip"]
