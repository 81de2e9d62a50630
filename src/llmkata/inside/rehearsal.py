"""What a template does once so that each of its workers need not: answer requests about a file of ours.

The first call of a function of torch's loads what it needs, the interpreter adapts the code it runs, types fill their
caches: in a fork each of these costs a page that is copied besides. Nothing of it is left but that.
"""

from __future__ import annotations

import linecache
import sys
from typing import Any

import torch

from llmkata.wire import Kind, encode

from .capture import Capture
from .session import Session

#: Calls after which the interpreter has adapted code to what it is used for (8 in CPython 3.11).
_TIMES = 10
_NAME = "kata_rehearsal"
_SOURCE = b'''\
import torch


class Counter:
    def __init__(self, start):
        self.value = start

    def add(self, n):
        self.value += n
        return self.value


def attention(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1) @ v


def refuse(x):
    raise ValueError(f"no: {x}")
'''


def rehearse() -> None:
    """Import a file and answer requests about it. Raises RuntimeError where one is not answered as it should be."""
    shown = sys.argv
    session = Session(_nobody, Capture())
    q = torch.ones(2, 3, requires_grad=False)
    three = {"args": (q, q, q), "kwargs": {}}
    try:
        _ask(session, op="open", name=_NAME, source=_SOURCE, filename=f"{_NAME}.py", forbid={"functions": {"torch.einsum": ""}})
        for _ in range(_TIMES):
            _ask(session, op="seed", seed=0)
            _ask(session, op="call", path="attention", **three)
            _ask(session, op="vjp", path="attention", wrt=(0, 1, 2), cotangents=q, **three)
            _ask(session, op="call", path="Counter", args=(1,), kwargs={})
            _ask(session, Kind.error, op="call", path="refuse", args=([1, 2.0, "three"],), kwargs={})
        _ask(session, op="record")
        _ask(session, op="call", path="attention", **three)
        _ask(session, op="program")
    finally:
        sys.argv = shown
        sys.modules.pop(_NAME, None)
        linecache.cache.pop(f"{_NAME}.py", None)


def _ask(session: Session, kind: Kind = Kind.result, **request: Any) -> None:
    answered, body = session.answer(encode(request))
    if answered is not kind:
        raise RuntimeError(f"the rehearsal fails at {request['op']}: {bytes(body)!r}")


def _nobody(*_: Any) -> None:
    raise RuntimeError("the rehearsal hands in no function")
