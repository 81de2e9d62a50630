"""Requests to a submission, over either transport: in this process (loopback) or to a sandboxed worker."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmkata.wire import TRUSTED, UNTRUSTED, Closed, Decoder, Encoder, Hooks, Kind, Late, WireError, tags

from .process import Process, start_process
from .remote import Record, Remote, RemoteError, RemoteFunction, WorkerGone
from .transcript import Exchange, Transcript

#: Seconds a single request may take unless the exercise says otherwise.
REQUEST_SECONDS = 10.0


@dataclass(frozen=True)
class Measured:
    """What was read of one call: the instrument inside (self-reported), peak bytes and CPU seconds from outside."""

    reading: int
    peak_bytes: int | None
    cpu_seconds: float | None


class _FromLearner(Hooks):
    """Handles and records of the learner's become proxies; pickles and call-backs stay refused."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def handle(self, ident: int, type_name: str, class_key: int) -> Remote:
        self._link.note_handle(ident)
        return Remote(self._link, ident, type_name, class_key)

    def record(self, type_name: str, ident: int, fields: dict[str, Any]) -> Record:
        self._link.note_handle(ident)
        return Record(self._link, ident, type_name, fields)


class Link:
    """Encodes requests, decodes answers, keeps the transcript, serves call-backs. Transports implement ``_exchange``.

    Raises RemoteError for an exception of the learner's, WorkerGone when there is no answer to be had.
    """

    transport = ""

    def __init__(self, name: str, filename: str, source: bytes, forbid: dict[str, Any] | None = None,
                 request_seconds: float = REQUEST_SECONDS) -> None:
        self.name, self.filename, self.source, self.forbid = name, filename, source, forbid
        self.label = filename.rsplit("/", 1)[-1]
        self.request_seconds = request_seconds
        self.transcript = Transcript()
        #: How many proxies hold each handle, and the handles nobody holds any more.
        self._held: dict[int, int] = {}
        self._released: list[int] = []
        self.printed: list[str] = []
        self.banned: list[str] = []
        #: Functions that were late or ran out of memory before: not run again.
        self.spent: dict[str, WorkerGone] = {}
        #: Source run in the module after it was imported (a known mistake in the model answer), see Session._patch.
        self.patch: dict[str, Any] | None = None
        #: The tensors that crossed outwards while a program is recorded, in order.
        self.sent_tensors: list[Any] | None = None
        #: The tensors that came back meanwhile, in the order in which the worker noted them as outputs.
        self.received_tensors: list[Any] | None = None
        self._callbacks: dict[int, Callable] = {}
        self._callback_ids = itertools.count(1)
        self._callback_error: BaseException | None = None
        self._methods: dict[int, frozenset[str]] = {}
        self._next_id = 1
        self._names: dict[str, list[str]] | None = None

    # -- what proxies ask ------------------------------------------------------------------------------------------

    def open(self) -> dict[str, list[str]]:
        """Import the submission (once per worker) -> its public names by kind."""
        if self._names is None:
            self._start()
            self._names = self.ask("open", "", name=self.name, filename=self.filename, source=self.source,
                                   forbid=self.forbid)
            if self.patch is not None:
                self._plain("patch", **self.patch)
        return self._names

    def call(self, target: Remote | None, path: str, args: tuple, kwargs: dict[str, Any], **options: Any) -> Any:
        """Call a function, class, method, or the object itself."""
        self.open()
        return self.ask("call", self._what(target, path), target=target, path=path, args=args, kwargs=kwargs,
                        **options)

    def get(self, target: Remote | None, name: str) -> Any:
        """The value of an attribute."""
        self.open()
        return self.ask("get", self._what(target, name), target=target, path=name)

    def set(self, target: Remote, name: str, value: Any) -> None:
        """Set an attribute."""
        self.ask("set", self._what(target, name), target=target, name=name, value=value)

    def iterate(self, target: Remote) -> list:
        """The items of an iterable (100,000 at most)."""
        return self.ask("iterate", self._what(target, "__iter__"), target=target)

    def vjp(self, target: Remote | None, path: str, args: tuple, kwargs: dict[str, Any], wrt: tuple[int, ...],
            cotangents: Any, parameters: bool) -> Any:
        """Vector-Jacobian product, see ``Submission.vjp``."""
        self.open()
        return self.ask("vjp", self._what(target, path), target=target, path=path, args=args, kwargs=kwargs,
                        wrt=list(wrt), cotangents=cotangents, parameters=parameters)

    def methods(self, class_key: int) -> frozenset[str]:
        """Names of the callables of a class of the learner's; asked once."""
        if class_key == 0:
            return frozenset()
        if class_key not in self._methods:
            self._methods[class_key] = frozenset(self.ask("methods", "", class_key=class_key))
        return self._methods[class_key]

    @staticmethod
    def _what(target: Remote | None, path: str) -> str:
        return ".".join(x for x in ((target._type if target is not None else ""), path) if x)

    def share_callbacks(self, other: Link) -> None:
        """Serve the call-backs that ``other`` handed in (its requests are about to be asked here)."""
        self._callbacks = other._callbacks

    # -- a measured call -------------------------------------------------------------------------------------------

    def measured_call(self, target: Remote | None, path: str, args: tuple, kwargs: dict[str, Any],
                      instrument: str | None) -> tuple[Any, Measured]:
        """Prepare, run, fetch -> (result, what was measured while it ran): decoding and encoding are not part of it."""
        self.open()
        what = self._what(target, path)
        self.ask("prepare", "", target=target, path=path, args=args, kwargs=kwargs)
        before = self._gauge_before()
        reading = self.ask("execute", what, instrument=instrument)
        measured = self._gauge_after(before, reading)
        return self.ask("fetch", ""), measured

    def _gauge_before(self) -> Any:
        return None

    def _gauge_after(self, before: Any, reading: Any) -> Measured:
        return Measured(reading if type(reading) is int else 0, None, None)

    # -- one request -----------------------------------------------------------------------------------------------

    def ask(self, op: str, what: str, **fields: Any) -> Any:
        """Send one request and return the decoded value of its answer."""
        if what in self.spent:
            raise self.spent[what]
        if self._released and self._names is not None:
            handles = [ident for ident in self._released if not self._held.get(ident)]
            self._released = []
            self._plain("release", handles=handles)
        self._note_sent(fields)
        request = self._encode({"op": op, "next_id": self._next_id, **fields})
        return self.send(request, what, fields.get("args", ()), fields.get("kwargs", {}))

    def send(self, request: bytes, what: str = "", args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Send an encoded request (also one of another link's transcript) and return the value of its answer."""
        self._callback_error = None
        try:
            kind, answer = self._exchange(request)
        except WorkerGone as gone:
            if what and gone.kind in ("late", "memory"):
                self.spent[what] = WorkerGone(f"{gone.cause} (in an earlier check; `{what}` is not run again)", gone.kind)
            raise
        self.transcript.add(Exchange(bytes(request), kind, bytes(answer), what, args, kwargs or {}))
        value = self._decode(answer)
        if not isinstance(value, dict) or "value" not in value:
            raise self._broken("the answer has no value")
        if value.get("printed"):
            self.printed.append(str(value["printed"]))
        if value.get("banned"):
            self.banned.extend(str(x) for x in value["banned"])
        if self._callback_error is not None:
            raise self._callback_error
        if kind is Kind.error:
            raise self._remote_error(value["value"])
        if self.received_tensors is not None and "torch" in sys.modules:
            self.received_tensors.extend(_tensors(value["value"], sys.modules["torch"]))
        return value["value"]

    def _plain(self, op: str, **fields: Any) -> Any:
        """A housekeeping request that is no part of the transcript."""
        kind, answer = self._exchange(self._encode({"op": op, **fields}))
        value = self._decode(answer)
        if kind is Kind.error:
            raise self._remote_error(value["value"])
        return value["value"]

    def listener(self) -> Any:
        """A listening TCP socket the submission can reach (grant ``server``); None where there is none."""
        self.open()
        return self._listener()

    def _listener(self) -> Any:
        return None

    def _remote_error(self, e: Any) -> RemoteError:
        try:
            frames = [(int(line), str(function), str(text)) for line, function, text in e["frames"]]
            error = RemoteError(str(e["type"]), [str(b) for b in e["bases"]], str(e["message"]), frames, self.label)
        except (KeyError, TypeError, ValueError):
            raise self._broken("an error without its parts") from None
        return error

    def _encode(self, value: Any) -> bytearray:
        encoder = Encoder(self._outwards, TRUSTED)
        encoder.value(value)
        return encoder.out

    def _outwards(self, e: Encoder, v: Any, depth: int) -> None:
        """What a grader hands in beyond plain data: objects of the learner's, call-backs, objects of libraries."""
        if isinstance(v, Remote):
            if v._link is not self:
                raise WireError("an object of one worker cannot be handed to another")
            e.out += tags.HANDLE + v._id.to_bytes(8, "little")
            e.string(v._type)
            e.out += v._class_key.to_bytes(8, "little")
        elif isinstance(v, RemoteFunction):
            raise WireError(f"pass {v!r} by calling it, or by its name")
        elif callable(v) and not isinstance(v, type):
            ident = next(self._callback_ids)
            self._callbacks[ident] = v
            e.out += tags.CALLBACK + ident.to_bytes(8, "little")
        elif type(v).__module__.split(".")[0] in ("torch", "numpy", "transformers", "tokenizers", "collections"):
            data = pickle.dumps(v)
            e.out += tags.PICKLED + len(data).to_bytes(4, "little") + data
        else:
            raise WireError(f"a value of type {type(v).__module__}.{type(v).__qualname__} cannot be handed in")

    def peek(self, answer: bytes) -> Any:
        """What an answer of the transcript says (the whole dict: value, prints)."""
        return self._decode(answer)

    def _decode(self, data: bytes | bytearray) -> Any:
        decoder = Decoder(data, _FromLearner(self), UNTRUSTED)
        try:
            value = decoder.value()
            if decoder.at != len(decoder.data):
                raise WireError("bytes after the value")
        except WireError as e:
            raise self._broken(str(e)) from None
        except (RecursionError, MemoryError, OverflowError, ValueError) as e:
            raise self._broken(f"the answer cannot be read ({type(e).__name__})") from None
        return value

    def _serve_callback(self, body: bytes | bytearray) -> tuple[Kind, bytearray]:
        """Run a function of the grader for the learner's code; an exception of it is recorded here first."""
        asked = self._decode(body)
        try:
            function = self._callbacks[asked["id"]]
            args, kwargs = asked["args"], asked["kwargs"]
        except (KeyError, TypeError):
            raise self._broken("a call-back that was not handed in") from None
        before = {k: v.copy() for k, v in kwargs.items() if isinstance(v, np.ndarray)}
        try:
            result = function(*args, **kwargs)
            written = {k: kwargs[k] for k, v in before.items() if not np.array_equal(v, kwargs[k], equal_nan=True)}
            itself = next((k for k in before if result is kwargs[k]), None)
            return Kind.callback_result, self._encode(
                {"value": None if itself else result, "itself": itself, "written": written})
        except Exception as e:  # noqa: BLE001 - whatever it is, it decides the check
            if getattr(e, "for_the_caller", False):
                return Kind.callback_error, self._encode(str(e))
            self._callback_error = e
            return Kind.callback_error, self._encode("the function that was handed in refused this call")

    def note_handle(self, ident: int) -> None:
        """Handles are numbered by the worker from where we said: go on after the highest one seen."""
        if ident >= 1 << 48:
            raise WireError("a handle that was never given out")
        self._next_id = max(self._next_id, ident + 1)

    def hold(self, ident: int) -> None:
        """A proxy for a handle was made; the same object may have several."""
        self._held[ident] = self._held.get(ident, 0) + 1

    def let_go(self, ident: int) -> None:
        """A proxy is gone; with the last one the object may be released (with the next request)."""
        self._held[ident] -= 1
        if not self._held[ident]:
            del self._held[ident]
            self._released.append(ident)

    def _note_sent(self, tree: Any) -> None:
        if self.sent_tensors is not None:
            torch = sys.modules.get("torch")
            if torch is not None:
                self.sent_tensors.extend(_tensors(tree, torch))

    # -- to be implemented -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Make sure there is somebody to ask."""

    def _exchange(self, request: bytes | bytearray) -> tuple[Kind, bytes | bytearray]:
        raise NotImplementedError

    def _broken(self, why: str) -> WorkerGone:
        return WorkerGone(f"The process of the submission broke the protocol: {why}.", "protocol")

    def reset(self) -> None:
        """Forget the worker; the next request starts afresh."""
        self._names = None
        self._methods = {}
        self._held, self._released = {}, []
        self._next_id = 1

    def begin_check(self, seed: int) -> None:
        """A new transcript, fresh random state."""
        self.transcript = Transcript()
        self.printed, self.banned = [], []
        self.open()
        self._forget()
        self._plain("seed", seed=seed)

    def _forget(self) -> None:
        """Release what nobody holds and number from the start again where that is safe: the same check then makes the
        same requests whatever ran before it (replay, caches and feedback.json compare requests)."""
        if self._released:
            self._plain("release", handles=[i for i in self._released if not self._held.get(i)])
            self._released = []
        self._callbacks, self._callback_ids = {}, itertools.count(1)
        if not self._held:
            self._next_id = 1

    def close(self) -> None:
        """End the worker, if there is one."""

    @property
    def layers(self) -> list[str]:
        """Sandbox layers that stand around the submission."""
        return []

    @property
    def missing(self) -> dict[str, str]:
        """Layers (and ``grant:`` names) that this host could not give, with the reason."""
        return {}


def _tensors(tree: Any, torch: Any) -> Any:
    """Tensors of a tree in the order in which the worker meets them (args, kwargs, cotangents; fields of records)."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for x in tree:
            yield from _tensors(x, torch)
    elif isinstance(tree, dict):
        for x in tree.values():
            yield from _tensors(x, torch)
    elif isinstance(tree, Record):
        for x in tree:
            yield from _tensors(x, torch)


class LoopbackLink(Link):
    """The submission runs in this process: breakpoints and prints work, nothing is isolated. For the learner only."""

    transport = "loopback"

    def _start(self) -> None:
        from llmkata.inside.session import Session

        self._session = Session(self._from_session, None)

    def _exchange(self, request: bytes | bytearray) -> tuple[Kind, bytearray]:
        return self._session.answer(request)

    def _from_session(self, ident: int, args: tuple, kwargs: dict) -> Any:
        kind, body = self._serve_callback(self._session.encode({"id": ident, "args": args, "kwargs": kwargs}))
        return self._session.objects.settle_callback(
            Decoder(body, self._session.objects, TRUSTED).value(), kind is Kind.callback_error, kwargs)

    def _listener(self) -> Any:
        return socket.create_server(("127.0.0.1", 0))

    def _remote_error(self, e: Any) -> RemoteError:
        error = super()._remote_error(e)
        # The learner's own traceback, for pdb and for reading on.
        error.__cause__ = self._session.last_error
        return error


class _Stopwatch:
    """A deadline in the worker's own CPU time, so that a busy machine costs nobody a verdict; sleeping counts after
    ``_PATIENCE`` times as long by the wall clock. Our own call-backs do not count."""

    _PATIENCE = 4.0
    _SLICE = 0.2

    def __init__(self, process: Process, seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self._cpu, self._wall = process.cpu_seconds(), time.monotonic()
        self._last = 0.0

    def left(self) -> float:
        """Seconds to wait now before asking again; 0 when the time is up."""
        elapsed = time.monotonic() - self._wall
        if elapsed < self._SLICE:
            return self._SLICE - elapsed + 0.001
        if self.spent() >= self._seconds or elapsed >= self._PATIENCE * self._seconds:
            return 0.0
        return self._SLICE

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
        self._wall_left = wall_seconds
        self._wall_total = wall_seconds
        self.process: Process | None = None
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
            self.process = start_process(self.profile, self.policy)
            self._layers, self._missing = self.process.layers, self.process.missing

    def _exchange(self, request: bytes | bytearray) -> tuple[Kind, bytes | bytearray]:
        if self._wall_left <= 0:
            raise WorkerGone(f"The time limit of the whole exercise ({self._wall_total:g} s) is used up.", "late")
        self._start()
        channel = self.process.channel
        self._seq += 1
        seconds = min(self.request_seconds, self._wall_left)
        clock = _Stopwatch(self.process, seconds)
        try:
            if channel.pending():
                raise WireError("it answered without being asked")
            channel.send(Kind.request, self._seq, request, clock)
            while True:
                kind, seq, body = channel.receive(clock)
                if seq != self._seq:
                    raise WireError("it answered another request than the one asked")
                if kind is Kind.callback:
                    with clock.paused():
                        reply = self._serve_callback(body)
                    channel.send(*self._reply(reply), clock)
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
            self._wall_left -= clock.spent()
        return kind, body

    def _listener(self) -> Any:
        return self.process.listener.dup() if self.process.listener is not None else None

    def _gauge_before(self) -> Any:
        self.process.reset_peak()
        return self.process.memory()[0], self.process.cpu_seconds()

    def _gauge_after(self, before: Any, reading: Any) -> Measured:
        resident, cpu = before
        seconds = self.process.cpu_seconds() - cpu
        return Measured(reading if type(reading) is int else 0, max(0, self.process.memory()[1] - resident), seconds)

    def _reply(self, answer: tuple[Kind, bytearray]) -> tuple[Kind, int, bytearray]:
        kind, body = answer
        return kind, self._seq, body

    def _died(self) -> WorkerGone:
        status = self._drop(wait_seconds=1.0)
        signal_number = status & 0x7F if status is not None else 0
        if status is not None and signal_number == 0 and (status >> 8) > 128:
            signal_number = (status >> 8) - 128
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
