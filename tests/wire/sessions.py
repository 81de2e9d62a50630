"""Recorded sessions of a submission, and frames made of them by changes that know where values begin and end.

``python -m tests.wire.sessions 1000000`` puts as many mutated frames to the judge's side and reports the worst case.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmkata.bench.program import parse
from llmkata.bench.recorded import read_program
from llmkata.bench.structure import ProgramError
from llmkata.checks.compare import Mismatch, _same, distance
from llmkata.checks.describe import describe
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import Remote, RemoteError, WorkerGone
from llmkata.outside.submission import Submission
from llmkata.outside.worker import WorkerLink
from llmkata.wire import UNTRUSTED, Channel, Kind
from llmkata.wire.encode import Encoder
from llmkata.wire.frames import _HEADER, _MAGIC

from ..toy.harness import SOLUTION
from .values import plain

_TAGS = b"NTFiIfcsbltSZdqrAXMGYJEPQDKRHBOVC"
_EXTREMES = [0, 1, 2, 7, 8, 255, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63,
             (1 << 64) - 1]


@dataclass(frozen=True)
class Frame:
    """A frame of a session: ``spans`` are where values begin and end in its body."""

    kind: Kind
    body: bytes
    spans: tuple[tuple[int, int], ...]


class _Listening(LoopbackLink):
    """Keeps every frame that a submission sends."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.frames: list[tuple[Kind, bytes]] = []

    def _exchange(self, request: Any) -> tuple[Kind, bytearray]:
        kind, answer = super()._exchange(request)
        self.frames.append((kind, bytes(answer)))
        return kind, answer

    def _serve_callback(self, body: Any, paused: Any) -> tuple[Kind, bytearray]:
        self.frames.append((Kind.callback, bytes(body)))
        return super()._serve_callback(body, paused)


def recorded() -> tuple[list[Frame], list[Frame]]:
    """A session in which everything is asked that can be -> (frames of the submission, programs it recorded)."""
    spans: dict[bytes, tuple[tuple[int, int], ...]] = {}
    encode = Encoder.value

    def noting(self: Encoder, v: Any, depth: int = 0) -> None:
        begin, mine = len(self.out), self.__dict__.setdefault("spans", [])
        encode(self, v, depth)
        mine.append((begin, len(self.out)))
        if depth == 0:
            spans[bytes(self.out)] = tuple(mine)

    Encoder.value = noting
    try:
        link = _Listening("toy", "toy.py", SOLUTION.encode())
        s = Submission(link)
        program = _everything(link, s)
    finally:
        Encoder.value = encode
    return ([Frame(kind, body, spans[body]) for kind, body in link.frames],
            [Frame(Kind.result, program, tuple(_json_spans(program.decode())))])


def _json_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of a text in JSON (all ASCII) begin and end; what stands in strings is no value of its own."""
    read = json.JSONDecoder().raw_decode
    for match in re.finditer(r"[\[,:](?![\]])", text):
        yield match.end(), read(text, match.end())[1]


def _everything(link: Any, s: Submission) -> bytes:
    x, w = torch.arange(6.0).reshape(2, 3), torch.ones(3, 2)
    s.softmax(x)
    s.project(x.t(), w.t().contiguous().t()[:2])
    s.stats(x)
    s.magic(2**70)
    s.row_sums(np.arange(12.0).reshape(4, 3)[::-1], np.ones((4, 3), "float32"))
    s.call("project", x, w, echo=True)
    s.vjp("project", (x, w), wrt=(0, 1), cotangents=torch.ones(2, 2))
    ledger = s.Ledger()
    for name in ("tea", "ink", "é\u202e"):
        ledger.add(name, 1.5)
    assert list(ledger) and ledger.total and len(ledger)
    s.repeated(lambda t: t + 1, torch.zeros(2), 3)
    for bad in (lambda: s.softmax(torch.tensor(1.0)), lambda: s.softmax("x"), lambda: s.project(x, x)):
        try:
            bad()
        except RemoteError:
            pass
    link.begin_recording()
    with s.segment("part"):
        s.project(x, w)
    return link.end_recording()[0]


def mutated(rng: random.Random, frame: Frame, others: list[Frame]) -> bytes:
    """The body with one to four changes at values, their tags, counts and sizes."""
    data, spans = bytearray(frame.body), frame.spans
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        begin, end = rng.choice(spans)
        begin, end = min(begin, len(data)), min(end, len(data))
        match rng.randrange(10):
            case 0:  # another value in its place
                other = rng.choice(others)
                a, b = rng.choice(other.spans)
                data[begin:end] = other.body[a:b]
            case 1:
                del data[begin:end]
            case 2:
                data[begin:begin] = data[begin:end]
            case 3:  # two values change places
                a, b = sorted([(begin, end), rng.choice(spans)])
                if a[1] <= b[0] and b[1] <= len(data):
                    data[a[0] : b[1]] = data[b[0] : b[1]] + data[a[1] : b[0]] + data[a[0] : a[1]]
            case 4 if begin < len(data):
                data[begin] = rng.choice(_TAGS)
            case 5:  # a count
                data[begin + 1 : begin + 5] = rng.choice(_EXTREMES[:11]).to_bytes(4, "little")
            case 6:  # a number, size or stride somewhere in it
                at = rng.randrange(begin, max(begin + 1, end))
                data[at : at + 8] = rng.choice(_EXTREMES).to_bytes(8, "little")
            case 7:  # deeper than before
                depth = rng.choice([1, 2, 40, 60, 5000])
                data[begin:begin] = b"l\1\0\0\0" * depth
            case 8 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case _:
                del data[rng.randrange(len(data) + 1):]
    return bytes(data)


def header(rng: random.Random, kind: Kind, seq: int, length: int) -> bytes:
    """A header, one in eight of them wrong."""
    magic = _MAGIC
    if rng.randrange(8) == 0:
        match rng.randrange(4):
            case 0:
                magic = rng.randbytes(4)
            case 1:
                kind = rng.randrange(256)
            case 2:
                seq = rng.choice([0, seq + 1, max(0, seq - 1), (1 << 64) - 1])
            case _:
                length = rng.choice([0, max(0, length - 1), length + 1, 1 << 27, (1 << 32) - 1])
    return _HEADER.pack(magic, kind, seq, length)


class _Worker:
    """Stands for a worker: says what it was told to as soon as it is asked. ``said(number)`` are its frames, given the
    number of the request."""

    tells_peak, listener = False, None

    def __init__(self, said: Callable[[int], bytes]) -> None:
        ours, self._theirs = socket.socketpair()
        self._ours, self._said = ours, said
        self.channel = _Answering(ours.fileno(), self)

    def speak(self, number: int) -> None:
        self._theirs.setblocking(False)
        if said := self._said(number):
            os.write(self._theirs.fileno(), said[: 1 << 16])
        self._theirs.shutdown(socket.SHUT_WR)

    def cpu_seconds(self) -> float:
        return 0.0

    def queued_seconds(self) -> float:
        return 0.0

    def kill(self, *, wait_seconds: float = 0.0) -> dict[str, Any]:
        self._ours.close()
        self._theirs.close()
        return {"status": 9, "cpu": 0.0}


class _Answering(Channel):
    """The first thing that is sent to the worker makes it speak."""

    def __init__(self, fd: int, worker: _Worker) -> None:
        super().__init__(fd, fd, UNTRUSTED)
        self._worker: _Worker | None = worker

    def send(self, kind: Kind, seq: int, *_: Any) -> None:
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.speak(seq)


def put(rng: random.Random, frames: list[Frame]) -> str:
    """Put one mutated answer, with frames before it now and then, to the judge's side -> what came of it.

    Whatever is no plain value of the closed list, proxy, error of the learner's or refusal is raised.
    """
    link = WorkerLink("toy", "toy.py", b"", wall_seconds=1e9)
    link._names = {"functions": ["f"], "classes": [], "values": []}
    link._callbacks = {i: (lambda *a, **k: a[0] if a else None) for i in range(1, 4)}
    frame = rng.choice(frames)
    bodies = [(frame.kind, mutated(rng, frame, frames))]
    if rng.randrange(4) == 0:
        extra = rng.choice(frames)
        bodies.insert(rng.randrange(2), (extra.kind, rng.choice([extra.body, mutated(rng, extra, frames)])))
    link.process = _Worker(
        lambda number: b"".join(header(rng, kind, number, len(body)) + body for kind, body in bodies)
    )
    try:
        value = link.send(b"request", "f")
    except RemoteError as e:
        assert type(str(e)) is str and e.where() is not None
        return "error"
    except WorkerGone as e:
        return e.kind
    finally:
        link.process and link.process.kill()
    link.process = None
    assert _plain(value), type(value)
    assert len(describe(value)) < 100_000
    try:
        _same(value, torch.ones(2, 2), None, None, True, False, "output")
    except Mismatch as e:
        assert e.summary
    distance(value, value)
    return "value"


def _plain(value: Any) -> bool:
    if isinstance(value, Remote):
        fields = value.__dict__.get("_fields", {})
        return type(fields) is dict and all(map(_plain, fields.values()))
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_plain, value))
    if type(value) is dict:
        return all(_plain(k) and _plain(v) for k, v in value.items())
    return plain(value)


def mutated_program(rng: random.Random, frame: Frame) -> bytes:
    """The text with one to four changes at values: another, none, twice, two exchanged, an extreme, deeper, a bit, cut."""
    data, spans = bytearray(frame.body), frame.spans
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        (begin, end), (a, b) = rng.choice(spans), rng.choice(spans)
        match rng.randrange(8):
            case 0:
                data[begin:end] = frame.body[a:b]
            case 1:
                del data[begin:end]
            case 2:
                data[begin:begin] = data[begin:end] + b","
            case 3 if end <= a:
                data[begin:b] = data[a:b] + data[end:a] + data[begin:end]
            case 4:
                data[begin:end] = rng.choice([*(str(n).encode() for n in _EXTREMES), b"-1", b"1e999", b"NaN", b"null"])
            case 5:
                data[begin:begin] = b"[" * rng.choice([1, 2, 40, 5000])
            case 6:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 7:
                del data[rng.randrange(len(data)) + 1:]
    return bytes(data)


def put_program(rng: random.Random, programs: list[Frame]) -> str:
    """Have a mutated recorded program read as the bench does before it runs anything."""
    try:
        parse(read_program(mutated_program(rng, rng.choice(programs))))
    except ProgramError:
        return "refused"
    return "read"


@dataclass
class Worst:
    """Of all cases: how they ended, the longest in seconds of this process, MiB by which its peak grew."""

    ends: Counter[str]
    seconds: float
    grown: int


def run(frames: int, seed: int) -> Worst:
    """Put ``frames`` mutated frames of a recorded session, a tenth of them programs."""
    answers, programs = recorded()
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    before, longest = _peak(), 0.0
    for end, seconds in _cases(rng, frames, answers, programs):
        ends[end] += 1
        longest = max(longest, seconds)
    return Worst(ends, longest, _peak() - before)


def _cases(rng: random.Random, frames: int, answers: list[Frame], programs: list[Frame]) -> Iterator[tuple[str, float]]:
    for n in range(frames):
        began = time.process_time()
        end = put_program(rng, programs) if n % 10 == 0 else put(rng, answers)
        yield end, time.process_time() - began


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    started = time.process_time()
    print(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1), f"{time.process_time() - started:.0f} s")
