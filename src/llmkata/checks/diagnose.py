"""Which known mistake gives exactly these answers?

The requests of the failing (shrunk) case are put to each wrong implementation, in a worker of ours. One whose every
answer equals the learner's within tolerance, while the model answer's differs somewhere by more than five times that,
names the mistake. Several matches that are not declared equivalent name none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from llmkata.outside.link import Link
from llmkata.outside.remote import RemoteError, WorkerGone
from llmkata.records import Diagnosis

from .compare import close
from .misconceptions import Misconception

#: Seconds one diagnosis may take.
_ALLOWANCE = 6.0
_APART = 5.0

_FAILED = object()


def diagnose(learner: Link, misconceptions: Sequence[Misconception], ours: Callable[[Misconception | None], Link],
             ) -> Diagnosis | None:
    """Name the mistake behind the last check of ``learner``, or None. ``ours(None)`` is the model answer's link."""
    transcript = learner.transcript
    if not transcript.complete or not misconceptions:
        return None
    until = time.monotonic() + _ALLOWANCE
    requests = [e.request for e in transcript.exchanges]
    answers = [_answer(learner, e.answer) for e in transcript.exchanges]
    right = _replay(ours(None), learner, requests, until)
    apart = [i for i, (a, r) in enumerate(zip(answers, right)) if not close(a, r, _APART)]
    if len(right) < len(answers) and not apart:
        return None
    if not apart:
        return None
    matches = []
    for m in misconceptions:
        if m.matches is None and time.monotonic() < until and _equal(ours(m), learner, requests, answers, until):
            matches.append(m)
    return choose(matches)


def choose(matches: Sequence[Misconception]) -> Diagnosis | None:
    """The one match, or the first of several that are declared equivalent."""
    if not matches:
        return None
    families = {m.equivalent_to or m.name for m in matches}
    if len(families) > 1:
        return None
    return Diagnosis(matches[0].name, matches[0].feedback)


def _answer(link: Link, data: bytes) -> Any:
    value = link._decode(data)
    inner = value.get("value") if isinstance(value, dict) else None
    if isinstance(inner, dict) and "bases" in inner and "frames" in inner:
        return ("raised", inner["type"])
    return inner


def _ask(link: Link, request: bytes) -> Any:
    try:
        return link.send(request)
    except RemoteError as e:
        return ("raised", e.type_name)
    except WorkerGone:
        return _FAILED
    except Exception:  # noqa: BLE001 - a call-back of the check that refuses this implementation's calls
        return _FAILED


def _replay(link: Link, learner: Link, requests: Sequence[bytes], until: float) -> list[Any]:
    out = []
    _prepare(link, learner)
    for request in requests:
        if time.monotonic() > until:
            break
        out.append(_ask(link, request))
    return out


def _equal(link: Link, learner: Link, requests: Sequence[bytes], answers: Sequence[Any], until: float) -> bool:
    _prepare(link, learner)
    for request, answer in zip(requests, answers):
        if time.monotonic() > until or not close(_ask(link, request), answer):
            return False
    return True


def _prepare(link: Link, learner: Link) -> None:
    link.share_callbacks(learner)
    link.begin_check(0)
