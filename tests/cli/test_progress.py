"""Progress of a long run, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from llmkata.cli import progress
from llmkata.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_moving_line_that_goes_away() -> None:
    stream = Terminal()
    with Progress("graded", 2, stream) as shown:
        shown(None)
        shown(None)
    lines = stream.getvalue().split("\r\x1b[K")
    assert lines[1] == "1 of 2 graded" and lines[2].startswith("2 of 2 graded, ")
    assert lines[2].endswith(" 0 s left") and lines[3] == ""


def test_a_file_has_a_line_now_and_then(monkeypatch) -> None:
    stream = io.StringIO()
    with Progress("graded", 3, stream) as shown:
        shown(None)
        monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
        shown(None)
    assert stream.getvalue().count("\n") == 1 and "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(
    ("done", "seconds", "says"),
    [
        (5, 5.0, "5 of 110 graded"),
        (10, 5.0, "10 of 110 graded, 2.0 a second, 50 s left"),
        (10, 60.0, "10 of 110 graded, 10 a minute, 10 min left"),
        (10, 3600.0, "10 of 110 graded, 0 a minute, 10 h 00 min left"),
    ],
)
def test_rate_and_time_left(done, seconds, says) -> None:
    shown = Progress("graded", 110, io.StringIO())
    shown.done = done
    assert shown.line(shown.began + seconds) == says


def test_without_a_total_it_counts() -> None:
    shown = Progress("checks run", None, io.StringIO())
    shown(None)
    assert shown.line(shown.began + 1) == "1 checks run"
