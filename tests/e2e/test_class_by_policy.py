"""A class as it comes (a download of Canvas, a repository, a roster with a group), graded by a course's policy."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from llmkata.records import ExerciseRecord, read_records

from .conftest import KATA, environment

GRADING = """\
  grading:
    timezone: Europe/Oslo
    deadlines: {1: 2026-11-20 23:59}
    late: {per_day: 10, cap: 50, grace: 15}
limits:"""
ROSTER = """\
id,name,section,group,extension days,canvas id
anna,Anna Berg,A,,,340
bo,Bo Ek,A,Team Seven,,
cy,Cy Fox,B,Team Seven,,
gita,Gita Roy,B,,2,
kim,Kim Lee,B,,,
zed,Zed None,B,,,
"""
TOY = "module1/toy"


@pytest.fixture
def handed_in(clone: Path) -> Path:
    """The clone with a policy, ``all.zip`` as Canvas makes it, and ``repositories/gita``."""
    course = clone / "course.yaml"
    text = course.read_text("utf-8").replace("limits:", GRADING, 1)
    course.write_text(text.replace("hidden: diagnosis}", "hidden: diagnosis, show_hidden: never}"), "utf-8")
    solution = (clone / "solutions/module1/toy.py").read_text("utf-8")
    stub = (clone / "exercises/module1/toy/toy.py").read_text("utf-8")
    with zipfile.ZipFile(clone / "all.zip", "w") as archive:
        archive.writestr("berganna_340_900_toy.py", stub)
        archive.writestr("berganna_LATE_340_901_toy-1.py", solution)
        archive.writestr("teamseven_341_902_toy.py", solution)
        archive.writestr("leekim_342_903_toy.py", "def broken(:\n")
    (clone / "roster.csv").write_text(ROSTER)
    gita = clone / "repositories/gita"
    gita.mkdir(parents=True)
    for text, day in ((stub, "01"), (solution, "23")):
        (gita / "toy.py").write_text(text)
        when = f"2026-11-{day}T12:00:00+01:00"
        for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=g", "-c", "user.email=g@x", "commit", "-qm", "work"]):
            subprocess.run(["git", *words], cwd=gita, check=True, env=os.environ | {"GIT_COMMITTER_DATE": when})
    return clone


def kata(root: Path, *words: str) -> str:
    done = subprocess.run([*KATA, *words], cwd=root, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def grades(report: Path) -> dict[str, dict[str, str]]:
    with (report / "grades.csv").open(newline="") as file:
        return {row["learner"]: row for row in csv.DictReader(file)}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_from_downloads_to_grades(handed_in: Path) -> None:
    process = ("--isolation", "process", "--workers", "2", "--out", "report")
    said = kata(handed_in, "grade", "all.zip", "--roster", "roster.csv", *process)
    assert "6 learners, 2 submissions to grade" in said
    assert "handed in nothing: gita, zed" in said
    assert "cannot be read (the report says why): kim: module1/toy" in said
    kata(handed_in, "grade", "repositories", *process)  # the roster of the first run holds

    report = handed_in / "report"
    rows = grades(report)
    percent = {name: float(row["total_percent"]) for name, row in rows.items()}
    assert percent == {"anna": 90, "bo": 100, "cy": 100, "gita": 90, "kim": 0, "zed": 0}
    assert (rows["anna"]["name"], rows["anna"]["section"]) == ("Anna Berg", "A")
    assert rows["anna"][f"{TOY} points"] == rows["bo"][f"{TOY} points"] == rows["bo"][f"{TOY} max_points"]
    assert "marked late where it was handed in" in rows["anna"][f"{TOY} late"]
    assert "1 day begun after 2026-11-22 23:59 CET" in rows["gita"][f"{TOY} late"]
    page = (report / "index.html").read_text("utf-8")
    assert "Nothing of this learner was among the submissions." in page

    card = json.loads((report / "learners/anna.json").read_text("utf-8"))
    (toy,) = card["exercises"]
    assert (toy["deduction"], toy["percent"], card["total"]["percent"]) == (10, 90, 90)
    assert all(c["id"].startswith("hidden::") for task in toy["tasks"] for c in task["checks"] if c["visibility"] == "hidden")
    graded = {r.learner: r for r in latest_of(report / "records.jsonl") if r.checks}
    assert graded["bo"].checks == graded["cy"].checks, "one work, judged once"
    assert graded["bo"].provenance == graded["cy"].provenance

    (report / "roster.csv").write_text(ROSTER.replace("gita,Gita Roy,B,,2,", "gita,Gita Roy,B,,5,"))
    (handed_in / "course.yaml").write_text((handed_in / "course.yaml").read_text().replace("per_day: 10", "per_day: 25"))
    kata(handed_in, "report", "report")
    percent = {name: float(row["total_percent"]) for name, row in grades(report).items()}
    assert (percent["gita"], percent["anna"]) == (100, 75), "nothing was graded again for it"

    kata(handed_in, "export", "csv", "report")
    with (report / "export/results.csv").open(newline="") as file:
        exported = {row["learner"]: float(row["percent"]) for row in csv.DictReader(file)}
    assert exported == percent, "exports know the extensions too"


def latest_of(path: Path) -> list[ExerciseRecord]:
    return read_records([path]).records


def test_a_roster_with_faults_stops_before_anything_is_graded(handed_in: Path) -> None:
    (handed_in / "roster.csv").write_text("id,extention days\nanna,1\n")
    done = subprocess.run(
        [*KATA, "grade", "all.zip", "--roster", "roster.csv"], cwd=handed_in, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "roster.csv:1: unknown column 'extention days'; did you mean 'extension days'?" in done.stderr
    assert not (handed_in / "report/records.jsonl").exists()
