"""What course.yaml says about the price of hints."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkata.course import CourseError, Hints, load_course

from .test_ci_policy import COURSE


def read(tmp_path: Path, hints: str) -> Hints:
    (tmp_path / "course.yaml").write_text(COURSE % hints)
    return load_course(tmp_path).policy.hints


def test_defaults_and_values(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Hints(0.0, 0, 100.0)
    assert read(tmp_path, "  hints: {price: 2}\n") == Hints(2.0, 0, 100.0)
    assert read(tmp_path, "  hints: {price: 1.5, free: 1, at_most: 10}\n") == Hints(1.5, 1, 10.0)


@pytest.mark.parametrize("hints", ["{free: 1}", "{price: -1}", "{price: 101}", "{price: 1, free: 0.5}", "{price: 1, most: 3}"])
def test_faults_name_the_line(tmp_path: Path, hints: str) -> None:
    with pytest.raises(CourseError, match=r"course\.yaml:8.*policy\.hints"):
        read(tmp_path, f"  hints: {hints}\n")
