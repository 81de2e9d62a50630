"""What GitHub Actions reads from a step: workflow commands in its output, and the files of the job.

The runner takes every line of a step's output that starts with ``::`` (or holds ``##[``) as a command, whoever wrote
it.
Source: "Workflow commands for GitHub Actions"; escaping as in ``@actions/core``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from .text import line, plain

#: Annotations of a kind that are shown for a step; more are dropped by GitHub without a word.
MOST_ANNOTATIONS = 10
#: Most bytes of a job summary that a step may add.
SUMMARY_BYTES = 1 << 20


@dataclass(frozen=True)
class Annotation:
    """A remark beside a line of a file (0: beside the file). Texts are made plain and escaped when it is written."""

    file: str
    line: int
    title: str
    message: str
    level: str = "error"  # "error" | "warning" | "notice"

    def __str__(self) -> str:
        """The workflow command, one line."""
        properties = {"file": self.file, "line": str(self.line) if self.line else "", "title": line(self.title, 200)}
        told = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value)
        return f"::{self.level} {told}::{_data(plain(self.message))}"


def annotations(told: Sequence[Annotation]) -> list[str]:
    """The commands of as many annotations as are shown; the last of them says how many there are besides."""
    if len(told) <= MOST_ANNOTATIONS:
        return [str(note) for note in told]
    more = len(told) - MOST_ANNOTATIONS
    last = told[MOST_ANNOTATIONS - 1]
    said = f"{last.message}\n({more} more failed: see the job summary.)"
    return [
        *map(str, told[: MOST_ANNOTATIONS - 1]),
        str(Annotation(last.file, last.line, last.title, said, last.level)),
    ]


def inert(text: str) -> str:
    """``text`` between commands that switch commands off and on again. The token is drawn after whoever wrote the text
    has ended, so nothing in it can switch them on.
    """
    token = secrets.token_hex(16)
    return f"::stop-commands::{token}\n{text.rstrip(chr(10))}\n::{token}::\n"


def capped(summary: str, limit: int = SUMMARY_BYTES) -> str:
    """A job summary within its limit: cut after a whole line, with a remark; an open code fence is closed."""
    data = summary.encode()
    if len(data) <= limit:
        return summary
    remark = "\n\nThe rest is left out: a job summary holds 1 MiB.\n"
    kept = data[: limit - len(remark) - 64].decode("utf-8", "ignore").rpartition("\n")[0]
    fence = ""
    for row in kept.splitlines():
        ticks = len(row) - len(row.lstrip("`"))
        if ticks >= 3 and not fence:
            fence = "`" * ticks
        elif fence and row == fence:
            fence = ""
    return kept + (f"\n{fence}" if fence else "") + remark


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
