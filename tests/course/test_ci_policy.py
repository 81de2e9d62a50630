"""What course.yaml says about continuous integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkata.course import CourseError, load_course
from llmkata.course.model import CI

COURSE = """\
schema: llmkata/course/v1
title: T
policy:
  isolation: process
  seed_env: S
  feedback: {visible: hint, hidden: hint}
  weights: {core: 1, stretch: 1}
%slimits: {wall: 1, call: 1, cpu: 1, memory: 1, output: 1, submission: 1}
modules: []
"""


def read(tmp_path: Path, ci: str) -> CI:
    (tmp_path / "course.yaml").write_text(COURSE % ci)
    return load_course(tmp_path).policy.ci


def test_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "") == CI("core", None, 24.0)
    assert read(tmp_path, "  ci: {attempts: 3}\n") == CI("core", 3, 24.0)


def test_values(tmp_path: Path) -> None:
    assert read(tmp_path, "  ci: {fail_on: never, attempts: 5, hours: 1.5}\n") == CI("never", 5, 1.5)


@pytest.mark.parametrize("ci", ["{fail_on: some}", "{attempts: 0}", "{hours: 0}", "{attempt: 3}"])
def test_faults_name_the_line(tmp_path: Path, ci: str) -> None:
    with pytest.raises(CourseError, match=r"course\.yaml:8.*policy\.ci"):
        read(tmp_path, f"  ci: {ci}\n")
