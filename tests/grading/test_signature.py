"""Signed results: what was written with the key is told from what was edited since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkata.grading.signature import KeyFault, key_of, sign_files, signatures_for, verify_file

KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    (folder / "learners").mkdir(parents=True)
    (folder / "records.jsonl").write_text("{}\n")
    (folder / "learners/ann.json").write_text('{"points": 3}')
    files = [folder / "records.jsonl", folder / "learners/ann.json"]
    sign_files(folder, files, KEY, {"GITHUB_SHA": "c0ffee", "HOME": "/secret"})
    return folder


def finding(run: Path, name: str = "learners/ann.json", key: bytes = KEY):
    return verify_file(run / name, signatures_for(run / name), key)


def test_what_was_signed_is_good_and_says_where(run: Path) -> None:
    told = finding(run)
    assert told.good
    assert told.context == {"GITHUB_SHA": "c0ffee"}
    assert finding(run, "records.jsonl").good


def test_a_renamed_file_stays_good(run: Path) -> None:
    (run / "learners/ann.json").rename(run / "copy.json")
    assert finding(run, "copy.json").good


def test_an_edited_file_is_not(run: Path) -> None:
    (run / "learners/ann.json").write_text('{"points": 9}')
    told = finding(run)
    assert (told.good, "changed" in told.said) == (False, True)


def test_another_key_is_not(run: Path) -> None:
    assert "another key" in finding(run, key=KEY[::-1]).said


@pytest.mark.parametrize("field", ["sha256", "signed_at", "file", "context"])
def test_an_edited_line_is_not(run: Path, field: str) -> None:
    path = run / "learners/ann.json"
    path.write_text('{"points": 9}')
    import hashlib

    forged = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    lines = [json.loads(text) for text in (run / "signatures.jsonl").read_text().splitlines()]
    mine = next(line for line in lines if line["file"] == "learners/ann.json")
    mine.update(forged | ({} if field == "sha256" else {field: {} if field == "context" else "2020-01-01"}))
    (run / "signatures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "edited" in finding(run).said


def test_a_line_without_a_signature_or_of_no_sense_is_not(run: Path) -> None:
    line = json.loads((run / "signatures.jsonl").read_text().splitlines()[0])
    del line["signature"]
    (run / "signatures.jsonl").write_text(f"[1]\nnot json\n{json.dumps(line)}\n")
    assert not finding(run, line["file"]).good


def test_a_file_never_signed_is_not(run: Path) -> None:
    (run / "new.csv").write_text("a")
    assert "no signature" in finding(run, "new.csv").said


def test_one_line_is_good_by_itself(run: Path) -> None:
    line = next(t for t in (run / "signatures.jsonl").read_text().splitlines() if "ann" in t)
    (run / "signatures.jsonl").write_text(line + "\n")
    assert finding(run).good


def test_keys(tmp_path: Path) -> None:
    assert key_of({}) is None
    assert key_of({"KATA_SIGNING_KEY": KEY.decode()}) == KEY
    file = tmp_path / "key"
    file.write_text(KEY.decode() + "\n")
    assert key_of({"KATA_SIGNING_KEY_FILE": str(file)}) == KEY
    with pytest.raises(KeyFault, match="at least 32"):
        key_of({"KATA_SIGNING_KEY": "short"})
    with pytest.raises(KeyFault, match="KATA_SIGNING_KEY_FILE"):
        key_of({"KATA_SIGNING_KEY_FILE": str(tmp_path / "none")})
    file.write_text("")
    with pytest.raises(KeyFault):
        key_of({"KATA_SIGNING_KEY_FILE": str(file)})
