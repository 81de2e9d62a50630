"""``feedback.json``: what a released repository knows of hints and mistakes, without holding any answer.

For each visible check and each known mistake that fails it, the file holds the *wrong* answers to the check's requests.
A learner whose answers are those is told what the mistake is called. Format ``llmkata/feedback/v1``::

    {"schema": "llmkata/feedback/v1", "exercise": "module2/self_attention", "made_from": "<form of requests>:<hash of the sources>",
     "checks": [{"id", "title", "task", "hints": [...]}],
     "mistakes": [{"name", "feedback", "equivalent_to": null | "name",
                   "answers": {"<check id>": [["<request digest>", "<answer, base64 of the wire>"], ...]}}]}
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkata.outside.link import Link
from llmkata.outside.transcript import Exchange
from llmkata.records import Diagnosis
from llmkata.wire import Kind, decode, encode

from .compare import distance
from .diagnose import Raised, answer_of

SCHEMA = "llmkata/feedback/v1"
#: Wrong answers larger than this (all of one check and mistake) are left out.
_CAP = 48 << 10


def digest(request: bytes) -> str:
    """Digest of a request, 16 hex digits."""
    return hashlib.sha256(request).hexdigest()[:16]


def answers(exchanges: Sequence[Exchange]) -> list[list[str]] | None:
    """The exchanges of a failed check as they are stored; None where they are too large."""
    if sum(len(e.answer) for e in exchanges) > _CAP:
        return None
    return [[digest(e.request), base64.b64encode(_told(e)).decode()] for e in exchanges]


def _told(exchange: Exchange) -> bytes:
    """The answer; an error without its frames, which quote the model answer line by line."""
    if exchange.kind is not Kind.error:
        return exchange.answer
    error = decode(exchange.answer)["value"]
    return bytes(encode({"value": error | {"frames": []}}))


def diagnose(link: Link, check: str, path: Path) -> Diagnosis | None:
    """The mistake whose stored answers to ``check`` are the learner's, or None."""
    if not path.exists() or not link.transcript.complete:
        return None
    exchanges = link.transcript.exchanges
    matches = [m for m in json.loads(path.read_text("utf-8"))["mistakes"] if _same(link, exchanges, m["answers"].get(check))]
    if not matches or len({m["equivalent_to"] or m["name"] for m in matches}) > 1:
        return None
    return Diagnosis(matches[0]["name"], matches[0]["feedback"])


def _same(link: Link, exchanges: Sequence[Exchange], stored: list[list[str]] | None) -> bool:
    if not stored or len(stored) != len(exchanges):
        return False
    return all(digest(e.request) == request and _same_answer(answer_of(link, e.answer),
                                                             answer_of(link, base64.b64decode(answer)))
               for e, (request, answer) in zip(exchanges, stored))


def _same_answer(learners: Any, stored: Any) -> bool:
    if isinstance(learners, Raised):
        return learners.tells(stored)
    return distance(learners, stored) <= 1.0
