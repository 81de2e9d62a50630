"""Records the torch program a submission dispatches, as plain data that can be run somewhere else.

Counts taken in the learner's process are worth what the learner's process says. So nothing is counted here: the
operators are written down, sent out as data, and run again by :mod:`llmkata.bench.replay` on fresh inputs, in a
process the learner's code never entered. Work that was hidden from the recorder is missing from the program, and the
program then no longer computes the answer.

The program is a list of operator calls over numbered *storages*. A tensor argument is a view of a storage: (storage,
dtype, offset, size, stride). Operators that only make views are therefore not recorded at all, and aliasing, in-place
writes and tensors saved for backward (which come back as new tensors over the same storage) replay by themselves.

Use by the worker::

    recorder = Recorder(file="/path/of/the/submission.py")
    recorder.input(q, "0")                    # every tensor that arrives over the wire, before the learner sees it
    recorder.begin("decode")                  # optional segments; they may nest and repeat
    with recorder:                            # around every execution of learner code (forward, backward, construction)
        result = module.attention(q, k, v)
    recorder.end("decode")
    number = recorder.output(result)          # every tensor that goes back to the grader, before it is encoded
    program = recorder.finish()               # plain data

``with recorder`` may be entered any number of times. Decoding and encoding belong outside of it: what the worker
itself does is no part of the program.

Format (``version`` 1), made of dict, list, int, float, str, bool and None only, so that it travels as JSON::

    {"version": 1,
     "refused": None | [reason, line],            # why there is no program; everything else is then empty
     "storages": [nbytes, ...],                   # by storage number
     "operators": ["mm.default", ...],            # aten operators as base.overload
     "views": [[storage, dtype, offset, [size...], [stride...], flags], ...],   # flags: 1 conjugate bit, 2 negative bit
     "events": [["in", name, view]                # an input arrives; its storage is born
                ["const", storage, base64 | None, line]   # a storage of unknown origin; None: overwritten before read
                ["op", operator, line, [arg...], {name: arg}, [result...]]
                ["free", [storage...]]            # before the next op
                ["out", view]                     # output number n is the n-th of these, with the values of this moment
                ["begin", segment] ["end", segment], ...]}

An ``arg`` is None, bool, int, float, str or one of ``["t", view]``, ``["l", [arg...]]``, ``["dtype", name]``,
``["device"]`` (the CPU), ``["layout"]`` (strided), ``["memory_format", name]``, ``["complex", re, im]``,
``["generator"]``. A ``result`` is a view, None (no tensor there) or ``["value", number]`` (a tensor was read out into
Python, e.g. by ``.item()``). A line is a line of the submission's file, 0 where none is known.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

VERSION = 1
MAX_OPS = 200_000
#: All constants of a program together. Tables (rotary angles, masks) fit; an answer computed elsewhere need not.
MAX_CONST_BYTES = 4 << 20

_COMPOSITE, _FREE, _RECORD, _FOREIGN = range(4)
_PLAIN = (bool, int, float, str, type(None))
_WRITE_ONLY = frozenset({"copy_", "fill_", "zero_"})


class Recorder(TorchDispatchMode):
    """Writes down every operator dispatched inside ``with recorder``; see the module's docstring for use and format.

    Args:
        file: path of the submission as it stands in its code objects (``co_filename``); operators are attributed to
            the innermost line of that file, operators of autograd's backward to the line that built the node.
        max_ops: programs with more operators are refused.
        max_const_bytes: programs that bring more bytes of unknown origin are refused.

    The first thing that cannot be recorded is kept as the reason for refusal, with its line. From then on operators
    run unrecorded, so the scenario still completes.
    """

    def __init__(self, file: str, *, max_ops: int = MAX_OPS, max_const_bytes: int = MAX_CONST_BYTES) -> None:
        super().__init__()
        self._file = file
        self._max_ops = max_ops
        self._const_room = max_const_bytes
        self._refused: tuple[str, int] | None = None
        self._events: list[list[Any]] = []
        self._storages: list[int] = []
        self._operators: dict[Any, int] = {}
        self._names: list[str] = []
        self._views: dict[tuple[Any, ...], int] = {}
        self._open: list[str] = []
        self._ops = 0
        self._outputs = 0
        # StorageImpl address -> storage number. A weak reference is held on each: it keeps the address from being
        # given to another storage, and tells when the storage is freed.
        self._numbers: dict[int, int] = {}
        self._weak: dict[int, int] = {}
        self._temporary: list[int] = []
        self._kinds: dict[Any, int] = {}
        self._node_lines: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; wrapping the mode for the compiler would import it, which takes a second."""
        return False

    # ---- what the worker calls -------------------------------------------------------------------------------------

    def input(self, tensor: torch.Tensor, name: str) -> None:
        """Declares ``tensor`` (any layout, CPU) as the input ``name``: a storage whose bytes are not kept."""
        if self._refused:
            return
        try:
            storage = _storage(tensor)
            if storage._cdata not in self._numbers:
                self._number(storage, temporary=False)
            self._events.append(["in", name, self._view(tensor, 0)])
        except _Refusal as refusal:
            self._refuse(refusal, 0)

    def output(self, tensor: torch.Tensor) -> int:
        """Declares ``tensor`` as going back to the grader and returns its output number (0, 1, ... by order of call).

        A replay returns the values that the tensor's storage holds at this point of the program.
        """
        if not self._refused:
            try:
                self._sweep()
                self._events.append(["out", self._view(tensor, 0)])
            except _Refusal as refusal:
                self._refuse(refusal, 0)
        self._outputs += 1
        return self._outputs - 1

    def begin(self, segment: str) -> None:
        """Opens a segment: the counts of a replay are also given per segment. Segments nest and may repeat.

        Raises ValueError where a segment of that name is open already.
        """
        if segment in self._open:
            raise ValueError(f"segment {segment!r} is open already")
        self._sweep()
        self._open.append(segment)
        self._events.append(["begin", segment])

    def end(self, segment: str) -> None:
        """Closes the innermost segment, which must be ``segment``. Raises ValueError otherwise."""
        if not self._open or self._open[-1] != segment:
            raise ValueError(f"segment {segment!r} is not the innermost open segment")
        self._sweep()
        self._open.pop()
        self._events.append(["end", segment])

    def finish(self) -> dict[str, Any]:
        """The program so far, as plain data in the format of the module's docstring."""
        program: dict[str, Any] = {
            "version": VERSION, "refused": None, "storages": self._storages, "operators": self._names,
            "views": [[number, str(dtype).removeprefix("torch."), offset, list(size), list(stride), flags]
                      for number, dtype, offset, size, stride, flags in self._views],
            "events": self._events,
        }
        if self._refused:
            program.update(refused=list(self._refused), storages=[], operators=[], views=[], events=[])
        return program

    # ---- the mode --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._refused:
            return func(*args, **kwargs)
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == _FREE:
            if torch.is_grad_enabled():
                self._line()
            return func(*args, **kwargs)
        if kind == _COMPOSITE:
            # Under inference_mode linear, matmul, einsum and attention arrive whole; their parts are what is priced.
            with self:
                return func.decompose(*args, **kwargs)
        line = self._line()
        event = None
        try:
            if kind == _FOREIGN:
                if func.namespace == "prims" and any(isinstance(a, torch.Tensor) and a.is_meta for a in args):
                    raise _Dataless  # how torch itself works out shapes
                raise _Refusal(f"the operator {func.name()} is not one of torch's own (aten) operators")
            for kind_of_tensor in types:
                if kind_of_tensor is not torch.Tensor and kind_of_tensor is not torch.nn.Parameter:
                    raise _Refusal(f"a tensor of class {kind_of_tensor.__name__} takes part; only plain tensors can")
            self._sweep()
            event = self._encode_call(func, args, kwargs, line)
        except _Dataless:
            pass
        except _Refusal as refusal:
            self._refuse(refusal, line)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            if event is not None:
                self._encode_results(func, event, result)
            else:
                self._admit(func, result, line)
        except _Refusal as refusal:
            self._refuse(refusal, line)
        return result

    def _encode_call(self, func: Any, args: Any, kwargs: Any, line: int) -> list[Any]:
        if func._schema.is_mutable:
            self._declare_overwritten(func, args, kwargs, line)
        encode = self._encode
        return ["op", None, line, [encode(a, line) for a in args],
                {name: encode(value, line) for name, value in kwargs.items()}]

    def _encode_results(self, func: Any, event: list[Any], result: Any) -> None:
        born = False
        results: list[Any] = []
        for value in result if isinstance(result, (tuple, list)) else (result,):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, torch.Tensor):
                    storage = _storage(item)
                    if storage._cdata not in self._numbers:
                        self._number(storage, temporary=True)
                        born = True
                    results.append(self._view(item, event[2]))
                elif item is None:
                    results.append(None)
                else:
                    results.append(["value", self._encode(item, event[2])])
        only_views = not born and not func._schema.is_mutable and any(type(r) is int for r in results)
        if only_views:  # e.g. _unsafe_view: an alias its schema does not tell of
            return
        self._ops += 1
        if self._ops > self._max_ops:
            raise _Refusal(f"the program has more than {self._max_ops} operators")
        event[1] = self._operators.get(func)
        if event[1] is None:
            event[1] = self._operators[func] = len(self._names)
            self._names.append(f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}")
        event.append(results)
        self._events.append(event)

    def _refuse(self, refusal: _Refusal, line: int) -> None:
        self._refused = (str(refusal), line)

    # ---- encoding --------------------------------------------------------------------------------------------------

    def _encode(self, value: Any, line: int) -> Any:
        if isinstance(value, torch.Tensor):
            return ["t", self._view(value, line)]
        if type(value) in _PLAIN:
            return value
        if isinstance(value, (list, tuple)):
            return ["l", [self._encode(item, line) for item in value]]
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if isinstance(value, torch.device):
            if value.type == "meta":
                raise _Dataless
            if value.type != "cpu":
                raise _Refusal(f"the device {value} is not the CPU")
            return ["device"]
        if isinstance(value, torch.layout):
            if value is not torch.strided:
                raise _Refusal(f"the layout {value} is not strided")
            return ["layout"]
        if isinstance(value, torch.memory_format):
            return ["memory_format", str(value).removeprefix("torch.")]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, torch.Generator):
            return ["generator"]
        raise _Refusal(f"an argument of type {type(value).__name__} cannot be recorded")

    def _view(self, tensor: torch.Tensor, line: int) -> int:
        """Number of the view that ``tensor`` is; its storage must have a number, or becomes a constant."""
        storage = _storage(tensor)
        number = self._numbers.get(storage._cdata)
        if number is None:
            number = self._constant(storage, line)
        if storage.nbytes() != self._storages[number]:
            raise _Refusal("the memory of a tensor was resized (resize_, or out= of another size)")
        flags = (1 if tensor.is_conj() else 0) | (2 if tensor.is_neg() else 0)
        key = (number, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride(), flags)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = len(self._views)
        return view

    def _number(self, storage: torch.UntypedStorage, *, temporary: bool) -> int:
        number = len(self._storages)
        address = storage._cdata
        self._numbers[address] = number
        self._weak[address] = storage._weak_ref()
        self._storages.append(storage.nbytes())
        if temporary:
            self._temporary.append(address)
        return number

    def _constant(self, storage: torch.UntypedStorage, line: int, *, overwritten: bool = False) -> int:
        """A storage no recorded operator made: built from Python or NumPy data, or by work hidden from the recorder.

        Which of the two is not for this process to say: on fresh inputs a constant that depends on the data is wrong.
        """
        data = None
        if not overwritten:
            self._const_room -= storage.nbytes()
            if self._const_room < 0:
                raise _Refusal("tensors that no torch operator of this run made (from NumPy, lists, another thread, or "
                               f"from before the run) hold more than {MAX_CONST_BYTES >> 20} MiB")
            with _disable_current_modes():
                data = base64.b64encode(torch.empty(0, dtype=torch.uint8).set_(storage).numpy()).decode()
        number = self._number(storage, temporary=True)
        self._events.append(["const", number, data, line])
        return number

    def _admit(self, func: Any, result: Any, line: int) -> None:
        """What comes of a tensor without data (``to_empty``, ``zeros_like``) holds nothing of the inputs."""
        if isinstance(result, torch.Tensor) and not result.is_meta:
            storage = _storage(result)
            if storage._cdata not in self._numbers:
                self._constant(storage, line, overwritten="empty" in func._schema.name)

    def _declare_overwritten(self, func: Any, args: Any, kwargs: Any, line: int) -> None:
        """An unknown storage that the operator overwrites whole (``copy_`` of a deepcopy, ``out=``) brings no bytes."""
        targets = [value for name, value in kwargs.items() if name.startswith("out")]
        if func._schema.name.removeprefix("aten::") in _WRITE_ONLY:
            targets.append(args[0])
        for target in targets:
            if isinstance(target, torch.Tensor) and target.layout is torch.strided and target.device.type == "cpu":
                storage = target.untyped_storage()
                whole = target.is_contiguous() and target.numel() * target.element_size() == storage.nbytes()
                if whole and storage._cdata not in self._numbers:
                    self._constant(storage, line, overwritten=True)

    def _sweep(self) -> None:
        """Writes down which storages were freed since the last operator."""
        expired = torch.UntypedStorage._expired
        freed = [address for address in self._temporary if expired(self._weak[address])]
        if not freed:
            return
        gone = set(freed)
        self._temporary = [address for address in self._temporary if address not in gone]
        self._events.append(["free", [self._numbers.pop(address) for address in freed]])
        for address in freed:
            torch.UntypedStorage._free_weak_ref(self._weak.pop(address))

    def _line(self) -> int:
        """The learner's innermost line; below autograd's engine, the line that built the node now running."""
        frame = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if code.co_filename == self._file:
                # Autograd numbers a node before it dispatches the operator: the first one seen belongs to the node.
                self._node_lines.setdefault(torch.autograd._get_sequence_nr() - 1, frame.f_lineno)
                return frame.f_lineno
            if code.co_name == "_engine_run_backward":
                node = torch._C._current_autograd_node()
                return self._node_lines.get(node._sequence_nr(), 0) if node is not None else 0
            frame = frame.f_back
        return 0


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    if tensor.is_meta:
        raise _Dataless
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise _Refusal("a sparse, nested or quantised tensor takes part; only plain strided tensors can")
    if not tensor.is_cpu:
        raise _Refusal(f"a tensor on the device {tensor.device} takes part; only the CPU can")
    return tensor.untyped_storage()


class _Refusal(Exception):
    """Something that cannot be recorded; the message completes the sentence "not replayable: ...". """


class _Dataless(_Refusal):
    """A tensor on the meta device takes part: shapes only, nothing is computed and nothing comes back from it."""

    def __init__(self) -> None:
        super().__init__("a tensor without data (on the meta device) crosses to or from the grader")


def _kind(func: Any) -> int:
    namespace = func.namespace
    if namespace == "profiler":
        return _FREE
    if namespace != "aten":
        return _FOREIGN
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return _COMPOSITE
    returns = func._schema.returns
    aliases = [r.alias_info for r in returns]
    if torch.Tag.inplace_view in func.tags:
        return _FREE
    if returns and all(alias is not None and not alias.is_write for alias in aliases):
        return _FREE
    return _RECORD
