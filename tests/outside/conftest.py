"""A submission over either transport."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import pytest

from llmkata.outside.link import Link
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.submission import Submission
from llmkata.outside.worker import WorkerLink

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


class Opened(Submission):
    """A submission with its link at hand."""

    @property
    def link(self) -> Link:
        return self._link


@pytest.fixture
def links():
    """``links(source, transport, **options)``; all are closed at the end."""
    made: list[Link] = []

    def make(source: str, transport: str = "worker", **options: Any) -> Opened:
        kind = WorkerLink if transport == "worker" else LoopbackLink
        made.append(kind(f"learner_{len(made)}", f"learner_{len(made)}.py", textwrap.dedent(source).encode(), **options))
        return Opened(made[-1])

    yield make
    for link in made:
        link.close()


@pytest.fixture(params=[pytest.param("worker", marks=on_linux), "loopback"])
def open_(request, links):
    """``open_(source)`` over each transport: what holds must hold in both."""
    return lambda source, **options: links(source, request.param, **options)
