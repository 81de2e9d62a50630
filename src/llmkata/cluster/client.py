"""The command's side: find workers that can grade, deal lots out to them, write down what comes back."""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from distributed import CancelledError, Client, Future, wait

from llmkata.course.launcher import launcher
from llmkata.places import RECORDS
from llmkata.records import ExerciseRecord, RecordFile, State, decode

from .bundle import pack
from .lots import TRIES, Lot, Lots, Work
from .service import Inspection, enlist, grade_lot, inspect, service_name
from .versions import differences, versions

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.grading.submission import Submission

#: Seconds: for the scheduler to answer, for a worker to be there, between two looks at who is there.
CONNECT_SECONDS = 10.0
WORKER_SECONDS = 60.0
LOOK_SECONDS = 2.0
_DASKS = re.compile(r"distributed\b")


class ClusterError(RuntimeError):
    """The cluster cannot be used, or no longer; ``step`` is the command to try next, "" for the same one again."""

    def __init__(self, message: str, step: str = "") -> None:
        super().__init__(message)
        self.step = step


@contextmanager
def connected(
    course: Course, scheduler: str, isolation: str, *, tell: Callable[[str], None] = lambda text: None
) -> Iterator[Cluster]:
    """A cluster with at least one worker that can grade ``course``.

    Args:
        scheduler: its address, ``tcp://host:port``; of ``tls://`` certificates are read from Dask's configuration.
        tell: called with what the person should know: who is waited for, who does not take part.

    Raises:
        ClusterError: nobody answers there, no worker comes, or none can grade; the message has each one's reason.
    """
    for name in filter(_DASKS.match, logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what matters is said here, in words of ours
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions are held against one another below, and more of them
            client = Client(scheduler, timeout=CONNECT_SECONDS)
    except Exception as error:  # noqa: BLE001 - somebody else may answer anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler} ({reason})",
            f"{launcher()} cluster --local 2   # or start one: dask scheduler",
        ) from None
    try:
        cluster = Cluster(client, course, scheduler, isolation, tell)
        try:
            cluster.gather_workers()
        except OSError as error:
            raise ClusterError(f"the scheduler at {scheduler} is gone ({error})") from None
        yield cluster
    finally:
        client.close(timeout=5)


class Cluster:
    """Workers behind a scheduler. Get one from :func:`connected`."""

    def __init__(
        self, client: Client, course: Course, scheduler: str, isolation: str, tell: Callable[[str], None]
    ) -> None:
        self._client, self._scheduler, self._isolation, self._tell = client, scheduler, isolation, tell
        self._bundle = pack(course)
        self._name = service_name(self._bundle.digest, isolation, versions())
        #: Addresses that were asked to take part: those that do, and those that cannot.
        self._asked: set[str] = set()
        #: Threads by the address of each worker that takes part.
        self._fit: dict[str, int] = {}
        self._looked = self._seen = time.monotonic()

    def gather_workers(self) -> None:
        """Wait until somebody can grade. Raises ClusterError."""
        until, told = time.monotonic() + WORKER_SECONDS, False
        while not (there := self._workers()):
            if time.monotonic() > until:
                raise ClusterError(
                    f"{self._scheduler} has no workers: none came within {WORKER_SECONDS:.0f} s",
                    f"dask worker {self._scheduler} --nthreads 2   # on each machine",
                )
            if not told:
                self._tell(f"waiting for a worker to come to {self._scheduler}")
                told = True
            time.sleep(0.2)
        refusals = self._enlist(list(there), waiting=True)
        self._look()
        if not self._fit:
            raise ClusterError(f"no worker of {self._scheduler} can grade:\n" + _reasons(refusals), _remedy(refusals))
        if refusals:
            self._tell(f"{len(refusals)} of {len(there)} workers do not take part:\n" + _reasons(refusals))

    def grade_many(
        self,
        submissions: Sequence[Submission],
        *,
        out: Path,
        seed: int | None = None,
        progress: Callable[[ExerciseRecord], None] | None = None,
    ) -> list[ExerciseRecord]:
        """As :func:`llmkata.grading.executor.grade_many`, for submissions that can be read.

        Raises:
            ClusterError: scheduler or workers are gone for good; what was graded until then is in the file.
        """
        out.mkdir(parents=True, exist_ok=True)
        file, lots = RecordFile(out / RECORDS), Lots(submissions)
        records: dict[int, ExerciseRecord] = {}
        running: dict[Future, Lot] = {}

        def keep(judged: dict[int, ExerciseRecord]) -> None:
            signed = {number: submissions[number].signed(record) for number, record in judged.items()}
            records.update(signed)
            file.append(*(each for number, record in signed.items() for each in submissions[number].shared(record)))
            for record in signed.values() if progress is not None else ():
                progress(record)

        try:
            while lots or running:
                self._look_now_and_then(len(records))
                while lots and len(running) < len(self._fit):
                    lot = lots.deal(len(self._fit), max(self._fit.values()))
                    running[self._send(lot, submissions, seed)] = lot
                ended = _done(running)
                # Where the scheduler is gone Dask has all as cancelled, and none of it is to blame.
                self._insist(len(records))
                for future in ended:
                    lot = running.pop(future)
                    judged, why = _outcome(future)
                    future.release()
                    if why:
                        keep({number: _given_up(submissions[number], why) for number in lots.lost(lot)})
                    else:
                        lots.graded(lot)
                        keep(dict(zip(lot.numbers, map(decode, judged), strict=True)))
        finally:
            if running and self._client.status == "running":
                self._client.cancel(list(running))
        return [records[n] for n in range(len(submissions))]

    def _insist(self, graded: int) -> None:
        """Raise ClusterError unless the scheduler is still there."""
        if self._client.status != "running":
            raise ClusterError(f"the scheduler at {self._scheduler} is gone; {_kept(graded)}")

    def _send(self, lot: Lot, submissions: Sequence[Submission], seed: int | None) -> Future:
        work = Work(seed, [(submissions[n].exercise_id, submissions[n].source or b"") for n in lot.numbers])
        return self._client.submit(
            grade_lot, self._name, msgspec.msgpack.encode(work), resources={self._name: 1}, pure=False, key=None
        )

    def _look_now_and_then(self, graded: int) -> None:
        """Ask newcomers in, forget who has left. Raises ClusterError where nobody is left for long."""
        now = time.monotonic()
        if self._fit and now - self._looked < LOOK_SECONDS:
            return
        there = self._look()
        self._insist(graded)
        self._asked &= set(there)
        newcomers = [address for address in there if address not in self._asked]
        if newcomers:
            with suppress(OSError):  # who cannot be asked has left again, and the next look tells
                self._enlist(newcomers, waiting=False)
        if self._fit:
            self._seen = now
        elif now - self._seen > WORKER_SECONDS:
            raise ClusterError(f"no worker of {self._scheduler} that can grade is left; {_kept(graded)}")
        else:
            time.sleep(0.2)

    def _look(self) -> dict[str, dict]:
        """Who is there; who of them may be sent lots is in ``_fit``."""
        there = self._workers()
        self._fit = {address: info["nthreads"] for address, info in there.items() if self._name in info["resources"]}
        self._looked = time.monotonic()
        return there

    def _workers(self) -> dict[str, dict]:
        return dict(self._client.scheduler_info().get("workers", {}))  # none where the scheduler cannot be asked

    def _enlist(self, addresses: list[str], *, waiting: bool) -> dict[str, str]:
        """Ask workers to take part, with the bundle for those that lack it -> why some cannot, by address.

        ``waiting``: until they are warm; otherwise they may be sent lots once they say so.
        """
        self._asked |= set(addresses)
        run, digest = self._client.run, self._bundle.digest
        refusals: dict[str, str] = {}
        told = run(inspect, digest, workers=addresses, on_error="return")
        lacking: dict[bool, list[str]] = {True: [], False: []}
        for address, inspection in told.items():
            if not isinstance(inspection, Inspection):
                refusals[address] = f"llmkata does not run there ({inspection})"
            elif unlike := differences(versions(), inspection.versions):
                refusals[address] = "; ".join(unlike)
            else:
                lacking[not inspection.has_bundle].append(address)
        for lacks, group in lacking.items():
            if group:
                data = self._bundle.data if lacks else b""
                answers = run(enlist, digest, data, self._isolation, workers=group, on_error="return", wait=waiting)
                refusals |= {address: str(why) for address, why in (answers or {}).items() if why}
        return refusals


def _done(running: dict[Future, Lot]) -> list[Future]:
    """Those that have ended, one way or the other; waits for one for a moment."""
    if running:
        try:
            wait(list(running), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
        except (TimeoutError, CancelledError):
            pass
    return [future for future in running if future.done()]


def _outcome(future: Future) -> tuple[list[bytes], str]:
    """The encoded records of a lot, or why there are none."""
    if future.status == "finished":
        try:
            return future.result(), ""
        except (OSError, CancelledError) as error:
            return [], str(error) or type(error).__name__
    error = future.exception() if future.status == "error" else None
    return [], str(error or f"Dask has it as {future.status}")


def _given_up(submission: Submission, why: str) -> ExerciseRecord:
    return ExerciseRecord(
        submission.learner,
        submission.exercise_id,
        State.infrastructure,
        cause=f"It was lost {TRIES} times with what judged it, the last time: {why}. Grade it again: nothing is held "
        "against the learner.",
    )


def _reasons(refusals: dict[str, str]) -> str:
    """A line for each reason, with whose it is."""
    whose: dict[str, list[str]] = {}
    for address, why in refusals.items():
        whose.setdefault(why, []).append(address)
    return "\n".join(
        f"  {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {why}"
        for why, names in whose.items()
    )


def _remedy(refusals: dict[str, str]) -> str:
    if any(" there, " in why or "does not run there" in why for why in refusals.values()):
        return "python -m pip install -r requirements.lock .   # of this folder, for every worker; then start it again"
    return f"{launcher()} doctor   # on a worker's machine"


def _kept(graded: int) -> str:
    return f"{graded} graded and kept, the same command goes on from there"
