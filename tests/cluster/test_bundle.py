"""The course as one block of bytes: what is in it, and that it comes out as it went in."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib

import msgspec
import pytest

from llmkata.cluster.bundle import Bundle, BundleError, cached, pack, unpack
from llmkata.course import load_course
from llmkata.grading import provenance

from ..grading.two import RIGHT, write_course


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_course(tmp_path / "course")
    for name in ("requirements.lock", "components/words/list.txt", "graders/module1/double/__pycache__/x.pyc", "notes.txt"):
        (tmp_path / "course" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "course" / name).write_text(name)
    return load_course(tmp_path / "course")


def keys(root):
    course = load_course(root)
    provenance._grader_hashes.clear()
    return [provenance.result_key(course, e, RIGHT[e.slug].encode(), 7, "sandbox") for e in course.exercises]


def test_the_keys_of_results_are_the_same_where_it_is_unpacked(course):
    made = pack(course)
    root = unpack(made.digest, made.data)
    assert root != course.root and keys(root) == keys(course.root)
    held = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert {"components/words/list.txt", "solutions/module1/double.py", "requirements.lock"} < held
    assert not held & {"notes.txt", "graders/module1/double/__pycache__/x.pyc"}
    # The control: a check that changed changes bundle and key.
    (course.exercise("double").graders_dir / "test_correctness.py").write_text("# other\n")
    assert pack(course).digest != made.digest and keys(root) != keys(course.root)


def test_the_same_course_is_the_same_bundle(course):
    made = pack(course)
    os.utime(course.root / "course.yaml", (1, 1))
    assert pack(course) == made and len(made.digest) == 64


def test_unpacked_once(course):
    made = pack(course)
    assert cached(made.digest) is None
    root = unpack(made.digest, made.data)
    assert cached(made.digest) == root
    assert unpack(made.digest, b"") == root  # not read again


def test_learners_may_read_components_alone(course):
    made = pack(course)
    root = unpack(made.digest, made.data)
    others = {p.relative_to(root).as_posix(): p.stat().st_mode & 0o7 for p in root.rglob("*")}
    assert others["components"] == others["components/words"] == 0o5 and others["components/words/list.txt"] == 0o4
    assert not any(mode for name, mode in others.items() if not name.startswith("components"))
    assert root.stat().st_mode & 0o777 == root.parent.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize("harm", [lambda m: m.data[:-9], lambda m: zlib.compress(b"\x80"), lambda m: b""])
def test_damaged_bytes_are_refused(course, harm):
    made = pack(course)
    with pytest.raises(BundleError, match="damaged|another hash"):
        unpack(made.digest, harm(made))
    assert cached(made.digest) is None


@pytest.mark.parametrize("name", ["/etc/x", "../x", "graders/../../x"])
def test_no_file_leads_out(course, name):
    raw = msgspec.msgpack.encode({name: b"x"})
    bad = Bundle(hashlib.sha256(raw).hexdigest(), zlib.compress(raw))
    with pytest.raises(BundleError, match="leads out"):
        unpack(bad.digest, bad.data)
    assert cached(bad.digest) is None


def test_a_place_that_others_may_write_to_is_not_used(course):
    made = pack(course)
    store = unpack(made.digest, made.data).parent
    store.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write"):
        cached(made.digest)
    store.rename(store.with_name("elsewhere"))
    store.symlink_to(store.with_name("elsewhere"))
    with pytest.raises(PermissionError):
        unpack(made.digest, made.data)
