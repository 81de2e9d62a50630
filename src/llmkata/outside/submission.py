"""The proxy that graders see as ``submission``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from .link import Link
from .probe import probe_source
from .remote import MissingName, Remote, RemoteFunction


class Submission:
    """The learner's module, wherever it runs. ``submission.attention(q, k, v)`` asks it.

    Plain data, arrays and tensors come back rebuilt from exact types; other objects stay where they are and come back
    as handles (:class:`Remote`), dataclasses and named tuples as records with their fields.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        names = self._link.open()
        if name in names["functions"] or name in names["classes"]:
            return RemoteFunction(self._link, None, name)
        if name in names["values"]:
            return self._link.get(None, name)
        raise MissingName(self._link.label, name)

    def _require(self, name: str) -> None:
        names = self._link.open()
        if name not in names["functions"] and name not in names["classes"]:
            raise MissingName(self._link.label, name)

    def call(self, name: str, *args: Any, echo: bool = False, **kwargs: Any) -> Any:
        """Call by name. With ``echo`` -> (result, the positional arguments as they are after the call)."""
        self._require(name)
        return self._link.call(None, name, args, kwargs, **({"echo": True} if echo else {}))

    def vjp(self, fn: str | Remote | RemoteFunction, args: Sequence[Any], kwargs: dict[str, Any] | None = None, *,
            wrt: Sequence[int] = (0,), cotangents: Any = None, parameters: bool = False) -> Any:
        """Forward, then gradients for given cotangents.

        -> (outputs, gradients of args[i] for i in wrt), and with ``parameters`` a dict of the module's gradients by
        parameter name. ``cotangents`` are nested like the outputs, None where nothing flows back; a gradient is None
        where the output does not depend on the argument.
        """
        target, path = None, fn
        if isinstance(fn, Remote):
            target, path = fn, ""
        elif isinstance(fn, RemoteFunction):
            target, path = fn._target, fn._path
        else:
            self._require(fn)
        return self._link.vjp(target, path, tuple(args), dict(kwargs or {}), tuple(wrt), cotangents, parameters)

    def run(self, probe: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a probe (a function marked ``@probe``) beside the submission; its first argument is the module.

        A submission's own function called ``run`` is meant where the first argument is no probe. Other names taken by
        this proxy (``call``, ``vjp``, ``segment``, ``read_file``) are reached by ``submission.call(name, ...)``.
        """
        if not hasattr(probe, "__kata_probe__") and "run" in self._link.open()["functions"]:
            return self._link.call(None, "run", (probe, *args), kwargs)
        name, source = probe_source(probe)
        self._link.open()
        return self._link.ask("run", name, name=name, source=source, args=args, kwargs=kwargs)

    def read_file(self, path: str, limit: int = 8 << 20) -> bytes:
        """Bytes of a file the submission wrote (``limit`` at most). Hostile input: do not parse it in the judge."""
        return self._link.ask("read_file", "read_file", path=str(path), limit=limit)

    @contextlib.contextmanager
    def segment(self, name: str) -> Any:
        """Mark a part of a recorded scenario; without a recording it does nothing."""
        self._link.mark_segment(name, end=False)
        try:
            yield
        finally:
            self._link.mark_segment(name, end=True)
