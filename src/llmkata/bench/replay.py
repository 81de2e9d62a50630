"""Runs a recorded program on fresh inputs and counts what it takes.

This is where the counts of a budget are taken: in a process that the learner's code never entered, from tensors that
this process holds. See :mod:`llmkata.bench.program` for what is checked first, :mod:`llmkata.bench.prices` for what is
charged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmkata.bench.counts import Ledger
from llmkata.bench.fresh import fresh  # noqa: F401 - what a replay's inputs are made with
from llmkata.bench.program import parse
from llmkata.bench.structure import (
    STANDARD,
    Begin,
    Const,
    End,
    Free,
    In,
    Limits,
    Op,
    Out,
    Program,
    ProgramError,
    Ref,
    View,
)
from llmkata.bench.temporaries import Temporaries

#: Stands in memory nobody has written yet. Finite, so that code which masks it away by a product is not punished, and
#: no plausible answer, so that work hidden from the recorder is not found there.
_POISON = 12345.0


class ReplayError(ProgramError):
    """The program cannot be carried out on these inputs, or did not do what was recorded; the reason says what."""


def run(program: Any, inputs: dict[str, Tensor], outputs: Iterable[int] | None = None,
        measure: Iterable[str] = ("counts",), *, seed: int = 0, limits: Limits = STANDARD) -> dict[str, Any]:
    """Replays ``program`` on ``inputs``.

    Args:
        program: plain data as made by ``Recorder.finish`` (untrusted).
        inputs: a tensor per input name of the program, with the recorded dtype and shape; they are not written to.
            Where strides or offset differ from the recorded ones, the values are laid out as recorded. Inputs that
            shared a storage when recorded must share one here (see ``fresh(memo=)``).
        outputs: numbers of the outputs to return (None: all).
        measure: ``"counts"``, and ``"temporaries"`` to let the peak include what operators allocate and free
            internally (read from the allocator's events by torch's profiler; slower).
        seed: of the random operators.
        limits: what the program may take.

    Returns:
        ``{"outputs": [tensor | None, ...], "total": counts, "segments": {name: counts}, "reads": [...],
        "constants": [...], "timeline": [...], "operators": int}`` where ``counts`` is ``{flops, matmul_calls,
        pointwise, bytes_moved, allocated_bytes, peak_bytes, entry_bytes, spots}``; a spot is ``{line, op, flops,
        matmul_calls, pointwise, bytes_moved, allocated_bytes, peak_bytes}``, the last being what memory made there was
        live at the peak. Peaks count what is live beyond the inputs that nothing wrote to, from earlier segments too:
        ``entry_bytes`` is the level at which a segment began. A segment that occurs several times adds up; its peak is
        the highest, its entry the first. ``reads`` lists the values that the recorded run read out of a
        tensor (``.item()``) and that differ here: ``{line, op, recorded, replayed}``; they say why outputs are wrong.
        ``constants``: ``{line, bytes}``. ``timeline``: see ``Program.timeline``.

    Raises:
        RefusedProgram: the recorder refused, or an operator is not in the table.
        ProgramError: the program is malformed, inconsistent or above the limits.
        ReplayError: it cannot be carried out on these inputs.
    """
    parsed = parse(program, limits)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            replay = _Replay(parsed, inputs, outputs, limits)
            if "temporaries" in measure:
                replay.measure_temporaries()
            else:
                replay.run()
            return replay.report()
    finally:
        torch.set_num_threads(threads)


class _Replay:
    def __init__(self, program: Program, inputs: dict[str, Tensor], outputs: Iterable[int] | None,
                 limits: Limits) -> None:
        self.program = program
        self.inputs = inputs
        self.input_storages: dict[int, torch.UntypedStorage] = {}
        self.wanted = None if outputs is None else set(outputs)
        self.limits = limits
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.bound: dict[int, int] = {}  # address of a bound storage -> its number
        self.tensors: dict[int, dict[int, Tensor]] = {}  # storage -> view -> tensor
        #: Storages of inputs that nothing has written to.
        self.inputs_as_they_came: set[int] = set()
        self.ledger = Ledger()
        self.outputs: list[Tensor | None] = []
        self.reads: list[dict[str, Any]] = []
        self.temporaries: Temporaries | None = None

    def measure_temporaries(self) -> None:
        """Runs, and lets the peaks include what operators allocate and free inside."""
        with Temporaries() as self.temporaries:
            self.run()
        self.ledger.add_temporaries(self.temporaries.highs())

    def run(self) -> None:
        """Carries out every event."""
        deadline = time.monotonic() + self.limits.seconds
        steps = {In: self.in_, Const: self.const, Op: self.op, Free: self.free, Out: self.out, Begin: self.begin,
                 End: self.end}
        for event in self.program.events:
            try:
                steps[type(event)](event)
            except ProgramError:
                raise
            except Exception as error:  # noqa: BLE001 - torch raises what it likes on a program made by hand
                raise ReplayError(f"the program cannot be carried out: {_first_line(error)}") from None
            if time.monotonic() > deadline:
                raise ReplayError(f"the replay took more than {self.limits.seconds:g} s")

    def report(self) -> dict[str, Any]:
        """What :func:`run` returns."""
        events = self.program.events
        return {
            "outputs": self.outputs, "total": self.ledger.plain(self.ledger.total),
            "segments": {name: self.ledger.plain(counts) for name, counts in self.ledger.segments.items()},
            "reads": self.reads,
            "constants": [{"line": e.line, "bytes": self.program.storages[e.storage]}
                          for e in events if isinstance(e, Const)],
            "timeline": self.program.timeline, "operators": sum(isinstance(e, Op) for e in events),
        }

    # ---- memory ----------------------------------------------------------------------------------------------------

    def bind(self, number: int, storage: torch.UntypedStorage) -> None:
        self.storages[number] = storage
        self.bound[storage._cdata] = number
        self.tensors[number] = {}

    def tensor(self, view: int) -> Tensor:
        described = self.program.views[view]
        cache = self.tensors[described.storage]
        if view not in cache:
            cache[view] = _tensor(described, self.storages[described.storage])
        return cache[view]

    # ---- events ----------------------------------------------------------------------------------------------------

    def in_(self, event: In) -> None:
        view = self.program.views[event.view]
        given = self.inputs.get(event.name)
        if given is None:
            raise ReplayError(f"the program takes an input {event.name!r} that was not given")
        if (given.dtype, tuple(given.shape)) != (view.dtype, view.size):
            raise ReplayError(f"the input {event.name!r} is described as another tensor than was sent")
        storage, nbytes = given.untyped_storage(), self.program.storages[view.storage]
        if storage._cdata not in self.input_storages:
            if (given.storage_offset(), given.stride(), storage.nbytes()) == (view.offset, view.stride, nbytes):
                self.input_storages[storage._cdata] = storage.clone()
            else:
                laid_out = torch.zeros(nbytes, dtype=torch.uint8).untyped_storage()
                _tensor(view, laid_out).copy_(given)
                self.input_storages[storage._cdata] = laid_out
        copy = self.input_storages[storage._cdata]
        if view.storage not in self.storages:
            self.bind(view.storage, copy)
            self.inputs_as_they_came.add(view.storage)
        elif self.storages[view.storage]._cdata != copy._cdata:
            raise ReplayError(f"the input {event.name!r} shares memory with another input, but not here")

    def const(self, event: Const) -> None:
        nbytes = self.program.storages[event.storage]
        if event.data is None:
            memory = torch.full((nbytes,), 0x47, dtype=torch.uint8)
        elif nbytes:
            memory = torch.frombuffer(bytearray(event.data), dtype=torch.uint8).clone()
        else:
            memory = torch.empty(0, dtype=torch.uint8)
        self.bind(event.storage, memory.untyped_storage())
        self.ledger.constant(event.storage, nbytes, event.line)

    def free(self, event: Free) -> None:
        for number in event.storages:
            del self.tensors[number]
            del self.bound[self.storages.pop(number)._cdata]
            self.ledger.freed(number)

    def out(self, event: Out) -> None:
        wanted = self.wanted is None or len(self.outputs) in self.wanted
        self.outputs.append(self.tensor(event.view).clone().resolve_conj().resolve_neg() if wanted else None)

    def begin(self, event: Begin) -> None:
        self.ledger.begin(event.segment)

    def end(self, event: End) -> None:
        self.ledger.end()

    def op(self, event: Op) -> None:
        called = event.operator
        args = [self.argument(value) for value in event.args]
        kwargs = {name: self.argument(value) for name, value in event.kwargs.items()}
        bound = dict(zip(called.parameters, args, strict=False)) | kwargs
        spot = (event.line, called.name.partition(".")[0])
        self.ledger.start(spot)
        for name in called.written:
            self.writes(bound.get(name), spot)
        try:
            if called.guard is not None and not called.guard(bound):
                raise ReplayError(f"{called.name} was called with arguments that do not fit together", event.line)
            if self.temporaries is not None:
                self.temporaries.mark()
            returned = called.overload(*args, **kwargs)
            if self.temporaries is not None:
                self.temporaries.mark()
        except ProgramError:
            raise
        except Exception as error:  # noqa: BLE001 - torch's kernels raise what they like
            raise ReplayError(f"{called.name} failed on fresh inputs: {_first_line(error)}", event.line) from None
        results = _flat(returned)
        if len(results) != len(event.results):
            raise ReplayError(f"{called.name} returned another number of results than recorded", event.line)
        allocated = 0
        for result, recorded in zip(results, event.results, strict=True):
            allocated += self.result(event, result, recorded)
        tensors = [result for result in results if isinstance(result, Tensor)]
        cost = called.price(bound, tensors)
        self.ledger.finish(spot, cost, allocated)
        if called.uninitialised:
            for result in tensors:
                result.fill_(_POISON if result.dtype.is_floating_point or result.dtype.is_complex else 1)

    def writes(self, target: Any, spot: tuple[int, str]) -> None:
        """An input that is written to is memory the program works in: it counts from then on, as a copy would."""
        for tensor in _flat(target):
            if isinstance(tensor, Tensor):
                number = self.bound[tensor.untyped_storage()._cdata]
                if number in self.inputs_as_they_came:
                    self.inputs_as_they_came.remove(number)
                    self.ledger.born(number, self.program.storages[number], spot)

    def argument(self, value: Any) -> Any:
        if type(value) is Ref:
            return self.tensor(value.view)
        if type(value) is list:
            return [self.argument(item) for item in value]
        return value

    def result(self, event: Op, result: Any, recorded: Any) -> int:
        """Checks a result against the record and binds its storage; returns the bytes newly allocated."""
        name = event.operator.name
        if not isinstance(result, Tensor):
            if type(recorded) is Ref or (result is None) != (recorded is None):
                raise ReplayError(f"{name} returned something else than recorded", event.line)
            if result is not None and str(result) != str(recorded):  # as text, so that NaN equals NaN
                self.reads.append({"line": event.line, "op": name.partition(".")[0], "recorded": recorded,
                                   "replayed": result})
            return 0
        if type(recorded) is not Ref:
            raise ReplayError(f"{name} returned something else than recorded", event.line)
        view = self.program.views[recorded.view]
        storage = result.untyped_storage()
        if tuple(result.shape) != view.size:
            raise ReplayError(f"the shape of the result of {name} depends on the values of the inputs: "
                              f"{view.size} when recorded, {tuple(result.shape)} on fresh inputs", event.line)
        described = (result.dtype, result.storage_offset(), result.stride(), storage.nbytes())
        if described != (view.dtype, view.offset, view.stride, self.program.storages[view.storage]):
            raise ReplayError(f"{name} returned another layout than recorded", event.line)
        known = self.bound.get(storage._cdata)
        if known is None and view.storage not in self.storages:
            self.bind(view.storage, storage)
            self.ledger.born(view.storage, storage.nbytes(), (event.line, name.partition(".")[0]))
            return storage.nbytes()
        if known != view.storage:
            raise ReplayError(f"{name} returned other memory than recorded", event.line)
        return 0


def _tensor(view: View, storage: torch.UntypedStorage) -> Tensor:
    tensor = torch.empty(0, dtype=view.dtype).set_(storage, view.offset, view.size, view.stride)
    if view.flags & 1:
        tensor = torch._conj(tensor)
    if view.flags & 2:
        tensor = torch._neg_view(tensor)
    return tensor


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]


def _flat(returned: Any) -> list[Any]:
    if isinstance(returned, (list, tuple)):
        return [item for value in returned for item in _flat(value)]
    return [returned]
