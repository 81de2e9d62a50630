"""Checks a recorded program, which comes from a learner's process and may hold anything, and gives it types.

The format is that of :mod:`llmkata.inside.recorder`. Nothing is executed or allocated here. What :func:`parse` returns
is consistent: every operator is in the table, every view lies within its storage, every storage is born before it is
used and not used after it is freed, inputs and outputs stand where the events say, segments nest.
"""

from __future__ import annotations

import binascii
import math
from typing import Any

import torch

from llmkata.bench.optable import Operator, UnknownOperator, operator
from llmkata.bench.structure import (
    STANDARD,
    Begin,
    Const,
    End,
    Event,
    Free,
    In,
    Limits,
    Op,
    Out,
    Program,
    ProgramError,
    Ref,
    RefusedProgram,
    View,
)

VERSION = 1

_DTYPES = {name: getattr(torch, name) for name in (
    "float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint8",
    "bool", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")}
_MEMORY_FORMATS = {name: getattr(torch, name) for name in (
    "contiguous_format", "preserve_format", "channels_last", "channels_last_3d")}
_MAX_INT = 2**63 - 1
_MAX_TEXT = 200
_MAX_DEPTH = 4
_MAX_ITEMS = 4096


def parse(data: Any, limits: Limits = STANDARD) -> Program:
    """The program in ``data``, checked.

    Raises:
        RefusedProgram: the recorder refused, or an operator is not in the table.
        ProgramError: malformed, inconsistent or larger than ``limits``.
    """
    return _Parser(data, limits).program()


class _Parser:
    def __init__(self, data: Any, limits: Limits) -> None:
        self.data = data
        self.limits = limits
        self.line = 0

    def expect(self, condition: bool, reason: str) -> None:
        if not condition:
            raise ProgramError(f"malformed program: {reason}", self.line)

    def program(self) -> Program:
        data, limits = self.data, self.limits
        self.expect(type(data) is dict, "the program is not a dict")
        self.expect(data.keys() == {"version", "refused", "storages", "operators", "views", "events"}, "wrong keys")
        self.expect(type(data["version"]) is int and data["version"] == VERSION, "unknown version")
        if data["refused"] is not None:
            reason, line = self.sequence(data["refused"], 2, exactly=True)
            raise RefusedProgram(self.text(reason), self.integer(line, high=10**7))
        storages = self.sequence(data["storages"], limits.views)
        self.storages = tuple(self.integer(nbytes, high=limits.live_bytes) for nbytes in storages)
        self.names = [self.text(name) for name in self.sequence(data["operators"], 5000)]
        self.operators: dict[int, Operator] = {}
        self.views = tuple(self.view(view) for view in self.sequence(data["views"], limits.views))
        events = self.sequence(data["events"], 3 * limits.operators + limits.segments)
        return Program(self.storages, self.views, self.events(events))

    # ---- scalars and lists -----------------------------------------------------------------------------------------

    # A program has some ten numbers an operator: these are spelt out where a call of expect would cost.

    def sequence(self, value: Any, most: int, *, exactly: bool = False) -> list[Any] | tuple[Any, ...]:
        if type(value) is not list and type(value) is not tuple:
            self.expect(False, "a list was expected")
        if len(value) > most or (exactly and len(value) != most):
            self.expect(False, "a list has the wrong length")
        return value

    def integer(self, value: Any, *, low: int = 0, high: int = _MAX_INT) -> int:
        if type(value) is not int or not low <= value <= high:
            self.expect(False, "a number is out of range")
        return value

    def integers(self, value: Any, most: int, *, exactly: bool = False) -> tuple[int, ...]:
        for number in self.sequence(value, most, exactly=exactly):
            if type(number) is not int or not 0 <= number <= _MAX_INT:
                self.expect(False, "a number is out of range")
        return tuple(value)

    def text(self, value: Any) -> str:
        self.expect(type(value) is str and len(value) <= _MAX_TEXT, "a text was expected")
        return value

    # ---- views -----------------------------------------------------------------------------------------------------

    def view(self, value: Any) -> View:
        storage, dtype, offset, size, stride, flags = self.sequence(value, 6, exactly=True)
        self.expect(type(dtype) is str and dtype in _DTYPES, "unknown dtype")
        size = self.integers(size, 64)
        view = View(self.integer(storage, high=len(self.storages) - 1), _DTYPES[dtype], self.integer(offset), size,
                    self.integers(stride, len(size), exactly=True), self.integer(flags, high=3))
        if flags:
            self.expect(view.dtype.is_complex or flags == 2 and view.dtype.is_floating_point,
                        "a conjugate or negative bit of other numbers")
        itemsize = view.dtype.itemsize
        self.expect(math.prod(size) * itemsize <= self.limits.live_bytes, "a tensor is too large")
        if 0 not in size:
            last = offset + sum([(n - 1) * step for n, step in zip(size, stride, strict=True)])
            self.expect((last + 1) * itemsize <= self.storages[storage], "a tensor reaches beyond its storage")
        return view

    # ---- arguments -------------------------------------------------------------------------------------------------

    def argument(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if value is None or kind in (bool, float):
            return value
        if kind is int:
            return self.integer(value, low=-_MAX_INT - 1)
        if kind is str:
            return self.text(value)
        self.expect(kind in (list, tuple) and len(value) > 0 and type(value[0]) is str, "an unknown kind of argument")
        match value[0], len(value):
            case "t", 2:
                ref = Ref(self.integer(value[1], high=len(self.views) - 1))
                self.expect(self.views[ref.view].storage in self.live, "a tensor is used that does not exist")
                return ref
            case "l", 2:
                self.expect(depth < _MAX_DEPTH, "lists are nested too deep")
                return [self.argument(item, depth + 1) for item in self.sequence(value[1], _MAX_ITEMS)]
            case "dtype", 2:
                self.expect(type(value[1]) is str and value[1] in _DTYPES, "unknown dtype")
                return _DTYPES[value[1]]
            case "device", 1:
                return torch.device("cpu")
            case "layout", 1:
                return torch.strided
            case "memory_format", 2:
                self.expect(type(value[1]) is str and value[1] in _MEMORY_FORMATS, "unknown memory format")
                return _MEMORY_FORMATS[value[1]]
            case "complex", 3:
                self.expect(type(value[1]) is float and type(value[2]) is float, "a complex number was expected")
                return complex(value[1], value[2])
            case "generator", 1:
                return None  # the replay's own
        self.expect(False, "an unknown kind of argument")

    # ---- events ----------------------------------------------------------------------------------------------------

    def events(self, events: list[Any] | tuple[Any, ...]) -> tuple[Event, ...]:
        self.live: set[int] = set()
        self.born: set[int] = set()
        self.inputs: set[int] = set()
        self.input_names: set[str] = set()
        self.open: list[str] = []
        self.live_bytes = self.constant_bytes = self.op_count = 0
        parsers = {"in": self.in_, "const": self.const, "op": self.op, "free": self.free, "out": self.out,
                   "begin": self.begin, "end": self.end}
        parsed = []
        for event in events:
            self.line = 0
            self.sequence(event, 6)
            self.expect(len(event) > 0 and type(event[0]) is str and event[0] in parsers, "an unknown event")
            parsed.append(parsers[event[0]](event))
        self.line = 0
        self.expect(not self.open, "a segment is left open")
        return tuple(parsed)

    def birth(self, storage: int) -> None:
        self.expect(storage not in self.born, "a storage is made twice")
        self.born.add(storage)
        self.live.add(storage)
        self.live_bytes += self.storages[storage]
        if self.live_bytes > self.limits.live_bytes:
            raise ProgramError(f"the program holds more than {self.limits.live_bytes >> 20} MiB at once", self.line)

    def in_(self, event: Any) -> In:
        _, name, view = self.sequence(event, 3, exactly=True)
        view = self.integer(view, high=len(self.views) - 1)
        self.expect(self.text(name) not in self.input_names, "an input arrives twice")
        self.input_names.add(name)
        storage = self.views[view].storage
        if storage not in self.inputs:  # several inputs may be views of one storage
            self.birth(storage)
            self.inputs.add(storage)
        return In(name, view)

    def const(self, event: Any) -> Const:
        _, storage, data, line = self.sequence(event, 4, exactly=True)
        self.line = self.integer(line, high=10**7)
        storage = self.integer(storage, high=len(self.storages) - 1)
        if data is not None:
            data = self.constant(data)
            self.expect(len(data) == self.storages[storage], "a constant of the wrong size")
            self.constant_bytes += len(data)
            if self.constant_bytes > self.limits.constant_bytes:
                raise ProgramError(f"constants of more than {self.limits.constant_bytes >> 20} MiB", self.line)
        self.birth(storage)
        return Const(storage, data, line)

    def constant(self, data: Any) -> bytes:
        try:
            return binascii.a2b_base64(data, strict_mode=True)
        except (TypeError, ValueError):
            self.expect(False, "a constant that is not in base64")

    def op(self, event: Any) -> Op:
        _, name, line, args, kwargs, results = self.sequence(event, 6, exactly=True)
        self.line = self.integer(line, high=10**7)
        self.op_count += 1
        if self.op_count > self.limits.operators:
            raise ProgramError(f"the program has more than {self.limits.operators} operators", self.line)
        called = self.operator(self.integer(name, high=len(self.names) - 1))
        args = tuple(self.argument(value) for value in self.sequence(args, len(called.parameters)))
        names = set(called.parameters[len(args):])
        self.expect(type(kwargs) is dict and len(kwargs) <= len(names), "arguments by name were expected")
        self.expect(all(type(key) is str and key in names for key in kwargs), "an argument the operator does not have")
        kwargs = {key: self.argument(value) for key, value in kwargs.items()}
        return Op(called, line, args, kwargs, tuple(self.result(r) for r in self.sequence(results, _MAX_ITEMS)))

    def operator(self, number: int) -> Operator:
        if number not in self.operators:
            try:
                self.operators[number] = operator(self.names[number])
            except UnknownOperator as unknown:
                raise RefusedProgram(f"the operator {unknown}", self.line) from None
        return self.operators[number]

    def result(self, value: Any) -> Any:
        if value is None:
            return None
        if type(value) is int:
            self.integer(value, high=len(self.views) - 1)
            storage = self.views[value].storage
            if storage not in self.born:
                self.birth(storage)
            self.expect(storage in self.live, "a result in memory that does not exist")
            return Ref(value)
        tag, number = self.sequence(value, 2, exactly=True)
        self.expect(tag == "value" and type(number) in (bool, int, float, list, tuple), "an unknown kind of result")
        return self.argument(number)

    def free(self, event: Any) -> Free:
        _, storages = self.sequence(event, 2, exactly=True)
        freed = tuple(self.integer(n, high=len(self.storages) - 1) for n in self.sequence(storages, len(self.storages)))
        for storage in freed:
            self.expect(storage in self.live and storage not in self.inputs, "memory is freed that is not there")
            self.live.remove(storage)
            self.live_bytes -= self.storages[storage]
        return Free(freed)

    def out(self, event: Any) -> Out:
        _, view = self.sequence(event, 2, exactly=True)
        view = self.integer(view, high=len(self.views) - 1)
        self.expect(self.views[view].storage in self.live, "a result is returned that does not exist")
        return Out(view)

    def begin(self, event: Any) -> Begin:
        _, segment = self.sequence(event, 2, exactly=True)
        self.expect(self.text(segment) not in self.open, "a segment is open already")
        self.open.append(segment)
        self.expect(len(self.open) <= 16, "segments are nested too deep")
        return Begin(segment)

    def end(self, event: Any) -> End:
        _, segment = self.sequence(event, 2, exactly=True)
        self.expect(bool(self.open) and segment == self.open[-1], "segments do not nest")
        self.open.pop()
        return End(segment)
