"""``kata forget``: nothing of a run names the learner any more, and everybody else is as before."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from llmkata.gradebook.changes import Action, Change, ChangeLog
from llmkata.grading.groups import FOR_GROUP
from llmkata.records import CheckRecord, Evidence, Outcome, RecordFile, State, read_records
from llmkata.records.pairs import Pair, Side, write_pairs

ROSTER = """\
id,name,email,section,group,also
u101,Ada Berg,ada.berg@example.org,A,,adab7x
"u102","Bo
Ek",bo@example.org,B,Team,
u103,Cy Dahl,cy@example.org,A,Team,cdahl;Participant 7
"""
#: Whatever names one of them, in any spelling.
ADA = ("u101", "ada berg", "ada.berg@example.org", "adab7x", "ada_berg")
CY = ("u103", "cy dahl", "cy@example.org", "cdahl", "participant 7", "cy's secret")


@pytest.fixture
def run(toy, make_record):
    """A run with a roster, a group, changes by hand, pairs, kept sources, exports and submissions."""
    folder = toy / "report"
    file = RecordFile(folder / "records.jsonl")
    given = {"u101": ("a" * 64, []), "u102": ("b" * 64, [f"{FOR_GROUP}u102, u103"]), "u103": ("b" * 64, [f"{FOR_GROUP}u102, u103"])}
    for learner, (sha, notes) in given.items():
        record = make_record("module0/sums", "pass 1", "fail 2 stretch", learner=learner, submission_sha=sha, notes=notes)
        if notes:
            record.checks[1] = CheckRecord(
                "test_correctness.py::test_1", "T", 2, "stretch", 4, 0, Outcome.failed, cause="wrong",
                evidence=Evidence("printed by Cy Dahl", frames=["sums.py:1 in add: # by cdahl"]), staff_output="CY@example.org",
            )  # fmt: skip
        file.append(record)
    file.append(make_record("module0/products", learner="u101", state=State.missing, cause="No products.py"))
    (folder / "roster.csv").write_text(ROSTER)
    (folder / "sources").mkdir()
    (folder / "sources" / f"{'a' * 64}.py").write_text("# by Ada Berg\n")
    (folder / "sources" / f"{'b' * 64}.py").write_text("# the team's\n")
    write_pairs(folder / "similarity.json", [
        Pair("module0/sums", Side("u101", 1.0, [(1, 2)], "a" * 64), Side("u102", 0.9, [(1, 2)], "b" * 64)),
        Pair("module0/sums", Side("u102", 1.0, [(1, 2)], "b" * 64), Side("u103", 0.9, [(1, 2)], "b" * 64)),
    ])
    ChangeLog(folder / "changes.jsonl").append(
        Change(0, "2026-01-01T00:00:00+00:00", "staff", Action.adjust, "module0/sums", learner="u101", points=1, of=8, text="x"),
        Change(0, "2026-01-01T00:00:00+00:00", "staff", Action.undo, "module0/sums", learner="u101", undoes=1),
        Change(0, "2026-01-01T00:00:00+00:00", "staff", Action.adjust, "module0/sums", learner="u102", points=1, of=8,
               text="as Ada  Berg had; see adab7x"),
    )  # fmt: skip
    (folder / "export").mkdir()
    (folder / "export" / "canvas.csv").write_text("u101,u103")
    for name in ("Ada Berg", "Team", "u102"):
        (toy / "class" / name).mkdir(parents=True)
        (toy / "class" / name / "sums.py").write_text(f"# by {name}\ndef add(x): ...\n")
    (toy / "class" / "ada.berg@example.org.zip").write_bytes(b"PK\5\6" + bytes(18))
    return folder


def naming(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Files below a folder with one of the names in their name or content, in whatever case."""
    found = []
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
        text = f"{path.relative_to(folder)}\n{data}".casefold()
        if any(name in text for name in names):
            found.append(path.relative_to(folder).as_posix())
    return found


def test_nothing_names_the_learner_and_the_others_are_as_before(kata, toy, run, monkeypatch) -> None:
    with monkeypatch.context() as signing:
        signing.setenv("KATA_SIGNING_KEY", "0" * 64)
        assert kata("report", "report").status == 0
    before = naming(run, ADA)
    assert {"records.jsonl", "roster.csv", "changes.jsonl", "similarity.json", "gradebook.db", "index.html", "grades.csv",
            f"sources/{'a' * 64}.py", "learners/u101.html", "signatures.jsonl", "export/canvas.csv"} <= set(before)  # fmt: skip
    others = [r for r in read_records([run / "records.jsonl"]).records if r.learner != "u101"]
    done = kata("forget", "Ada Berg", "--in", "report", "--submissions", "class", "--yes")
    assert done.status == 0, done.err
    assert naming(run, ADA) == naming(toy / "class", ADA) == []
    assert read_records([run / "records.jsonl"]).records == others, "records of others are what they were"
    assert (run / "roster.csv").read_text() == ROSTER.replace("u101,Ada Berg,ada.berg@example.org,A,,adab7x\n", "")
    pairs = json.loads((run / "similarity.json").read_text())
    assert [(p["left"]["learner"], p["right"]["learner"]) for p in pairs] == [("u102", "u103")]
    assert sorted(p.name for p in (run / "sources").iterdir()) == [f"{'b' * 64}.py"]
    assert sorted(p.name for p in (toy / "class").iterdir()) == ["Team", "u102"]
    with sqlite3.connect(run / "gradebook.db") as book:
        assert {row[0] for row in book.execute("select learner from record")} == {"u102", "u103"}
    assert "u102" in (run / "grades.csv").read_text() and (run / "learners" / "u102.html").is_file()
    left, forgotten = ChangeLog(run / "changes.jsonl").read()
    assert (left.number, left.learner, left.text) == (3, "u102", "as (forgotten) had; see (forgotten)")
    assert (forgotten.action, forgotten.number, forgotten.learner) == (Action.forget, 4, "")
    assert "learners/u102.html" in (run / "signatures.jsonl").read_text()
    told = kata("log", "--in", "report")
    assert "a learner was removed (2 records of 2 exercises)" in told.out and told.status == 0
    assert kata("undo", "4", "--in", "report").status == 2


def test_it_says_what_goes_and_does_nothing_without_a_yes(kata, toy, run, monkeypatch) -> None:
    kata("report", "report")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text, default: False)
    done = kata("forget", "u101", "--in", "report", "--submissions", "class")
    assert done.status == 2 and "nothing was removed" in done.err
    assert {path: path.read_bytes() for path in before} == before and (toy / "class" / "Ada Berg").is_dir()
    for said in ("report holds of u101 (ada.berg@example.org, Ada Berg, adab7x):", "2 records of 2 exercises", "line 2",
                 "3 changes", "1 pair\n", "1 submission that nobody else handed in", "u101.html, u101.json, u101.md",
                 "export/          goes as a whole", "class/Ada Berg/", "class/ada.berg@example.org.zip", "Not reached"):  # fmt: skip
        assert said in done.out, said
    monkeypatch.setattr("typer.confirm", lambda text, default: True)
    assert kata("forget", "u101", "--in", "report").status == 0
    assert not naming(run, ADA) and (toy / "class" / "Ada Berg").is_dir(), "the class was not named, so it stays"


def test_a_member_of_a_group_leaves_the_work_and_takes_the_name_along(kata, toy, run) -> None:
    kata("report", "report")
    assert naming(run, CY)
    done = kata("forget", "u103", "--in", "report", "--submissions", "class", "--yes")
    assert done.status == 0 and "1 record of others loses the name" in done.out
    assert naming(run, CY) == []
    assert (toy / "class" / "Team").is_dir(), "the work is the other's, too"
    by_pair = {(r.learner, r.exercise): r for r in read_records([run / "records.jsonl"]).records}
    record = by_pair["u102", "module0/sums"]
    assert record.notes == [f"{FOR_GROUP}u102, (forgotten)"]
    evidence = record.checks[1].evidence
    assert (evidence.summary, evidence.frames) == ("printed by (forgotten)", ["sums.py:1 in add: # by (forgotten)"])
    assert record.checks[1].staff_output == "(forgotten)" and record.points == 4
    assert sorted(p.name for p in (run / "sources").iterdir()) == [f"{'a' * 64}.py", f"{'b' * 64}.py"]


def test_what_cannot_be_taken_out_is_told(kata, run) -> None:
    (run / "minutes.txt").write_text("Ada Berg called.")
    (run / "annotation.txt").write_text("adab7xx and u1011")
    done = kata("forget", "u101", "--in", "report", "--yes")
    assert done.status == 1
    assert done.err.rstrip().endswith("these may still name the learner; look at them:\n  report/minutes.txt")


def test_the_last_learner_leaves_no_pages(kata, toy, make_record) -> None:
    RecordFile(toy / "report" / "records.jsonl").append(make_record("module0/sums", "pass 1", learner="Zoë <b>"))
    kata("report", "report")
    assert kata("forget", "Zoë <b>", "--in", "report", "--yes").status == 0
    left = {p.name for p in (toy / "report").rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    assert left == {"records.jsonl", "changes.jsonl"} and (toy / "report" / "records.jsonl").read_bytes() == b""


def test_mistakes_name_the_next_step(kata, toy, run) -> None:
    done = kata("forget", "nobody", "--in", "report", "--yes")
    assert done.status == 2 and "'nobody' is nobody there" in done.err
    assert kata("forget", "u101", "--in", "elsewhere", "--yes").status == 2
    done = kata("forget", "u101", "--in", "report", "--submissions", "class.zip", "--yes")
    assert done.status == 2 and "is not a folder" in done.err
    torn = run / "records.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"learner": "u101", "exer')
    assert kata("forget", "u101", "--in", "report", "--yes").status == 0 and b"u101" not in torn.read_bytes()
    assert msgspec.json.decode((run / "changes.jsonl").read_bytes().splitlines()[-1])["action"] == "forget"


@pytest.mark.parametrize("pages", [True, False])
def test_a_gradebook_elsewhere_loses_the_learner_too(kata, run, tmp_path, monkeypatch, pages) -> None:
    place = tmp_path / "served.db"
    monkeypatch.setenv("KATA_GRADEBOOK", f"sqlite:///{place}")
    assert kata("report", str(run)).status == 0

    def learners() -> set[str]:
        with closing(sqlite3.connect(place)) as connection:
            return {name for (name,) in connection.execute("select learner from record")}

    assert "u101" in learners() and not (run / "gradebook.db").exists()
    if not pages:
        (run / "index.html").unlink()
        shutil.rmtree(run / "learners")
    assert kata("forget", "u101", "--in", str(run), "--yes").status == 0
    assert "u101" not in learners()
    assert kata("report", str(run)).status == 0
    assert learners() == {"u102", "u103"}
