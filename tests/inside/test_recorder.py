"""The recorder writes down what a submission dispatches, and only that."""

from __future__ import annotations

import base64

import pytest
import torch

from llmkata.inside.recorder import Recorder


def names(program: dict) -> list[str]:
    """The operators of a program, in order."""
    return [program["operators"][event[1]] for event in program["events"] if event[0] == "op"]


def record(work, *inputs, **options) -> dict:
    recorder = Recorder(__file__, **options)
    for number, tensor in enumerate(inputs):
        recorder.input(tensor, str(number))
    with recorder:
        result = work(*inputs)
    if isinstance(result, torch.Tensor):
        recorder.output(result)
    return recorder.finish()


def test_views_are_not_operators() -> None:
    program = record(lambda x: x.view(6, 4).t()[1:, ::2].unsqueeze(0) * 2, torch.randn(4, 6))
    assert names(program) == ["mul.Tensor"]
    storage, dtype, offset, size, stride, flags = program["views"][program["events"][1][3][0][1]]
    assert (storage, dtype, offset, size, stride, flags) == (0, "float32", 1, [1, 3, 3], [3, 1, 8], 0)


def test_composites_are_recorded_by_their_parts() -> None:
    x, w = torch.randn(2, 3, 4), torch.randn(5, 4)

    def work(x, w):
        with torch.inference_mode():
            return torch.nn.functional.linear(x, w) + torch.einsum("btd,ed->bte", x, w)

    program = record(work, x, w)
    assert {"linear.default", "einsum.default", "matmul.default"}.isdisjoint(names(program))
    assert "mm.default" in names(program)


def test_lines_of_forward_and_backward() -> None:
    import inspect

    def work(x, w):
        hidden = x @ w
        return torch.autograd.grad(hidden.exp().sum(), w)[0]

    first = inspect.getsourcelines(work)[1]
    program = record(work, torch.randn(3, 4), torch.randn(4, 4, requires_grad=True))
    lines = [event[2] for event in program["events"] if event[0] == "op" and
             program["operators"][event[1]] == "mm.default"]
    assert lines == [first + 1, first + 1]  # the backward product is charged to the line that multiplied


def test_frees_are_seen_before_the_next_operator() -> None:
    def work(x):
        y = x + 1
        del y
        z = x + 2
        return z + 3

    events = record(work, torch.randn(4))["events"]
    assert [e[0] for e in events] == ["in", "op", "free", "op", "op", "free", "out"]
    assert events[2] == ["free", [1]] and events[5] == ["free", [2]]


def test_unknown_storages_bring_their_bytes_and_line() -> None:
    program = record(lambda x: x + torch.tensor([1.0, 2.0]), torch.randn(2))
    (const,) = [e for e in program["events"] if e[0] == "const"]
    assert base64.b64decode(const[2]) == torch.tensor([1.0, 2.0]).numpy().tobytes() and const[3] > 0


def test_whole_overwrites_of_unknown_storages_bring_no_bytes() -> None:
    arena = torch.empty(3, 2)
    program = record(lambda x: torch.mm(x, x[:, :2], out=arena), torch.randn(3, 3))
    (const,) = [e for e in program["events"] if e[0] == "const"]
    assert const[2] is None
    program = record(lambda x: torch.mm(x, x, out=arena[:2]), torch.randn(2, 2))  # only a part is overwritten
    assert [e[2] is None for e in program["events"] if e[0] == "const"] == [False]


@pytest.mark.parametrize("work, reason", [
    (lambda x: x.to_sparse() @ x, "sparse"),
    (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize(), "quantised"),
    (lambda x: x.clone().resize_(100) * 1, "resized"),
])
def test_refusals(work, reason) -> None:
    program = record(work, torch.randn(3, 3))
    assert reason in program["refused"][0] and program["refused"][1] > 0
    assert program["events"] == []


def test_negative_control_of_refusals() -> None:
    assert record(lambda x: x.clone() @ x, torch.randn(3, 3))["refused"] is None


def test_tensors_without_data_are_no_part_of_the_program() -> None:
    def work(x):
        with torch.device("meta"):
            layer = torch.nn.Linear(3, 3)
        layer(torch.empty(2, 3, device="meta"))
        layer.to_empty(device="cpu").load_state_dict({"weight": x, "bias": x[0]})
        return layer(x)

    program = record(work, torch.randn(3, 3))
    assert program["refused"] is None
    assert names(program) == ["copy_.default"] * 2 + ["addmm.default"]
    assert [event[2] for event in program["events"] if event[0] == "const"] == [None, None]


def test_too_many_operators_and_constants() -> None:
    def count(x):
        for _ in range(9):
            x = x + 1

    assert "more than 8 operators" in record(count, torch.zeros(1), max_ops=8)["refused"][0]
    assert record(count, torch.zeros(1), max_ops=9)["refused"] is None
    table = torch.zeros(16)
    assert record(lambda x: x + table, torch.zeros(1), max_const_bytes=63)["refused"] is not None
    assert record(lambda x: x + table, torch.zeros(1), max_const_bytes=64)["refused"] is None


def test_segments() -> None:
    recorder = Recorder(__file__)
    recorder.begin("a")
    with pytest.raises(ValueError, match="open already"):
        recorder.begin("a")
    with pytest.raises(ValueError, match="innermost"):
        recorder.end("b")
    recorder.end("a")
    assert recorder.finish()["events"] == [["begin", "a"], ["end", "a"]]


def test_the_program_is_plain_data() -> None:
    def plain(value) -> bool:
        if type(value) in (list, tuple):
            return all(map(plain, value))
        if type(value) is dict:
            return all(type(k) is str and plain(v) for k, v in value.items())
        return value is None or type(value) in (bool, int, float, str, bytes)

    program = record(lambda x: (x.to(torch.complex64) * 2j).abs().max().item() + torch.rand(3).to(
        memory_format=torch.contiguous_format), torch.randn(3))
    assert program["refused"] is None and plain(program)
