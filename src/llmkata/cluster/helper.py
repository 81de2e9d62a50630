"""The process beside a Dask worker that judges: ``python -I -m llmkata.cluster.helper ROOT ISOLATION AT_ONCE``.

A Dask worker has threads and must not be forked; this is a fresh interpreter without any, so it may hold torch, graders
and templates and fork as a local run does. On standard input and output it speaks with the worker (see :mod:`.pipe`):
first a :class:`Hello`, then a :class:`Reply` to each lot (:class:`.lots.Work`). It ends when the worker has gone, or had
nothing for it for a while.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

import msgspec

from llmkata.course import Course, load_course
from llmkata.forks import CAN_FORK
from llmkata.records import ExerciseRecord, encode
from llmkata.threads import one_thread

from .lots import Work
from .pipe import Gone, hung_up, receive, send

#: Seconds for which templates are kept warm for the next run; they hold half a gigabyte.
IDLE_SECONDS = 600.0


class Hello(msgspec.Struct):
    """``why``: why this machine cannot judge, "" where it can."""

    why: str = ""


class Reply(msgspec.Struct):
    """Encoded records in the order of the lot, or ``fault``: why there are none."""

    records: list[bytes] = []
    fault: str = ""


def main(root: str, isolation: str, at_once: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the way out that closes templates and takes forks along
    requests, replies = _pipes()
    why, course = "", None
    try:
        course = _ready(Path(root), isolation)
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker is told
        why = str(error) or type(error).__name__
    with contextlib.suppress(Gone, TimeoutError):
        send(replies, msgspec.msgpack.encode(Hello(why)))
        while course is not None:
            work = msgspec.msgpack.decode(receive(requests, seconds=IDLE_SECONDS), type=Work)
            send(replies, msgspec.msgpack.encode(_graded(course, work, isolation, int(at_once), requests)))


def _pipes() -> tuple[int, int]:
    """Where requests come from and replies go: no longer 0 and 1, which whatever prints would write to."""
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    os.close(nowhere)
    return requests, replies


def _ready(root: Path, isolation: str) -> Course:
    """Start what every grading needs. Raises where this machine cannot grade."""
    if not CAN_FORK:
        raise RuntimeError("workers must run on Linux: this system cannot fork a process that holds torch")
    one_thread()
    from llmkata.grading.isolation import require

    course = load_course(root)
    require(course, isolation)
    return course


def _graded(course: Course, work: Work, isolation: str, at_once: int, requests: int) -> Reply:
    from llmkata.grading.executor import grade_many
    from llmkata.grading.submission import Submission

    def wanted(record: ExerciseRecord) -> None:
        if hung_up(requests):
            raise Gone("the worker has gone")

    submissions = [Submission(str(n), exercise, source) for n, (exercise, source) in enumerate(work.submissions)]
    try:
        with tempfile.TemporaryDirectory(prefix="kata-lot-") as out:
            records = grade_many(
                course,
                submissions,
                out=Path(out),
                workers=at_once,
                seed=work.seed,
                isolation=isolation,
                progress=wanted,
            )
    except Gone:
        raise
    except Exception as error:  # noqa: BLE001 - this lot is lost, and told so; the next may fare better
        return Reply(fault=f"{type(error).__name__}: {error}")
    return Reply([encode(record) for record in records])


if __name__ == "__main__":
    main(*sys.argv[1:])
