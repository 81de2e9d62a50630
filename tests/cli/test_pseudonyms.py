"""``--pseudonyms`` and ``kata whois``: the same grades without names, and back for who has the key."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from llmkata.gradebook.changes import Action, Change, ChangeLog
from llmkata.grading.groups import FOR_GROUP
from llmkata.records import Evidence, RecordFile, State, read_records
from llmkata.records.pairs import Pair, Side, write_pairs

ROSTER = """\
id,name,email,section,group,extension days,canvas id,also
zz-101,Ada Quill,ada.quill@example.org,A,,3,900101,ada-git
aa-102,Bo Vexx,bo.vexx@example.org,B,Team Vexx,,900102,
mm-103,Cyd Wump,cyd.wump@example.org,A,Team Vexx,,900103,Participant 77001
"""
NAMES = ("101", "102", "103", "quill", "vexx", "wump", "example.org", "ada-git", "9001", "77001", "in hospital")


@pytest.fixture
def run(toy, make_record):
    """A run whose every free text names somebody."""
    folder = toy / "report"
    file = RecordFile(folder / "records.jsonl")
    for learner, outcome in {"zz-101": "pass", "aa-102": "fail", "mm-103": "fail"}.items():
        other = "Wump_Cyd" if learner != "zz-101" else "Ada, Quill"
        unit = [f"{FOR_GROUP}aa-102, mm-103"] if learner != "zz-101" else []
        record = make_record(
            "module0/sums", f"{outcome} 1", "fail 2 stretch", learner=learner, submission_sha=learner[0] * 64, notes=[
                *unit, f"taken from {other}/sums.py"], files=[f"{other}/module0/sums.py"], ignored=[f"{other}.txt"],
        )  # fmt: skip
        record.checks[1].evidence = Evidence(
            "says Cyd Wump, wump_cyd and Bo Vexx" if unit else "says Quill, Ada", frames=["sums.py:1 in add: # by aa-102"] if unit else []
        )
        record.checks[1].staff_output = f"{other}@example.org"
        record.checks[1].cause = "wrong"
        file.append(record)
    file.append(make_record("module0/products", learner="zz-101", state=State.missing, cause="Nothing of this learner."))
    (folder / "roster.csv").write_text(ROSTER)
    write_pairs(folder / "similarity.json", [
        Pair("module0/sums", Side("zz-101", 1.0, [(1, 2)], "z" * 64), Side("aa-102", 0.9, [(1, 2)], "a" * 64)),
    ])
    (folder / "sources").mkdir()
    (folder / "sources" / f"{'z' * 64}.py").write_text("# by Ada Quill\n")
    log = ChangeLog(folder / "changes.jsonl")
    for action, text in ((Action.adjust, "was in hospital"), (Action.comment, "Quill was in hospital")):
        log.append(Change(0, "2026-01-01T00:00:00+00:00", "staff", action, "module0/sums", learner="zz-101", points=-1, of=8, text=text))
    return folder


def naming(folder: Path) -> dict[str, list[str]]:
    """Names within the files of a folder, hexadecimal and base64 digests left aside."""
    found: dict[str, list[str]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        text = f"{path.relative_to(folder)}\n{path.read_bytes().decode('utf-8', 'replace')}".casefold()
        text = re.sub(r"[0-9a-f]{64}|sha256-[a-z0-9+/=]{44}|p-[a-z2-7]{10}", "", text)
        names = [name for name in NAMES if re.search(rf"(?<![0-9.]){name}(?![0-9.])" if name.isdigit() else name, text)]
        if names:
            found[path.relative_to(folder).as_posix()] = names
    return found


def grades(path: Path) -> dict[str, list[str]]:
    rows = list(csv.DictReader(path.open()))
    # The reason stays behind.
    kept = [name for name in rows[0] if name not in ("learner", "name")]
    return {row["learner"]: ["" if row[name] == "was in hospital" else row[name] for name in kept] for row in rows}


def test_the_same_grades_without_a_name(kata, toy, run) -> None:
    assert "pseudonymous" not in kata("report", "report").out and not (run / "pseudonymous").exists()
    assert {"records.jsonl", "index.html", "learners/zz-101.html", "changes.jsonl"} <= set(naming(run)), "names are found"
    done = kata("report", "report", "--pseudonyms")
    assert done.status == 0, done.err
    assert "pseudonyms: report/pseudonymous/index.html, for third parties" in done.out
    assert ".kata/pseudonyms.key: keep it secret" in done.out
    target = run / "pseudonymous"
    assert {p.name for p in target.iterdir()} >= {"records.jsonl", "gradebook.db", "index.html", "grades.csv", "roster.csv", "similarity.json", "changes.jsonl", "learners"}
    assert naming(target) == {}
    ours, theirs = grades(run / "grades.csv"), grades(target / "grades.csv")
    assert sorted(ours.values()) == sorted(theirs.values()) and len({tuple(row) for row in ours.values()}) > 1
    assert set(theirs) == {p.stem for p in (target / "learners").glob("*.html")}
    assert "Similar submissions" in (target / "index.html").read_text()
    listed = [r.learner for r in read_records([target / "records.jsonl"]).records]
    assert listed == sorted(listed), "the order tells nothing"
    # Exports of it name nobody, either.
    for format in ("csv", "json", "canvas", "junit", "feedback"):
        assert kata("export", format, "report/pseudonymous").status == 0
    assert naming(target) == {}
    # From now on it follows, and pseudonyms stay.
    done = kata("report", "report")
    assert "report/pseudonymous/index.html" in done.out and "keep it secret" not in done.out
    assert grades(target / "grades.csv") == theirs


def test_whois_says_whose_it_is_to_who_has_the_key(kata, toy, run) -> None:
    assert "nobody has a pseudonym yet" in kata("whois", "p-x", "--in", "report").err
    kata("report", "report", "--pseudonyms")
    by_name = {line.split()[1]: line.split()[0] for line in kata("whois", "zz-101", "aa-102", "--in", "report").out.splitlines()}
    assert set(by_name) == {"zz-101", "aa-102"} and len(set(by_name.values())) == 2
    done = kata("whois", by_name["zz-101"].upper(), "--in", "report")
    assert done.status == 0 and done.out.startswith(f"{by_name['zz-101']}  zz-101 (") and "Ada Quill" in done.out
    done = kata("whois", "p-aaaaaaaaaa", by_name["aa-102"], "--in", "report")
    assert done.status == 1 and "p-aaaaaaaaaa is nobody's" in done.err and "Bo Vexx" in done.out
    (toy / ".kata" / "pseudonyms.key").write_text("another")
    assert kata("whois", by_name["zz-101"], "--in", "report").status == 1


def test_who_is_forgotten_has_no_pseudonym_either(kata, toy, run) -> None:
    kata("report", "report", "--pseudonyms")
    name = kata("whois", "zz-101", "--in", "report").out.split()[0]
    assert (run / "pseudonymous" / "learners" / f"{name}.html").is_file()
    done = kata("forget", "zz-101", "--in", "report", "--yes")
    assert done.status == 0, done.err
    left = "".join(p.read_bytes().decode("utf-8", "replace") for p in run.rglob("*") if p.is_file())
    assert name not in left and not (run / "pseudonymous" / "learners" / f"{name}.html").exists()
    assert len(list((run / "pseudonymous" / "learners").glob("*.html"))) == 2
    assert kata("whois", name, "--in", "report").status == 1
