"""Which known mistake gives exactly these answers?

The requests of the failing (shrunk) case are put to each wrong implementation. One whose every answer equals the
learner's within tolerance, while the model answer's is somewhere more than five times further away, names the mistake.
Several matches that are not declared equivalent name none.

Wrong implementations and the model answer are ours: they run in this process, without the cost of a worker.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkata.outside.link import Link
from llmkata.outside.remote import RemoteError, WorkerGone
from llmkata.records import Diagnosis

from .compare import distance
from .context import current
from .misconceptions import Misconception

#: CPU seconds one diagnosis may take, and how many times as long by the wall clock: a busy machine hides no name.
_ALLOWANCE, _PATIENCE = 20.0, 6.0
#: Bytes by which the judge may grow meanwhile.
_ROOM = 1 << 30
#: The model answer must be this many times further from the learner's answer than the wrong one is...
_APART = 5.0
#: ...and at least this far, in units of the default tolerance.
_FLOOR = 0.2

_FAILED = object()


class _TooLong(BaseException):
    """A wrong implementation of ours does not come to an end on what the learner's failed on."""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt, after ``seconds`` and every second from then on, what runs in this process without a deadline."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _room(extra: int) -> Iterator[None]:
    """Let this process grow by ``extra`` bytes at most: what a learner answered may be handed on as a size."""
    try:
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [x for x in (soft, hard, held + extra) if x != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@dataclass(frozen=True)
class Raised:
    """An exception in the place of an answer. Equal by type: messages and lines differ from file to file."""

    type_name: str
    message: str = field(compare=False)

    def tells(self, other: Any) -> bool:
        """Whether it is evidence for the mistake that raised ``other``: a ValueError alone has many reasons."""
        return isinstance(other, Raised) and self.message == other.message


def diagnose(learner: Link, misconceptions: Sequence[Misconception], ours: Callable[[Misconception | None], Link],
             ) -> Diagnosis | None:
    """Name the mistake behind the last check of ``learner``, or None. ``ours(None)`` is the model answer's link."""
    transcript = learner.transcript
    if not transcript.complete or not misconceptions:
        return None
    try:
        # In a folder of its own: what a model answer writes is nobody's.
        with _alarm(_PATIENCE * _ALLOWANCE), _room(_ROOM), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            return _named(learner, misconceptions, ours, time.process_time() + _ALLOWANCE)
    except _TooLong:
        return None


def _named(learner: Link, misconceptions: Sequence[Misconception], ours: Callable[[Misconception | None], Link],
           until: float) -> Diagnosis | None:
    transcript = learner.transcript
    requests = [e.request for e in transcript.exchanges]
    answers = [answer_of(learner, e.answer) for e in transcript.exchanges]
    right = ours(None)
    with _functions_run(right.filename) as ran:
        replayed = _replay(right, learner, requests, until)
    wrong_by = [distance(a, r) for a, r in zip(answers, replayed)]
    if max(wrong_by, default=0.0) < _FLOOR:
        return None
    matches = []
    for m in misconceptions:
        if m.matches is not None or time.process_time() > until or not _reached(m, ran):
            continue
        if _matches(ours(m), learner, requests, answers, wrong_by, until):
            matches.append(m)
    return choose(matches)


@contextlib.contextmanager
def _functions_run(filename: str) -> Iterator[set[str]]:
    """Collects the qualified names of the functions of ``filename`` that run meanwhile."""
    ran: set[str] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == filename:
            ran.add(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)


def _reached(m: Misconception, ran: set[str]) -> bool:
    """Whether something that ``m`` replaces takes part in these requests: what never runs explains nothing. A class
    may matter without a function of its own running (its fields), so it always counts."""
    return any(target in ran or target[0].isupper() and "." not in target for target in m.replaces)


def choose(matches: Sequence[Misconception]) -> Diagnosis | None:
    """The one match, or the first of several that are declared equivalent."""
    if not matches:
        return None
    families = {m.equivalent_to or m.name for m in matches}
    if len(families) > 1:
        return None
    return Diagnosis(matches[0].name, matches[0].feedback)


def answer_of(link: Link, data: bytes) -> Any:
    """The value of an answer of a transcript, ``Raised`` where it was an error."""
    value = link.peek(data)
    inner = value.get("value") if isinstance(value, dict) else None
    if isinstance(inner, dict) and "bases" in inner and "frames" in inner:
        return Raised(inner["type"], inner["message"])
    return inner


def _ask(link: Link, request: bytes) -> Any:
    try:
        return link.send(request)
    except RemoteError as e:
        return Raised(e.type_name, e.message)
    except WorkerGone:
        return _FAILED
    except Exception:  # noqa: BLE001 - a call-back of the check that refuses this implementation's calls
        return _FAILED


def _replay(link: Link, learner: Link, requests: Sequence[bytes], until: float) -> list[Any]:
    out = []
    _prepare(link, learner)
    for request in requests:
        if time.process_time() > until:
            break
        out.append(_ask(link, request))
    return out


def _matches(link: Link, learner: Link, requests: Sequence[bytes], answers: Sequence[Any], wrong_by: Sequence[float],
             until: float) -> bool:
    """Whether every answer is the learner's, and one of them is far from the model answer's."""
    _prepare(link, learner)
    apart = False
    for request, answer, wrong in zip(requests, answers, wrong_by):
        if time.process_time() > until:
            return False
        theirs = _ask(link, request)
        off = distance(answer, theirs)
        if off > 1.0:
            return False
        tells = answer.tells(theirs) if isinstance(answer, Raised) else True
        apart = apart or (tells and wrong >= _FLOOR and wrong > _APART * off)
    return apart


def _prepare(link: Link, learner: Link) -> None:
    link.begin_check(current().seed)
    link.share_callbacks(learner)
