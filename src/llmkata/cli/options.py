"""Options that several commands share."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import fail, prog

if TYPE_CHECKING:
    from llmkata.course import Course


OptionalExercise = Annotated[
    str | None,
    typer.Argument(help="For example module2/self_attention, or 2.1; default: the one to work on next.", metavar="[EXERCISE]"),
]


class Isolation(StrEnum):
    """How learner code is kept apart."""

    sandbox = "sandbox"
    process = "process"


IsolationOption = Annotated[
    Isolation,
    typer.Option(help="sandbox: own process in the sandbox; process: own process only, for code you trust."),
]


GroupsOption = Annotated[
    Path | None,
    typer.Option(help="With --similarity: a CSV with id and group; members of a group are no pair.", metavar="CSV"),
]


RosterOption = Annotated[
    Path | None,
    typer.Option(help="CSV of the class: id, name, email, section, group, extension days.", metavar="CSV"),
]


PseudonymsOption = Annotated[
    bool,
    typer.Option("--pseudonyms", help="Also write the run under pseudonyms, for third parties: DIR/pseudonymous/."),
]


SchedulerOption = Annotated[
    str, typer.Option(help="Grade on the workers of this Dask scheduler, like tcp://host:8786.", metavar="ADDRESS")
]


def seed_of(course: Course, given: int | None) -> int | None:
    """The seed given, else that of the environment variable the course names, else None (the public seed)."""
    if given is not None:
        return given
    name = course.policy.seed_env
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        draw = "python3 -c 'import secrets; print(secrets.randbits(63))'"
        fail(f"{name}={text!r} is not a whole number", f"export {name}=$({draw})")


def scheduler_of(text: str, workers: int | None) -> str:
    """The address of a scheduler as it was given, "" for none."""
    if text and not re.fullmatch(r"(tcp|tls)://[^/\s]+:\d{1,5}", text):
        fail(f"--scheduler {text}: must be an address like tcp://host:8786", f"{prog()} cluster --local 2   # prints one")
    if text and workers is not None:
        fail("--workers is for this machine; a worker of a cluster grades as many at once as it has threads",
             f"dask worker {text} --nthreads {workers}")
    return text
