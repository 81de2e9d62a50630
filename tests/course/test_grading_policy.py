"""What course.yaml says about grading: every value typed, every fault with its line."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from llmkata.course import CourseError, ExtraCredit, Grading, Late, load_course

COURSE = """\
schema: llmkata/course/v1
title: T
policy:
  isolation: process
  seed_env: S
  feedback: {visible: hint, hidden: hint}
  weights: {core: 1, stretch: 1}
%slimits: {wall: 1, call: 1, cpu: 1, memory: 1, output: 1, submission: 1}
modules:
  - number: 3
    title: M
    objective: O
    exercises:
      - {number: "3.1", slug: sums, title: S, mission: M, difficulty: 1, hours: {core: 1, total: 1}, status: planned}
"""


def read(tmp_path: Path, grading: str) -> Grading:
    (tmp_path / "course.yaml").write_text(COURSE % grading)
    return load_course(tmp_path).policy.grading


def test_without_a_word_nothing_is_deducted(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Grading() == Grading("UTC", {}, None, "last", 0, ExtraCredit(), {})


def test_all_of_it(tmp_path: Path) -> None:
    got = read(tmp_path, """\
  grading:
    timezone: Europe/Oslo
    deadlines: {3: 2026-10-05 23:59}
    late: {per_day: 10, cap: 50, grace: 15}
    attempts: best
    drop_lowest: 2
    extra_credit: {exercises: [sums], stretch: true, cap: 110}
""")
    assert got.deadlines[3].astimezone(UTC) == datetime(2026, 10, 5, 21, 59, tzinfo=UTC)
    assert (got.late, got.attempts, got.drop_lowest) == (Late(10, 50, 15), "best", 2)
    assert got.extra_credit == ExtraCredit(("sums",), True, 110)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-12-01 12:00:00", "2026-12-01T11:00"),  # a YAML timestamp
        ("'2026-12-01T12:00+05:00'", "2026-12-01T07:00"),
        ("2026-10-25 02:30", "2026-10-25T01:30"),  # comes twice: the second
        ("2026-03-29 02:30", "2026-03-29T01:30"),  # never comes: the later reading
    ],
)
def test_times_in_their_zone(tmp_path: Path, text: str, utc: str) -> None:
    got = read(tmp_path, f"  grading: {{timezone: Europe/Oslo, deadlines: {{3: {text}}}}}\n")
    assert got.deadlines[3].astimezone(UTC) == datetime.fromisoformat(utc).replace(tzinfo=UTC)


def test_an_offset_needs_no_zone(tmp_path: Path) -> None:
    got = read(tmp_path, "  grading: {deadlines: {3: '2026-12-01T12:00+05:00'}}\n")
    assert got.deadlines[3] == datetime(2026, 12, 1, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("grading", "said"),
    [
        ("{timezone: Europe/Olso}", 'no time zone is called "Europe/Olso"; did you mean "Europe/Oslo"'),
        ("{deadlines: {3: 2026-12-01 12:00}}", "needs policy.grading.timezone"),
        ("{timezone: UTC, deadlines: {4: 2026-12-01 12:00}}", "the course has no module 4"),
        ("{timezone: UTC, deadlines: {x: 2026-12-01 12:00}}", '"x" is no number of a module'),
        ("{timezone: UTC, deadlines: {3: 2026-12-01}}", 'has no time of day; write it as "2026-12-01 23:59"'),
        ("{timezone: UTC, deadlines: {3: tomorrow}}", "is no time"),
        ("{timezone: UTC, deadlines: {3: 7}}", "must be a time"),
        ("{late: {cap: 50}}", 'missing key "per_day"'),
        ("{late: {per_day: 120}}", "must be at most 100"),
        ("{late: {per_day: -1}}", "must be at least 0"),
        ("{attempts: first}", '"first" is not one of its values'),
        ("{drop_lowest: -1}", "must be at least 0"),
        ("{extra_credit: {exercises: [sum]}}", 'no exercise has the slug "sum"; did you mean "sums"?'),
        ("{extra_credit: {cap: 90}}", "must be at least 100"),
        ("{deadline: {}}", 'unknown key "deadline"; did you mean "deadlines"?'),
    ],
)
def test_faults_name_file_line_and_field(tmp_path: Path, grading: str, said: str) -> None:
    with pytest.raises(CourseError) as caught:
        read(tmp_path, f"  grading: {grading}\n")
    (fault,) = caught.value.faults
    assert (fault.line, fault.field.startswith("policy.grading")) == (8, True)
    assert said in str(fault)


@pytest.mark.parametrize("when", ["always", "after_deadline", "never"])
def test_when_hidden_checks_are_told(tmp_path: Path, when: str) -> None:
    text = (COURSE % "").replace("hidden: hint}", f"hidden: hint, show_hidden: {when}}}")
    (tmp_path / "course.yaml").write_text(text)
    assert load_course(tmp_path).policy.feedback.show_hidden == when


def test_another_time_for_hidden_checks_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "course.yaml").write_text((COURSE % "").replace("hidden: hint}", "hidden: hint, show_hidden: later}"))
    with pytest.raises(CourseError, match=r":6: policy\.feedback\.show_hidden"):
        load_course(tmp_path)
