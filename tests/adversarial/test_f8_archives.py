"""F8: an archive that writes beside its folder, by .. or through a link."""

import io
import tarfile

import pytest

from llmkata.grading.intake import read_submissions

from ..toy.harness import COURSE, SOLUTION


@pytest.fixture
def archive(tmp_path):
    """A class of one archive: a link out of the folder and a file through it, a name with .., and the answer."""
    (tmp_path / "class").mkdir()
    (tmp_path / "target").mkdir()
    with tarfile.open(tmp_path / "class" / "eve.tar.gz", "w:gz") as file:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "target")
        file.addfile(link)
        for name, data in (("out/planted", b"x"), ("../planted", b"x"), ("toy.py", SOLUTION.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return tmp_path / "class" / "eve.tar.gz"


def planted(folder):
    return [p for p in folder.rglob("planted") if "into" not in p.parts]


def test_nothing_is_written_outside_and_the_answer_is_taken(archive, tmp_path):
    (found,) = read_submissions(tmp_path / "class", COURSE)
    assert found.learner == "eve" and found.source == SOLUTION.encode()
    assert len(found.ignored) >= 2 and not planted(tmp_path)


def test_the_library_alone_writes_outside(archive, tmp_path):
    (tmp_path / "into").mkdir()
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "into", **({"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}))
    assert len(planted(tmp_path)) == 2
