"""A session in this process, asked as a worker is asked."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

import pytest

from llmkata.inside.capture import Capture
from llmkata.inside.session import Session
from llmkata.wire import TRUSTED, Encoder, Hooks, Kind, WireError, decode, encode, tags


class Ref:
    """A handle, as this side holds it."""

    def __init__(self, ident: int, type_name: str, class_key: int = 0) -> None:
        self.id, self.type, self.class_key, self.fields = ident, type_name, class_key, {}


class _Outside(Hooks):
    def handle(self, ident, type_name, class_key):
        return Ref(ident, type_name, class_key)

    def record(self, type_name, ident, fields):
        ref = Ref(ident, type_name)
        ref.fields = fields
        return ref


class Raised(Exception):
    """What the learner's code raised, as described."""

    def __init__(self, described: dict[str, Any]) -> None:
        super().__init__(f"{described['type']}: {described['message']}")
        self.__dict__.update(described)


class Callback:
    """Stands for a function of the grader."""

    def __init__(self, ident: int) -> None:
        self.id = ident


def _fallback(e: Encoder, v: Any, depth: int) -> None:
    if isinstance(v, Ref):
        e.out += tags.HANDLE + v.id.to_bytes(8, "little")
        e.string(v.type)
        e.out += v.class_key.to_bytes(8, "little")
    elif isinstance(v, Callback):
        e.out += tags.CALLBACK + v.id.to_bytes(8, "little")
    else:
        raise WireError(f"{v!r} cannot be sent")


class Talk:
    """Requests to a session and their answers. ``parts`` are those of the last answer."""

    _names = itertools.count()

    def __init__(self, source: str | bytes = "", *, capture: bool = True, callbacks: dict[int, Any] | None = None,
                 **options: Any) -> None:
        self.callbacks = callbacks or {}
        self.session = Session(lambda ident, args, kwargs: self.callbacks[ident](*args, **kwargs),
                               Capture() if capture else None)
        self.parts: dict[str, Any] = {}
        self.name = f"learner_{next(self._names)}"
        source = textwrap.dedent(source) if isinstance(source, str) else source
        self.names = self("open", name=self.name, filename=f"{self.name}.py", source=source, **options)

    def __call__(self, op: str, **fields: Any) -> Any:
        kind, answer = self.session.answer(encode({"op": op, **fields}, _fallback, TRUSTED))
        self.parts = decode(answer, _Outside())
        if kind is Kind.error:
            raise Raised(self.parts["value"])
        return self.parts["value"]

    def call(self, path: str, *args: Any, target: Ref | None = None, **kwargs: Any) -> Any:
        return self("call", target=target, path=path, args=args, kwargs=kwargs)


@pytest.fixture
def talk(monkeypatch):
    """``talk(source)`` opens it in a session of this process; ``sys.argv`` and prints are put back."""
    monkeypatch.setattr("sys.argv", ["pytest"])
    return Talk
