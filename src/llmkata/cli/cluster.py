"""``kata cluster``: a Dask cluster on this machine; and what ``--scheduler`` of ``kata grade`` and ``regrade`` does with any."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import again, fail, prog

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.grading.submission import Submission
    from llmkata.records import ExerciseRecord


def cluster(
    local: Annotated[int, typer.Option(help="Worker processes on this machine.", metavar="N", min=1)],
) -> None:
    """Start a Dask cluster on this machine, to try 'kata grade --scheduler' with. Ctrl-C ends it."""
    _need_dask(f"{prog()} cluster --local {local}")
    from llmkata.cluster.local import local_cluster

    over = threading.Event()
    with local_cluster(local) as running:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: over.set())
        address = running.scheduler_address
        typer.echo(f"Dask scheduler with {local} worker{'s' if local > 1 else ''}: {address}")
        typer.echo(f"Next, in another terminal: {prog()} grade submissions/ --out report/ --scheduler {address}")
        typer.echo("Whoever can reach the address can run programs as you: others who use this machine, too.")
        typer.echo("Ctrl-C ends it.")
        over.wait()
        typer.echo("ending the workers")


def grade_clustered(
    course: Course,
    submissions: list[Submission],
    scheduler: str,
    *,
    out: Path,
    seed: int | None,
    isolation: str,
    progress: Callable[[ExerciseRecord], None],
    sure: Callable[[], None],
) -> list[ExerciseRecord]:
    """As ``grading.executor.grade_many``, by the workers of a Dask scheduler. ``sure`` is called once it is certain that
    they can grade.
    """
    _need_dask(again())
    from llmkata.cluster.client import ClusterError, connected

    try:
        with connected(course, scheduler, isolation, tell=lambda text: typer.echo(text, err=True)) as workers:
            sure()
            return workers.grade_many(submissions, out=out, seed=seed, progress=progress)
    except ClusterError as error:
        fail(str(error), error.step or again())


def _need_dask(command: str) -> None:
    try:
        import distributed  # noqa: F401
    except ModuleNotFoundError:
        fail(
            "a cluster needs Dask's distributed, which is not installed", f"pip install 'llmkata[cluster]' && {command}"
        )
