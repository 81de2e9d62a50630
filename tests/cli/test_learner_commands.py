"""The small commands of the learner: next, open, notebook, reset, give-up, scorecard."""

from __future__ import annotations

import json

from llmkata.cli.own import record_file
from llmkata.course import load_course


def test_next_and_open(toy, kata) -> None:
    said = kata("next").out
    assert "0.1 Sums" in said and "exercises/module0/sums/sums.py" in said and "kata watch module0/sums" in said
    opened = kata("open", "0.1").out
    assert opened.startswith("# Sums") and opened.endswith("checks exercises/module0/sums/test_sums.py\n")


def test_open_without_an_editor_says_how(toy, kata, monkeypatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    done = kata("open", "0.1", "--edit")
    assert done.status == 2 and "neither VISUAL nor EDITOR" in done.err
    monkeypatch.setenv("EDITOR", "no-such-editor-anywhere")
    assert "cannot be started" in kata("open", "0.1", "--edit").err
    monkeypatch.setenv("EDITOR", "true")
    done = kata("open", "0.1", "--edit")
    assert done.status == 0 and done.out.startswith("brief  exercises/module0/sums/README.md\n")


def test_a_notebook_is_never_written_over(toy, kata) -> None:
    done = kata("notebook", "0.1", "--repository", "https://example.org/course")
    path = toy / "exercises/module0/sums/sums.ipynb"
    assert done.status == 0 and done.out.startswith("exercises/module0/sums/sums.ipynb\n")
    cells = ["".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"]]
    assert any('REPOSITORY = "https://example.org/course"' in c for c in cells)
    path.write_text("mine")
    again = kata("notebook", "0.1")
    assert again.status == 2 and "is there already" in again.err and path.read_text() == "mine"
    assert kata("notebook", "0.1", "--force").status == 0 and path.read_text("utf-8") != "mine"
    assert "is no folder" in kata("notebook", "0.1", "--out", "nowhere/x.ipynb").err


def test_reset_asks_and_needs_the_stub(toy, kata) -> None:
    file = toy / "exercises/module0/sums/sums.py"
    done = kata("reset", "0.1", "--yes")
    assert done.status == 2 and "is not kept" in done.err and file.exists()
    kept = toy / ".kata-stubs/module0/sums.py"
    kept.parent.mkdir(parents=True)
    kept.write_text("# the stub\n")
    before = file.read_text()
    copy = kata("reset", "0.1", "--yes").out.split()[-1].rstrip(".")
    assert (toy / copy).read_text() == before and file.read_text() == "# the stub\n"


def test_giving_up_where_there_are_no_solutions(toy, kata) -> None:
    done = kata("give-up", "0.1", "--yes")
    assert done.status == 2 and "without solutions" in done.err and "kata hint module0/sums" in done.err
    assert not (toy / ".kata/given_up.json").exists()


def test_the_card_has_every_attempt(toy, kata, make_record) -> None:
    assert "nothing was checked yet" in kata("scorecard").err
    stamps = [f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3)]
    for stamp, outcome in zip(stamps, ("fail", "pass", "fail"), strict=True):
        record_file(load_course(toy)).append(make_record("module0/sums", f"{outcome} 1", "fail 2 stretch", graded_at=stamp))
    kata("hint", "0.1")
    assert kata("scorecard").out.startswith(".kata/scorecard/you.html\n")
    card = json.loads((toy / ".kata/scorecard/you.json").read_text("utf-8"))["exercises"][0]
    assert [(a["graded_at"], a["standing"], a["failed"]) for a in card["history"]] == [
        (stamps[0], "in progress", "test_0"), (stamps[1], "passed", "test_1"), (stamps[2], "in progress", "test_0")]
    assert card["hints_opened"] == {"test_empty": 1}
    text = (toy / ".kata/scorecard/you.md").read_text("utf-8")
    assert text.count("2026-01-0") >= 3 and "Hints opened: test\\_empty 1" in text
