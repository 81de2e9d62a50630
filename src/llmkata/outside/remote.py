"""What a grader holds of a submission: errors, objects that stay in the worker, and records of their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .link import Link


class RemoteError(Exception):
    """The learner's code raised. Nothing of its class crosses: names, message and own frames only."""

    def __init__(self, type_name: str, bases: list[str], message: str, frames: list[tuple[int, str, str]],
                 label: str) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name, self.bases, self.message, self.frames, self.label = type_name, bases, message, frames, label

    def is_a(self, error: type[BaseException]) -> bool:
        """Whether the learner's exception is a (subclass of the) builtin ``error``."""
        return error.__name__ in self.bases

    @property
    def out_of_memory(self) -> bool:
        """Whether memory could not be had: MemoryError (NumPy's too), or what torch's allocator raises."""
        return self.is_a(MemoryError) or (self.type_name == "RuntimeError" and "DefaultCPUAllocator" in self.message)

    def where(self) -> list[str]:
        """Own frames as ``file:line in function: text``, innermost last."""
        return [f"{self.label}:{line}" + (f" in {function}" if function else "") + f": {text}"
                for line, function, text in self.frames]


class MissingName(RemoteError):
    """The submission does not define a name of the contract."""

    def __init__(self, label: str, name: str) -> None:
        super().__init__("MissingName", ["AttributeError"], f"{label} does not define `{name}`", [], label)


class WorkerGone(BaseException):
    """The worker is late, dead or broke the protocol. A BaseException: neither shrunk nor retried by Hypothesis."""

    def __init__(self, cause: str, kind: str) -> None:
        super().__init__(cause)
        #: One sentence for the learner.
        self.cause = cause
        #: "late" | "died" | "memory" | "protocol"
        self.kind = kind


class RemoteFunction:
    """Something of the learner's that can be called: a function, class, or method."""

    def __init__(self, link: Link, target: Remote | None, path: str) -> None:
        self._link, self._target, self._path = link, target, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.call(self._target, self._path, args, kwargs)

    def __getattr__(self, name: str) -> RemoteFunction:
        if name.startswith("__"):
            raise AttributeError(name)
        return RemoteFunction(self._link, self._target, f"{self._path}.{name}")

    def __repr__(self) -> str:
        return f"<{self._path} of the submission>"


class Remote:
    """An object of the learner's that stays where it is. Attributes, calls, items and iteration are requests."""

    def __init__(self, link: Link, ident: int, type_name: str, class_key: int) -> None:
        self.__dict__.update(_link=link, _id=ident, _type=type_name, _class_key=class_key, _epoch=link.epoch)
        link.hold(ident)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._link.methods(self._class_key):
            return RemoteFunction(self._link, self, name)
        return self._link.get(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.set(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.call(self, "", args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self._link.call(self, "__getitem__", (key,), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.call(self, "__setitem__", (key, value), {})

    def __contains__(self, item: Any) -> bool:
        return bool(self._link.call(self, "__contains__", (item,), {}))

    def __len__(self) -> int:
        n = self._link.call(self, "__len__", (), {})
        if type(n) is not int or n < 0:
            raise TypeError("the submission's __len__ did not return a length")
        return n

    def __iter__(self) -> Any:
        return iter(self._link.iterate(self))

    def __del__(self) -> None:
        if self._epoch == self._link.epoch:  # else the worker it came from is gone
            self._link.let_go(self._id)

    def __repr__(self) -> str:
        return f"<{self._type} of the submission>"


class Record(Remote):
    """A dataclass or named tuple of the learner's: its fields are here, the object itself stays where it is."""

    def __init__(self, link: Link, ident: int, type_name: str, fields: dict[str, Any]) -> None:
        super().__init__(link, ident, type_name, 0)
        self.__dict__.update(_fields=fields)

    @property
    def _handle(self) -> Remote:
        return Remote(self._link, self._id, self._type, self._class_key)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__["_fields"]
        if name in fields:
            return fields[name]
        return super().__getattr__(name)

    def __getitem__(self, key: Any) -> Any:
        return list(self._fields.values())[key]

    def __len__(self) -> int:
        return len(self._fields)

    def __iter__(self) -> Any:
        return iter(self._fields.values())

    def __repr__(self) -> str:
        return f"{self._type}({', '.join(f'{k}={v!r}' for k, v in self._fields.items())})"
