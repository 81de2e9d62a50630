"""The learner's objects as the other side sees them: handles, and records for dataclasses and named tuples."""

from __future__ import annotations

import dataclasses
import enum
import pickle
from collections.abc import Callable
from typing import Any

from llmkata.wire import Encoder, Hooks, WireError, tags

#: Packages whose objects are well known enough to be named as bases of an error or class.
_KNOWN = ("builtins", "torch", "numpy", "dataclasses")


class GraderSaid(Exception):
    """A call-back of the grader raised; the grader has recorded it already, whatever is done with this."""


class Objects(Hooks):
    """Numbers the objects that stay here. The grader chooses where numbering goes on (``next_id``), so that the same
    requests give the same handles in another worker."""

    def __init__(self, callback: Callable[[int, tuple, dict], Any]) -> None:
        self._by_id: dict[int, Any] = {}
        self._ids: dict[int, int] = {}
        self._classes: dict[type, int] = {}
        self.next_id = 1
        self._callback = callback

    def put(self, obj: Any) -> int:
        """The handle of ``obj``; the same object keeps its handle."""
        ident = self._ids.get(id(obj))
        if ident is None or self._by_id.get(ident) is not obj:
            ident, self.next_id = self.next_id, self.next_id + 1
            self._by_id[ident] = obj
            self._ids[id(obj)] = ident
        return ident

    def get(self, ident: int) -> Any:
        """The object behind a handle. Raises WireError for one that is not there."""
        try:
            return self._by_id[ident]
        except KeyError:
            raise WireError(f"no object has the handle {ident}") from None

    def release(self, idents: list[int]) -> None:
        """Forget objects the grader no longer holds."""
        for ident in idents:
            obj = self._by_id.pop(ident, None)
            if obj is not None and self._ids.get(id(obj)) == ident:
                del self._ids[id(obj)]

    def class_key(self, cls: type) -> int:
        """A number for a class, with which the grader asks once for its method names."""
        return self._classes.setdefault(cls, len(self._classes) + 1)

    def methods(self, key: int) -> list[str]:
        """Names of the callables of the class with that key."""
        for cls, k in self._classes.items():
            if k == key:
                return sorted(n for n in dir(cls) if callable(getattr(cls, n, None)))
        return []

    # What comes from the grader.
    def handle(self, ident: int, type_name: str, class_key: int) -> Any:
        return self.get(ident)

    def callback(self, ident: int) -> Any:
        def call_back(*args: Any, **kwargs: Any) -> Any:
            return self._callback(ident, args, kwargs)

        return call_back

    @staticmethod
    def settle_callback(answer: Any, failed: bool, kwargs: dict[str, Any]) -> Any:
        """The result of a call-back: arrays it wrote to (``out=``) are written here too, and returned as themselves."""
        if failed:
            raise GraderSaid(answer)
        for name, values in answer["written"].items():
            kwargs[name][...] = values
        return kwargs[answer["itself"]] if answer["itself"] is not None else answer["value"]

    def pickled(self, data: bytes) -> Any:
        # Sent by the trusted side only (objects of installed libraries); nothing is unpickled in the other direction.
        return pickle.loads(data)

    def write(self, e: Encoder, v: Any, depth: int) -> None:
        """The encoder's fallback: an enum member as its value, a record, else a handle.

        A record within itself (a node that knows its parent), or nested deeper than half of what is allowed, is a handle.
        """
        if isinstance(v, enum.Enum):
            e.out += tags.KIN
            e.string(f"{type(v).__name__}.{v.name}")
            e.value(v.value, depth + 1)
            return
        fields = _fields(v)
        if fields is not None and id(v) not in e.open and depth <= e.limits.max_depth // 2:
            e.open.add(id(v))
            e.out += tags.RECORD
            e.string(type(v).__name__)
            e.out += self.put(v).to_bytes(8, "little") + len(fields).to_bytes(4, "little")
            for name, x in fields.items():
                e.string(name)
                e.value(x, depth + 1)
            e.open.discard(id(v))
            return
        e.out += tags.HANDLE + self.put(v).to_bytes(8, "little")
        e.string(type(v).__name__)
        e.out += self.class_key(type(v)).to_bytes(8, "little")


def _fields(v: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(v) and not isinstance(v, type):
        return {f.name: getattr(v, f.name, None) for f in dataclasses.fields(v)}
    names = getattr(type(v), "_fields", None)
    if isinstance(v, tuple) and isinstance(names, tuple):
        return dict(zip(names, tuple(v)))
    return None


def known_bases(cls: type) -> list[str]:
    """Names of the class's bases that everybody knows ("ValueError", "torch.OutOfMemoryError")."""
    out = []
    for c in cls.__mro__:
        module = getattr(c, "__module__", "")
        if module == "builtins":
            out.append(c.__name__)
        elif module.split(".")[0] in _KNOWN:
            out.append(f"{module}.{c.__name__}")
    return out
