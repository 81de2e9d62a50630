"""Names of bulk downloads, made as Canvas and Moodle make them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkata.grading.bulk import BulkName, bulk_name


def canvas(sortable: str, user: int, attachment: int, display: str, *, late: bool = False, anonymous: str = "") -> str:
    """The name of an upload, as ``get_filename`` and ``add_upload_submission`` of Canvas's content_zipper.rb make it."""
    person = re.sub(r"_(\d+)_", r"\1", sortable).lower()
    parts = [None if anonymous else person, "LATE" if late else None, f"anon_{anonymous}" if anonymous else str(user)]
    name = re.sub(r"\W", "", "_".join(part for part in parts if part is not None))
    return f"{name}_{attachment}_" + re.sub(r'[\x00/\\:*?"<>|]+', "_", display)


def moodle(full: str, user: int, file: str = "", *, folder: bool) -> str:
    """The name of a folder or file, as ``get_student_prefix`` of Moodle's downloader.php makes it."""
    prefix = f"{full.replace('_', ' ')}_{user}_assignsubmission_file"
    return prefix if folder else f"{prefix}_{file}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (canvas("Berg, Anna", 34, 56, "self_attention.py"), BulkName("Canvas", "berganna", "34", "self_attention.py")),
        (
            canvas("Berg, Anna", 34, 56, "self_attention-2.py", late=True),
            BulkName("Canvas", "berganna", "34", "self_attention.py", late=True, attempt=3),
        ),
        (
            canvas("", 34, 56, "work-1.tar.gz", anonymous="aB3dE"),
            BulkName("Canvas", "", "anon_aB3dE", "work.tar.gz", attempt=2),
        ),
        (
            canvas("", 34, 56, "a.ipynb", anonymous="aB3dE", late=True),
            BulkName("Canvas", "", "anon_aB3dE", "a.ipynb", late=True),
        ),
        ("berganna_LATE_34_text.html", BulkName("Canvas", "berganna", "34", "text.html", late=True, typed=True)),
        ("berganna_34_link.html", BulkName("Canvas", "berganna", "34", "link.html", typed=True)),
        (
            canvas("smith_1", 340, 208, "work.zip"),
            BulkName("Canvas", "smith", "1", "208_work.zip", doubtful=True),
        ),
        ("self_attention.py", None),
        ("a_1_b.py", None),
        ("notes.txt", None),
    ],
)
def test_canvas(name: str, expected: BulkName | None) -> None:
    assert bulk_name(name, folder=False) == expected
    assert bulk_name(name, folder=True) is None


@pytest.mark.parametrize("tail", ["", "_"])
def test_moodle_folders(tail: str) -> None:
    name = moodle("Anna Berg", 12, folder=True) + tail
    assert bulk_name(name, folder=True) == BulkName("Moodle", "Anna Berg", "12", "")
    assert bulk_name("Anna Berg_12_assignsubmission_onlinetext" + tail, folder=True).typed


def test_moodle_loose_files() -> None:
    name = moodle("Anna Berg", 12, "self_attention.py", folder=False)
    assert bulk_name(name, folder=False) == BulkName("Moodle", "Anna Berg", "12", "self_attention.py")
    assert bulk_name(name, folder=True) is None
    assert bulk_name(moodle("Anna Berg", 12, folder=True), folder=False) is None


NAMES = st.text(st.characters(categories=("L", "N", "Zs"), include_characters="_'-,."), min_size=1, max_size=20).filter(
    lambda name: re.sub(r"[\W_]", "", name)
)


@given(NAMES, st.integers(1, 10**9), st.integers(1, 10**9), st.booleans())
def test_canvas_names_of_files_come_back_or_are_in_doubt(sortable, user, attachment, late):
    """Whatever a person is called, the work is theirs, or nobody's."""
    for display in ("self_attention.py", "work.zip"):
        found = bulk_name(canvas(sortable, user, attachment, display, late=late), folder=False)
        if found is None or found.doubtful or found.file != display:
            continue  # not read at all: a file of another name is no exercise's
        assert found.user == str(user)
        assert found.late or not late


@given(NAMES, st.integers(1, 10**9), st.text("abc_0123456789", max_size=12))
def test_moodle_names_come_back(full, user, file):
    found = bulk_name(moodle(full, user, file + ".py", folder=False), folder=False)
    assert (found.user, found.file) == (str(user), file + ".py")
    assert bulk_name(moodle(full, user, folder=True), folder=True).user == str(user)
