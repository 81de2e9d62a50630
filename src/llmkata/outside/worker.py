"""The submission in a sandboxed process: its deadlines, its limits, and what its end means."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

from llmkata.wire import Closed, Kind, Late, WireError

from .link import Gauge, Link, Wall
from .process import Process, start_process
from .remote import RemoteError, WorkerGone

#: Calls of functions of the grader's during one request: its own time stands still meanwhile.
_MOST_CALLBACKS = 50_000
#: Bytes they are called with during one request: a check may keep them all.
_MOST_CALLBACK_BYTES = 512 << 20


class _Stopwatch:
    """A deadline in the worker's own CPU time, so that a busy machine costs nobody a verdict; sleeping counts after
    ``_PATIENCE`` times as long by the wall clock. Waiting for a processor does not count, nor do our own call-backs."""

    _PATIENCE = 4.0
    _SLICE = 0.2
    #: A second by the wall clock costs at least this much of the time that the exercise has in all: sleeping is not free.
    _SHARE = 0.125

    def __init__(self, process: Process, seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self._cpu, self._wall = process.cpu_seconds(), time.monotonic()
        self._queued = process.queued_seconds()
        self._last = 0.0

    def left(self) -> float:
        """Seconds to wait now before asking again; 0 when the time is up."""
        elapsed = time.monotonic() - self._wall
        if elapsed < self._SLICE:
            return self._SLICE - elapsed + 0.001
        if self.spent() >= self._seconds or elapsed - self.queued() >= self._PATIENCE * self._seconds:
            return 0.0
        return self._SLICE

    def cost(self) -> float:
        """Seconds that the request takes of the time of the exercise."""
        return max(self.spent(), self._SHARE * (time.monotonic() - self._wall - self.queued()))

    def queued(self) -> float:
        """Seconds since the start for which others had the processor; 0 once the process is gone."""
        return max(0.0, self._process.queued_seconds() - self._queued)

    def spent(self) -> float:
        """CPU seconds since the start, as far as they can still be read."""
        try:
            self._last = self._process.cpu_seconds() - self._cpu
        except OSError:
            pass
        return self._last

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The wall clock stands still while the grader's own function runs."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._wall += time.monotonic() - began


class WorkerLink(Link):
    """The submission runs in a sandboxed process; silence, death and broken rules are causes, never results."""

    transport = "worker"

    def __init__(self, *args: Any, profile: str = "base", policy: dict[str, Any] | None = None,
                 wall_seconds: float = 60.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.profile, self.policy = profile, policy or {}
        self.wall = Wall(wall_seconds)
        self.process: Process | None = None
        #: Whether the process gives back what it frees: the high-water mark is the program's then, not the allocator's.
        self._gives_back = False
        self._seq = 0
        self._layers: list[str] = []
        self._missing: dict[str, str] = {}
        self.cpu_seconds = 0.0

    @property
    def layers(self) -> list[str]:
        return self._layers

    @property
    def missing(self) -> dict[str, str]:
        return self._missing

    def _start(self) -> None:
        if self.process is None:
            self.process, self._gives_back = start_process(self.profile, self.policy), False
            self._layers, self._missing = self.process.layers, self.process.missing

    def _exchange(self, request: bytes | bytearray) -> tuple[Kind, bytes | bytearray]:
        if self.wall.left <= 0:
            self._drop()
            raise WorkerGone(f"The time limit of the whole exercise ({self.wall.total:g} s) is used up.", "late")
        self._start()
        channel = self.process.channel
        # Drawn, not counted: an answer to a question still to come cannot bear its number.
        self._seq = secrets.randbits(63)
        seconds, calls, given = min(self.request_seconds, self.wall.left), 0, 0
        try:
            clock = _Stopwatch(self.process, seconds)
        except OSError:  # no such process any more: it ended after its last answer
            raise self._died() from None
        try:
            if channel.pending():
                raise WireError("it answered without being asked")
            channel.send(Kind.request, self._seq, request, clock)
            while True:
                kind, seq, body = channel.receive(clock)
                if seq != self._seq:
                    raise WireError("it answered another request than the one asked")
                if kind is Kind.callback:
                    calls += 1
                    if calls > _MOST_CALLBACKS:
                        self._drop()
                        raise WorkerGone(f"It called what was handed in more than {_MOST_CALLBACKS:,} times.", "late")
                    given += len(body)
                    if given > _MOST_CALLBACK_BYTES:
                        self._drop()
                        raise WorkerGone("It called what was handed in with more than "
                                         f"{_MOST_CALLBACK_BYTES >> 20} MiB in all.", "memory")
                    channel.send(*self._reply(self._serve_callback(body, clock.paused())), clock)
                elif kind in (Kind.result, Kind.error):
                    break
                else:
                    raise WireError(f"a frame of kind {kind.name} from a worker")
        except Late:
            self._drop()
            raise WorkerGone(f"It did not finish within {seconds:.3g} s of computing.", "late") from None
        except Closed:
            raise self._died() from None
        except WireError as e:
            self._drop()
            raise self._broken(str(e)) from None
        finally:
            self.wall.left -= clock.cost()
        return kind, body

    def _listener(self) -> Any:
        return self.process.listener.dup() if self.process.listener is not None else None

    def _make_measurable(self) -> None:
        if not self._gives_back:
            self.ask("give_back", "")
            self._gives_back = True

    def _gauge(self, reset: bool = False) -> Gauge:
        try:
            if not self.process.tells_peak:
                return Gauge(None, None, self.process.cpu_seconds())
            resident, high = self.process.memory()
            if reset:
                self.process.reset_peak()
            return Gauge(resident, high, self.process.cpu_seconds())
        except (OSError, KeyError):
            raise self._died() from None

    def _reply(self, answer: tuple[Kind, bytearray]) -> tuple[Kind, int, bytearray]:
        kind, body = answer
        return kind, self._seq, body

    def _exhausted(self, error: RemoteError) -> WorkerGone:
        self._drop()  # what filled the memory may still be held
        limit = f"{self.policy['memory_bytes'] >> 20:,} MiB of memory" if "memory_bytes" in self.policy else "memory"
        where = f" at line {error.frames[-1][0]}" if error.frames else ""
        return WorkerGone(f"It used up the {limit} it may take{where}.", "memory")

    def _died(self) -> WorkerGone:
        status = self._drop(wait_seconds=1.0)
        signal_number = status & 0x7F if status is not None else 0
        if signal_number == 9:
            return WorkerGone("Its process was killed: it used more memory or time than it may.", "memory")
        if signal_number == 11:
            return WorkerGone("Its process crashed with a segmentation fault.", "died")
        if signal_number == 31:
            return WorkerGone("Its process was stopped by the sandbox: it asked the system for something that is not "
                              "allowed.", "died")
        if signal_number:
            return WorkerGone(f"Its process was ended by signal {signal_number}.", "died")
        return WorkerGone("Its process ended by itself without an answer (exit inside the submission?).", "died")

    def _drop(self, wait_seconds: float = 0.0) -> int | None:
        """Kill the worker -> its wait status."""
        if self.process is None:
            return None
        ended = self.process.kill(wait_seconds=wait_seconds)
        self.cpu_seconds += ended["cpu"] or 0.0
        self.process = None
        self.reset()
        return ended["status"]

    def _broken(self, why: str) -> WorkerGone:
        self._drop()
        return super()._broken(why)

    def close(self) -> None:
        self._drop()
