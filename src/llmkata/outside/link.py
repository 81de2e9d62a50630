"""Requests to a submission, whatever the transport: see ``loopback`` (this process) and ``worker`` (a sandboxed one)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmkata.wire import TRUSTED, UNTRUSTED, Decoder, Encoder, Hooks, Kind, WireError, tags

from .remote import Record, Remote, RemoteError, RemoteFunction, WorkerGone
from .transcript import Call, Exchange, Transcript

#: Seconds a single request may take unless the exercise says otherwise.
REQUEST_SECONDS = 10.0

#: Characters of prints kept of one check, where the course does not say.
_PRINT_CAP = 20_000
#: A function that fills the memory is tried again, since another input may need less, until that took this much of the
#: time of the exercise.
_FILLING_SHARE = 0.125


@dataclass
class Recording:
    """What crossed while a program was recorded: tensors each way, and the order of everything this side took part in
    (``in N``, ``out``, ``begin SEGMENT``, ``end SEGMENT``)."""

    sent: list[Any] = field(default_factory=list)
    received: list[Any] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)
    #: Read from outside at its begin and end; None where there is no outside.
    gauges: tuple[Gauge | None, Gauge | None] = (None, None)
    #: Bytes of requests and answers meanwhile.
    traffic: int = 0


@dataclass(frozen=True)
class Measured:
    """What was read of one call: the instrument inside (self-reported), peak bytes and CPU seconds from outside."""

    reading: int
    peak_bytes: int | None
    cpu_seconds: float | None


@dataclass
class Meter:
    """On a link it has every call measured: those of functions, of classes, and of the methods of objects."""

    #: "traced_peak" | "steps" | None
    instrument: str | None
    calls: list[Measured] = field(default_factory=list)


@dataclass(frozen=True)
class Gauge:
    """A reading from outside: resident bytes, their high-water mark since the last reset (both None where the system
    tells no such mark), CPU seconds."""

    resident: int | None
    high: int | None
    cpu: float


@dataclass
class Wall:
    """Seconds that all workers of one submission may still take together."""

    total: float

    def __post_init__(self) -> None:
        self.left = self.total
        #: By function, the part of it that went into filling the memory.
        self.filling: dict[str, float] = {}


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
        #: Counts the workers: a proxy of an earlier one has no say in what this one may forget.
        self.epoch = 0
        self.printed: list[str] = []
        self.print_cap = _PRINT_CAP
        self.banned: list[str] = []
        self._banned_at_import: list[str] = []
        self.meter: Meter | None = None
        #: Bytes of requests and answers so far.
        self.traffic = 0
        self.wall = Wall(float("inf"))
        self._talking = False
        #: Functions that were late, or filled the memory too often: not run again.
        self.spent: dict[str, WorkerGone] = {}
        #: Source run in the module after it was imported (a known mistake in the model answer), see Session._patch.
        self.patch: dict[str, Any] | None = None
        #: What crossed since ``begin_recording``; None while no program is recorded.
        self.recording: Recording | None = None
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
            # No part of the transcript: what is replayed in this process must not hold the submission itself.
            try:
                names = self._plain("open", name=self.name, filename=self.filename, source=self.source, forbid=self.forbid)
                if not _is_names(names):
                    raise self._broken("its names are no lists of names")
                if self.patch is not None:
                    self._plain("patch", **self.patch)
            except RemoteError:
                self.close()  # a worker opens one submission once
                raise
            self._names, self._banned_at_import = names, list(self.banned)
        return self._names

    def call(self, target: Remote | None, path: str, args: tuple, kwargs: dict[str, Any], **options: Any) -> Any:
        """Call a function, class, method, or the object itself."""
        self.open()
        if self.meter is not None:
            if options:
                raise WireError("a measured call has no options")
            return self._measured_call(self.meter, target, path, args, kwargs)
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
            # No part of the transcript: the numbers of classes depend on what earlier checks met.
            names = self._plain("methods", class_key=class_key)
            if type(names) is not list or not all(type(n) is str for n in names):
                raise self._broken("the names of methods are no names")
            self._methods[class_key] = frozenset(names)
        return self._methods[class_key]

    @staticmethod
    def _what(target: Remote | None, path: str) -> str:
        return ".".join(x for x in ((target._type if target is not None else ""), path) if x)

    def share_callbacks(self, other: Link) -> None:
        """Serve the call-backs that ``other`` handed in (its requests are about to be asked here)."""
        self._callbacks = other._callbacks

    # -- a measured call -------------------------------------------------------------------------------------------

    def _measured_call(self, meter: Meter, target: Remote | None, path: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Prepare, execute, fetch: the arguments and the answer are no part of what is measured inside.

        From outside, CPU time is that of all three, and so is the peak, less three times the bytes that crossed: work
        done while the arguments are read or the answer is written counts.
        """
        self._make_measurable()
        traffic, start = self.traffic, self._gauge(reset=True)
        self.ask("prepare", "", target=target, path=path, args=args, kwargs=kwargs)
        entry = self._gauge(reset=True)
        reading = self.ask("execute", self._what(target, path), shown=(args, kwargs), instrument=meter.instrument)
        executed = self._gauge()
        result = self.ask("fetch", "")
        end = self._gauge()
        reading = reading if type(reading) is int and reading >= 0 else 0
        if end is None:
            meter.calls.append(Measured(reading, None, None))
            return result
        peak = None
        if end.high is not None:
            narrow = executed.high - entry.resident
            wide = max(entry.high, end.high) - start.resident - 3 * (self.traffic - traffic)
            peak = max(0, narrow, wide)
        meter.calls.append(Measured(reading, peak, end.cpu - start.cpu))
        return result

    def _make_measurable(self) -> None:
        """Have its memory be that of its program, where it is read from outside."""

    def _gauge(self, reset: bool = False) -> Gauge | None:
        """A reading from outside, where there is an outside; ``reset`` sets the high-water mark back after it."""
        return None

    # -- one request -----------------------------------------------------------------------------------------------

    def ask(self, op: str, what: str, *, shown: tuple[tuple, dict[str, Any]] | None = None, **fields: Any) -> Any:
        """Send one request and return the decoded value of its answer.

        ``what`` is called, in the words of the evidence; ``shown`` are its arguments where ``fields`` do not hold them.
        """
        if what in self.spent:
            raise self.spent[what]
        if self.meter is not None and op in ("vjp", "run"):
            raise WireError("only calls are measured, no vjp and no probe")
        if self._released and self._names is not None:
            handles = [ident for ident in self._released if not self._held.get(ident)]
            self._released = []
            self._plain("release", handles=handles)
        self._note_sent(fields)
        request = self._encode({"op": op, "next_id": self._next_id, **fields})
        return self.send(request, what, *(shown or (fields.get("args", ()), fields.get("kwargs", {}))))

    def send(self, request: bytes, what: str = "", args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Send an encoded request (also one of another link's transcript) and return the value of its answer."""
        self._callback_error = None
        if what:
            self.transcript.last_call = Call(what, args, kwargs or {})
        before = self.wall.left
        try:
            kind, answer = self._talk(request)
        except WorkerGone as gone:
            self._spend(what, gone, before - self.wall.left)
            raise
        value = self._read(answer)
        self.transcript.add(Exchange(bytes(request), kind, bytes(answer)))
        if self._callback_error is not None:
            raise self._callback_error
        if kind is Kind.error:
            error = self._remote_error(value)
            gone = self._exhausted(error) if error.out_of_memory else None
            if gone is None:
                raise error
            self._spend(what, gone, before - self.wall.left)
            raise gone
        if self.recording is not None:
            for t in _tensors(value, sys.modules.get("torch")):
                self.recording.received.append(t)
                self.recording.timeline.append("out")
        return value

    def _spend(self, what: str, gone: WorkerGone, seconds: float) -> None:
        """A function that was late is not run again: it would be late in every check."""
        if gone.kind == "memory":
            self.wall.filling[what] = self.wall.filling.get(what, 0.0) + seconds
        if what and (gone.kind == "late" or self.wall.filling.get(what, 0.0) > _FILLING_SHARE * self.wall.total):
            self.spent[what] = WorkerGone(f"{gone.cause} (in an earlier check; `{what}` is not run again)", gone.kind)

    def _exhausted(self, error: RemoteError) -> WorkerGone | None:
        """What it means that the learner's code ran out of memory; None: an exception as any other."""
        return None

    def _plain(self, op: str, **fields: Any) -> Any:
        """A housekeeping request that is no part of the transcript."""
        kind, answer = self._talk(self._encode({"op": op, **fields}))
        value = self._read(answer)
        if kind is Kind.error:
            raise self._remote_error(value)
        return value

    def _talk(self, request: bytes | bytearray) -> tuple[Kind, bytes | bytearray]:
        if self._talking:
            raise WireError("a function that was handed in asks the submission while it is being asked")
        self._talking = True
        try:
            kind, answer = self._exchange(request)
        finally:
            self._talking = False
        self.traffic += len(request) + len(answer)
        return kind, answer

    def _read(self, answer: bytes | bytearray) -> Any:
        """The value of an answer; what was printed and banned is noted. Exact types only: a proxy asks when touched."""
        parts = self._decoded(answer)
        if type(parts) is not dict or "value" not in parts:
            raise self._broken("the answer has no value")
        printed, banned = parts.get("printed", ""), parts.get("banned", [])
        if type(printed) is not str or type(banned) is not list or not all(type(x) is str for x in banned):
            raise self._broken("the answer is not made as answers are")
        if printed and sum(map(len, self.printed)) < self.print_cap:
            self.printed.append(storable(printed, self.print_cap))
        self.banned.extend(storable(x) for x in banned[:5])
        return parts["value"]

    def listener(self) -> Any:
        """A listening TCP socket the submission can reach (grant ``server``); None where there is none."""
        self.open()
        return self._listener()

    def _listener(self) -> Any:
        return None

    def _remote_error(self, e: Any) -> RemoteError:
        shape = {"type": str, "bases": list, "message": str, "frames": list}
        sound = type(e) is dict and all(type(e.get(name)) is kind for name, kind in shape.items()) and all(
            type(b) is str for b in e["bases"]) and all(
            type(f) is list and list(map(type, f)) == [int, str, str] for f in e["frames"])
        if not sound:
            raise self._broken("an error without its parts")
        frames = [(line, storable(function, 200), storable(text, 200)) for line, function, text in e["frames"][-12:]]
        return RemoteError(storable(e["type"], 200), e["bases"][:100], storable(e["message"]), frames, self.label)

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
            # Found by its number alone; that of its class depends on what earlier checks met.
            e.out += bytes(8)
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
        return Decoder(answer, _FromLearner(self), UNTRUSTED).read()

    def _decoded(self, data: bytes | bytearray) -> Any:
        """A message of the submission. The time it takes to read is taken from the exercise's."""
        began = time.process_time()
        try:
            return Decoder(data, _FromLearner(self), UNTRUSTED).read()
        except WireError as e:
            raise self._broken(str(e)) from None
        finally:
            self.wall.left -= time.process_time() - began

    def _serve_callback(self, body: bytes | bytearray,
                        paused: contextlib.AbstractContextManager) -> tuple[Kind, bytearray]:
        """Run a function of the grader for the learner's code; an exception of it is recorded here first. While it runs
        the clock is ``paused``; reading what it is called with is at the learner's cost."""
        asked = self._decoded(body)
        sound = type(asked) is dict and type(asked.get("id")) is int and asked["id"] in self._callbacks and type(
            asked.get("args")) is tuple and type(asked.get("kwargs")) is dict and all(
            type(k) is str for k in asked["kwargs"])
        if not sound:
            raise self._broken("a call-back that was not handed in")
        function, args, kwargs = self._callbacks[asked["id"]], asked["args"], asked["kwargs"]
        before = {k: v.copy() for k, v in kwargs.items() if isinstance(v, np.ndarray)}
        try:
            with paused:
                result = function(*args, **kwargs)
            written = {k: kwargs[k] for k, v in before.items() if v.tobytes() != kwargs[k].tobytes()}
            itself = next((k for k in before if result is kwargs[k]), None)
            return Kind.callback_result, self._encode(
                {"value": None if itself else result, "itself": itself, "written": written})
        except BaseException as e:  # noqa: BLE001 - whatever it is, it decides the check
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
        if self.recording is not None:
            for t in _tensors(tree, sys.modules.get("torch")):
                self.recording.timeline.append(f"in {len(self.recording.sent)}")
                self.recording.sent.append(t)

    # -- recording a program -----------------------------------------------------------------------------------------

    def begin_recording(self) -> None:
        """From now on the worker writes down every torch operator it dispatches."""
        self.open()
        self.ask("record", "")
        self.recording = Recording(gauges=(self._gauge(reset=True), None), traffic=-self.traffic)

    def mark_segment(self, name: str, *, end: bool) -> None:
        """Begin or end a named part of the recorded program; nothing where none is recorded."""
        if self.recording is not None:
            self.ask("segment", "", name=name, end=end)
            self.recording.timeline.append(f"{'end' if end else 'begin'} {name}")

    def end_recording(self) -> tuple[Any, Recording]:
        """-> (the encoded program, untrusted and unread; what crossed meanwhile)."""
        recording, self.recording = self.recording, None
        recording.gauges, recording.traffic = (recording.gauges[0], self._gauge()), recording.traffic + self.traffic
        return self.ask("program", ""), recording

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
        self.epoch += 1

    def begin_check(self, seed: int) -> None:
        """A new transcript, fresh random state, and a new worker where the old one ended after its last answer."""
        try:
            self._begin_check(seed)
        except WorkerGone as gone:
            if gone.kind != "died":
                raise
            self._begin_check(seed)

    def _begin_check(self, seed: int) -> None:
        self.transcript = Transcript()
        self.printed, self.banned = [], []
        self.open()
        self.banned = list(self._banned_at_import)
        self._forget()
        self._plain("seed", seed=seed_of_submission(seed))

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

    def abandon(self) -> None:
        """Give up whatever was being recorded or measured, and the worker with it; the next request starts afresh."""
        self.recording = self.meter = None
        self.close()
        self.reset()

    @property
    def layers(self) -> list[str]:
        """Sandbox layers that stand around the submission."""
        return []

    @property
    def missing(self) -> dict[str, str]:
        """Layers (and ``grant:`` names) that this host could not give, with the reason."""
        return {}


def seed_of_submission(seed: int) -> int:
    """The seed of a submission's random state: follows from that of the check, tells nothing of it. Inputs yet to come
    are drawn from the latter, and a process can read its own random state."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:submission".encode(), digest_size=8).digest(), "little") >> 1


def storable(text: str, cap: int = 4000) -> str:
    """``text`` as UTF-8 can hold it, at most ``cap`` characters: it comes from a process that ran learner code."""
    text = text if len(text) <= cap else text[:cap] + " [...]"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_names(names: Any) -> bool:
    return type(names) is dict and set(names) == {"functions", "classes", "values"} and all(
        type(of_kind) is list and all(type(n) is str for n in of_kind) for of_kind in names.values())


def _tensors(tree: Any, torch: Any) -> Any:
    """Tensors of a tree in the order in which the worker meets them (args, kwargs, cotangents; fields of records)."""
    if torch is None:
        return
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
