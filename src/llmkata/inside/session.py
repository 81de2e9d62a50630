"""One submission, imported and asked. Requests and answers are plain data; no grader, reference or secret is here.

The same class serves a sandboxed worker process and the loopback transport (``pytest exercises/...``), so a check
means the same in both.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import linecache
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkata.wire import TRUSTED, UNTRUSTED, Encoder, Kind, decode
from llmkata.wire.encode import plain_relative

from . import allocator
from .capture import Capture
from .differentiate import vjp
from .failure import describe
from .forbid import Guard
from .instruments import counted_steps, traced_peak
from .objects import Objects
from .recorder import Recorder

#: Elements taken at most from one ``iterate`` request.
_ITERATE_CAP = 100_000


@functools.lru_cache(maxsize=16)
def _compiled(text: str, filename: str) -> types.CodeType:
    """One process may open a file several times: for budgets, or once for each known mistake in it."""
    return compile(text, filename, "exec", dont_inherit=True)


class Session:
    """Answers requests about one submission.

    ``callback(ident, args, kwargs)`` reaches the grader; ``capture`` is None where prints go to the terminal.
    """

    def __init__(self, callback: Callable[[int, tuple, dict], Any], capture: Capture | None) -> None:
        self.objects = Objects(callback)
        self.capture = capture
        #: Number of the request being answered; call-backs carry it.
        self.seq = 0
        self.module: types.ModuleType | None = None
        self.filename = ""
        #: Files of the code that was patched into the submission: known mistakes.
        self._patched: set[str] = set()
        self._guard = Guard({}, {}, {})
        self._probes: dict[str, Callable] = {}
        self._recorder: Recorder | None = None
        self._inputs = itertools.count()
        self._prepared: tuple[Callable, tuple, dict] | None = None
        self._held: Any = None
        self.last_error: BaseException | None = None

    def answer(self, body: bytes | bytearray) -> tuple[Kind, bytearray]:
        """One request -> one answer. Every exception of the learner's code becomes data, SystemExit included."""
        self.last_error = None
        try:
            request = decode(body, self.objects, TRUSTED)
            if "next_id" in request:
                self.objects.next_id = request["next_id"]
            result = getattr(self, "_" + request["op"])(request)
            return Kind.result, self.encode(self._answer(result))
        except BaseException as e:  # noqa: BLE001 - includes SystemExit, KeyboardInterrupt, PanicException
            self.last_error = e
            return Kind.error, self.encode(self._answer(describe(e, self.filename, Path(self.filename).name)))

    def encode(self, value: Any) -> bytearray:
        """Bytes of a value of the learner's, under the limits of an untrusted message."""
        encoder = Encoder(self.objects.write, UNTRUSTED)
        encoder.value(value)
        return encoder.out

    def _answer(self, result: Any) -> dict[str, Any]:
        out = {"value": result}
        if self.capture is not None and (printed := self.capture.take()):
            out["printed"] = printed
        if self._guard.violations:
            out["banned"] = self._guard.violations[:5]
            self._guard.violations = []
        return out

    # -- opening ---------------------------------------------------------------------------------------------------

    def _open(self, r: dict) -> Any:
        """Import the submission from its source. The module stands in sys.modules before it runs: dataclasses ask."""
        if self.module is not None:
            raise RuntimeError("a session holds one submission")
        name, source, self.filename = r["name"], r["source"], r["filename"]
        forbid = r.get("forbid") or {}
        self._guard = Guard(forbid.get("functions", {}), forbid.get("operators", {}), forbid.get("modules", {}),
                            tuple(forbid.get("allow_in", ())))
        module = types.ModuleType(name)
        module.__file__ = self.filename
        text = source.decode("utf-8-sig") if isinstance(source, bytes) else source
        linecache.cache[self.filename] = (len(text), None, text.splitlines(True), self.filename)
        self._guard.fit_imports(module, self.filename)
        sys.modules[name] = module
        self.module = module
        if self.capture is not None:  # a process of its own
            sys.argv = [self.filename]
        with self._running():
            self._guard.read(text, self.filename)
            exec(_compiled(text, self.filename), module.__dict__)  # noqa: S102
        return self._names(r)

    def _patch(self, r: dict) -> None:
        """Run more source in the module's namespace and bind what it defines (wrong implementations of the course)."""
        scope = self.module.__dict__
        targets = {target: self._owner(target) for target in r["bind"]}
        scope["original"] = getattr(*next(iter(targets.values())))
        exec(compile(r["source"], r["filename"], "exec", dont_inherit=True), scope)  # noqa: S102
        self._patched.add(r["filename"])
        for target, path in r["bind"].items():
            value: Any = self.module
            for part in path.split("."):
                value = inspect.getattr_static(value, part) if value is not self.module else getattr(value, part)
            setattr(*targets[target], value)

    def _owner(self, target: str) -> tuple[Any, str]:
        *path, last = target.split(".")
        owner: Any = self.module
        for part in path:
            owner = getattr(owner, part)
        return owner, last

    def _names(self, _: dict) -> dict[str, list[str]]:
        """Public names of the module by what they are."""
        out: dict[str, list[str]] = {"functions": [], "classes": [], "values": []}
        for name, v in vars(self.module).items():
            if name.startswith("_") or isinstance(v, types.ModuleType):
                continue
            kind = "classes" if isinstance(v, type) else "functions" if callable(v) else "values"
            out[kind].append(name)
        return out

    # -- asking ----------------------------------------------------------------------------------------------------

    def _target(self, r: dict) -> Any:
        obj = self.module if r.get("target") is None else r["target"]
        for part in r["path"].split(".") if r.get("path") else ():
            obj = getattr(obj, part)
        return obj

    def _call(self, r: dict) -> Any:
        args, kwargs = r["args"], r["kwargs"]
        self._note_inputs((args, kwargs))
        with self._running():
            result = self._target(r)(*args, **kwargs)
        if r.get("echo"):
            result = (result, args)
        self._note_outputs(result)
        return result

    def _get(self, r: dict) -> Any:
        with self._running():
            value = self._target(r)
        self._note_outputs(value)
        return value

    def _set(self, r: dict) -> None:
        with self._running():
            setattr(self._target(r), r["name"], r["value"])

    def _iterate(self, r: dict) -> list:
        with self._running():
            items = list(itertools.islice(iter(self._target(r)), _ITERATE_CAP))
        self._note_outputs(items)
        return items

    def _vjp(self, r: dict) -> Any:
        self._note_inputs((r["args"], r["kwargs"], r["cotangents"]))
        with self._running():
            fn = self._target(r)
            module = fn if r.get("parameters") else None
            outputs, grads, by_name = vjp(fn, r["args"], r["kwargs"], r["wrt"], r["cotangents"], module)
        self._note_outputs((outputs, grads, by_name))
        return (outputs, grads, by_name) if r.get("parameters") else (outputs, grads)

    def _run(self, r: dict) -> Any:
        """Run a probe of the grader, shipped by source, on the learner's module."""
        probe = self._probes.get(r["source"])
        if probe is None:
            scope: dict[str, Any] = {"__name__": "probe"}
            linecache.cache["<probe>"] = (len(r["source"]), None, r["source"].splitlines(True), "<probe>")
            exec(compile(r["source"], "<probe>", "exec", dont_inherit=True), scope)  # noqa: S102
            probe = self._probes[r["source"]] = scope[r["name"]]
        self._note_inputs((r["args"], r["kwargs"]))
        with self._running():
            result = probe(self.module, *r["args"], **r["kwargs"])
        self._note_outputs(result)
        return result

    # -- a measured call in three steps, so that decoding and encoding are not part of it ---------------------------

    def _give_back(self, _: dict) -> None:
        """Memory is about to be read from outside."""
        allocator.give_back()

    def _prepare(self, r: dict) -> None:
        self._prepared = (self._target(r), r["args"], r["kwargs"])

    def _execute(self, r: dict) -> int | None:
        fn, args, kwargs = self._prepared
        self._prepared, self._held = None, None

        def run() -> Any:
            return fn(*args, **kwargs)

        with self._running():
            if r.get("instrument") == "traced_peak":
                self._held, measured = traced_peak(run)
            elif r.get("instrument") == "steps":
                self._held, measured = counted_steps(run, {self.filename, *self._patched})
            else:
                self._held, measured = run(), None
        return measured

    def _fetch(self, _: dict) -> Any:
        held, self._held = self._held, None
        return held

    # -- recording -------------------------------------------------------------------------------------------------

    def _record(self, r: dict) -> None:
        self._recorder = Recorder(self.filename)
        self._inputs = itertools.count()

    def _segment(self, r: dict) -> None:
        getattr(self._recorder, "end" if r["end"] else "begin")(r["name"])

    def _program(self, _: dict) -> bytes:
        """The recorded program as JSON: the grader passes it on to the bench without reading it."""
        recorder, self._recorder = self._recorder, None
        return json.dumps(recorder.finish(), separators=(",", ":")).encode()

    def _note_inputs(self, tree: Any) -> None:
        if self._recorder is not None:
            for t in tensors(tree):
                self._recorder.input(t, str(next(self._inputs)))

    def _note_outputs(self, tree: Any) -> None:
        if self._recorder is not None:
            for t in tensors(tree):
                self._recorder.output(t)

    # -- housekeeping ----------------------------------------------------------------------------------------------

    def _seed(self, r: dict) -> None:
        random.seed(r["seed"])
        np.random.seed(r["seed"] % (1 << 32))
        if torch.cuda.is_initialized():
            torch.manual_seed(r["seed"])
        else:
            # manual_seed keeps a call with its formatted stack for each kind of device that is not in use: 4 ms a check.
            torch.default_generator.manual_seed(r["seed"])

    def _methods(self, r: dict) -> list[str]:
        return self.objects.methods(r["class_key"])

    def _release(self, r: dict) -> None:
        self.objects.release(r["handles"])

    def _read_file(self, r: dict) -> bytes:
        path = Path(r["path"])
        with path.open("rb") as f:
            return f.read(r["limit"])

    @contextlib.contextmanager
    def _running(self) -> Any:
        """Guards, prints and the recorder around the learner's code."""
        with contextlib.ExitStack() as stack:
            if self.capture is not None:
                stack.enter_context(contextlib.redirect_stdout(self.capture))
                stack.enter_context(contextlib.redirect_stderr(self.capture))
            if self._recorder is not None:
                stack.enter_context(self._recorder)
            if self._guard.watches:
                stack.enter_context(self._guard)
            yield


def tensors(tree: Any) -> Any:
    """The tensors of nested tuples, lists, dicts and dataclass-like records, in a fixed order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for x in tree:
            yield from tensors(x)
    elif isinstance(tree, dict):
        for x in tree.values():
            yield from tensors(x)
    elif hasattr(type(tree), "__dataclass_fields__"):
        for name in type(tree).__dataclass_fields__:
            yield from tensors(getattr(tree, name, None))
    elif (plain := plain_relative(tree)) is not None:
        yield from tensors(plain)
