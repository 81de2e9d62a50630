"""What holds for all formats: no more is told than the policy allows, and hostile texts stay texts."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import zipfile
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import pytest

from llmkata.exports.formats import FORMATS

from ..reports.factory import ATTACK, HOSTILE_NAMES, hostile, in_progress
from .exporting import ALONE, exported, listed, view

WORKSHEET = "Identifier,Full name,Email address,Grade,Maximum Grade,Last modified (grade),Feedback comments\n"
COMMITS = "learner,classroom,assignment,submission,commit,release\n"


def everything(name: str, of, tmp_path) -> bytes:
    """All that a format says of ann, unpacked."""
    people = None
    if name in ("moodle", "moodle-feedback"):
        people = listed(tmp_path, WORKSHEET + "Participant 7,Ann,ann@x.edu,,100,,\n")
    if name == "classroom50":
        people = listed(tmp_path, COMMITS + "ann,c,a,submit/1-f,https://c,https://r\n")
    files = exported(name, of, people)
    assert files
    data = b"\n".join(files.values())
    if name == "nbgrader":
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(data)
            data = "\n".join(database.iterdump()).encode()
    if name == "moodle-feedback":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = b"\n".join(archive.read(entry) for entry in archive.namelist())
    return data + b"\n" + json.dumps(data.decode("utf-8", "replace")).encode()


#: Of the record of ``in_progress``: what a policy of each level must not let through.
PRIVATE = ("debug: q.shape", "20260304")
BY_LEVEL = {
    "outcome": ("up to 0.31", "instead of `sqrt(d)`", "0.2034", "variance of a dot product"),
    "hint": ("up to 0.31", "instead of `sqrt(d)`", "0.2034"),
    "diagnosis": ("0.2034",),
    "counterexample": (),
}


@pytest.mark.parametrize("level", BY_LEVEL)
@pytest.mark.parametrize("name", FORMATS)
def test_no_more_is_told_than_the_policy_allows(name, level, tmp_path):
    text = everything(name, view([in_progress("ann")], level), tmp_path).decode("utf-8", "replace")
    for secret in (*PRIVATE, *BY_LEVEL[level]):
        assert secret not in text, secret


TELLING = [name for name in FORMATS if name not in ("csv", "canvas", "moodle", "classroom50")]


@pytest.mark.parametrize("name", TELLING)
def test_what_the_policy_allows_is_told(name, tmp_path):
    text = everything(name, view([in_progress("ann")], "diagnosis"), tmp_path).decode("utf-8", "replace")
    assert "sqrt(d)" in text


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_texts_stay_texts(name, tmp_path):
    data = everything(name, view([hostile("ann")]), tmp_path)
    assert b"\x1b" not in data.replace(b"\\u001b", b"\x1b")
    for file, content in exported(name, view([hostile("ann")])).items() if name in ALONE else ():
        assert not PurePosixPath(file).is_absolute() and ".." not in PurePosixPath(file).parts
        if file.endswith(".xml"):
            assert "alert('x')" in "".join(ET.fromstring(content).itertext())
        if file.endswith(".json"):
            json.loads(content)
        if file.endswith(".html"):
            assert b"<script>alert" not in content


@pytest.mark.parametrize("name", ALONE)
def test_hostile_names_name_no_path_and_no_formula(name):
    of = view([in_progress(who) for who in HOSTILE_NAMES])
    assert len(of.cards) == len(HOSTILE_NAMES)
    for file, content in exported(name, of).items():
        path = PurePosixPath(file)
        assert not path.is_absolute() and not {"..", "."}.intersection(path.parts)
        assert all(part.isascii() and part.isprintable() and len(part) < 90 for part in path.parts)
        if file.endswith(".csv"):
            cells = [cell for row in csv.reader(io.StringIO(content.decode())) for cell in row]
            assert not [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell]
            assert "'=cmd()" in cells
    if not FORMATS[name].file:
        assert len({PurePosixPath(file).parts[0] for file in exported(name, of)}) == len(HOSTILE_NAMES)


def test_the_worksheet_of_another_is_defused_too(tmp_path):
    people = listed(tmp_path, WORKSHEET + 'Participant 7,"=cmd()",ann,,100,-,\n')
    [content] = exported("moodle", view([in_progress("ann")]), people).values()
    [row] = csv.DictReader(io.StringIO(content.decode()))
    assert row["Full name"] == "'=cmd()"
    assert row["Last modified (grade)"] == "-", "Moodle's word for never stays as it is"


def test_the_attack_is_one():
    assert "<script>" in ATTACK and "\x1b" in ATTACK
