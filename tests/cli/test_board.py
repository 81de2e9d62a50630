"""The board: states, points, and the next step."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from llmkata.cli.own import next_exercise, own_records, record_file
from llmkata.course import load_course
from llmkata.records import State

SUMS = "exercises/module0/sums/sums.py"


def test_nothing_done_yet(toy, kata) -> None:
    out = kata("start").out
    assert "A toy course" in out and " 0  Numbers" in out
    assert "○   0.1  Sums      not started  difficulty 1 of 5, 1 to 2 h" in out
    assert "·   0.3  Powers    planned" in out
    assert "0 of 2 exercises passed, 0 mastered; 1 more are planned" in out
    assert "Next: 0.1 Sums" in out
    assert "read  exercises/module0/sums/README.md" in out
    assert "edit  exercises/module0/sums/sums.py" in out
    assert "loop  kata watch module0/sums " in out and "check kata check module0/sums " in out
    assert "\x1b" not in out


def test_records_become_states_and_points(toy, make_record, kata) -> None:
    course = load_course(toy)
    record_file(course).append(make_record("module0/sums", "fail 1", "fail 2 stretch"))
    out = kata("start").out
    assert "◐   0.1  Sums      in progress 0/2 checks  0 of 8 points" in out
    assert "first check that failed: test_0 (task 1)" in out
    record_file(course).append(
        make_record("module0/sums", "pass 1", "fail 2 stretch", graded_at="2026-01-02T00:00:00+00:00",
                    submission_sha=sha256((toy / SUMS).read_bytes()).hexdigest())
    )
    out = kata("start").out
    assert "✓   0.1  Sums      passed       4 of 8 points" in out
    assert "Next: 0.2 Products" in out
    assert "1 of 2 exercises passed" in out


def test_somebody_elses_record_is_not_mine(toy, make_record) -> None:
    course = load_course(toy)
    record_file(course).append(make_record("module0/sums", "pass 1", learner="ada"))
    assert own_records(course) == {}


@pytest.mark.parametrize(
    ("sums", "products", "expected"),
    [
        (None, None, "sums"),
        (["pass 1", "fail 2 stretch"], None, "products"),
        (None, ["fail 1"], "products"),
        (["pass 1", "fail 2 stretch"], ["pass 1"], "sums"),
        (["pass 1", "pass 2 stretch"], ["pass 1"], None),
    ],
)
def test_what_comes_next(toy, make_record, sums, products, expected) -> None:
    given = {"module0/sums": sums, "module0/products": products}
    records = {name: make_record(name, *checks) for name, checks in given.items() if checks}
    found = next_exercise(load_course(toy), records)
    assert (found and found.slug) == expected


def test_an_unreadable_file_is_told(toy, make_record, kata) -> None:
    broken = make_record("module0/sums", state=State.unreadable, cause="Python cannot read line 3.")
    record_file(load_course(toy)).append(broken)
    out = kata("start").out
    assert "!   0.1  Sums      unreadable" in out and "  Python cannot read line 3." in out


def test_list_as_json(toy, make_record, kata) -> None:
    record_file(load_course(toy)).append(make_record("module0/sums", "pass 1",
                                                 submission_sha=sha256((toy / SUMS).read_bytes()).hexdigest()))
    rows = json.loads(kata("list", "--json").out)
    assert [r["exercise"] for r in rows] == ["module0/sums", "module0/products", "module0/powers"]
    assert (rows[0]["state"], rows[0]["points"], rows[0]["max_points"]) == ("mastered", 4, 4)
    assert (rows[1]["state"], rows[1]["points"]) == ("not started", None)
    assert (rows[2]["state"], rows[2]["status"]) == (None, "planned")


def test_another_course(toy, kata, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "A toy course" in kata("--course", str(toy), "start").out


def test_a_passed_exercise_that_an_edit_broke(toy, make_record, kata, monkeypatch) -> None:
    """Board, list and next look again; what is back at the stub is not broken."""
    record_file(load_course(toy)).append(make_record("module0/sums", "pass 1", "pass 2 stretch", submission_sha="old"))
    now = [make_record("module0/sums", "fail 1", "pass 2 stretch")]
    monkeypatch.setattr("llmkata.cli.verify._judged", lambda exercise: now[0])
    out = kata("start").out
    assert "checking module0/sums, which was edited since it was passed..." in out
    assert "✗   0.1  Sums      broken 1/2 checks" in out and "0 of 2 exercises passed, 0 mastered" in out
    assert "module0/sums was passed and is broken since your last edit: kata watch module0/sums" in out
    assert "✗   0.1  Sums      broken 1/2 checks" in kata("list").out
    assert [r["state"] for r in json.loads(kata("list", "--json").out)] == ["broken", "not started", None]
    assert "Next: 0.1 Sums" in kata("next").out and "brief  exercises/module0/sums/" in kata("open").out
    now[0] = make_record("module0/sums", state=State.not_started)
    (toy / SUMS).write_text("# edited again\n")
    out = kata("list").out
    assert "○   0.1  Sums      not started" in out and "back at the stub" in out and "broken" not in out


def test_a_stretch_task_that_was_never_done_is_not_broken(toy, make_record, kata, monkeypatch) -> None:
    made = make_record("module0/sums", "pass 1", "fail 2 stretch", submission_sha="old")
    record_file(load_course(toy)).append(made)
    monkeypatch.setattr("llmkata.cli.verify._judged", lambda exercise: made)
    out = kata("start").out
    assert "✓   0.1  Sums      passed" in out and "its visible checks still pass" in out and "broken" not in out


def test_commands_can_be_pasted_from_any_folder(toy, kata, monkeypatch) -> None:
    (toy / "kata").touch()
    assert "loop  ./kata watch module0/sums" in kata("next").out
    monkeypatch.chdir(toy / "exercises/module0/sums")
    out = kata("next").out
    assert "loop  ../../../kata watch module0/sums" in out and "edit  sums.py " in out
    assert "`../../../kata start` lists them all" in kata("check", "zzzz").err


def test_without_a_name_it_is_the_one_to_work_on(toy, kata) -> None:
    done = kata("check")
    assert done.out.startswith("0.1 Sums")
    assert "brief  exercises/module0/sums/README.md" in kata("open").out
    assert kata("hint").out.startswith("0.1 Sums, task ")


def test_a_mistyped_command_is_guessed_once(toy, kata) -> None:
    assert kata("wach").err.count("Did you mean") == 1
