"""A program from a learner's process may hold anything; the validator says no and says why."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from llmkata.bench.program import parse
from llmkata.bench.replay import ReplayError, run
from llmkata.bench.structure import Limits, ProgramError, RefusedProgram


def work(x, w, ids):
    hidden = (x @ w).softmax(-1)
    table = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rows = torch.nn.functional.embedding(ids, hidden) * table
    rows[0] = torch.cat([rows[1:2], rows[2:3]]).sum(0)
    return rows, torch.autograd.grad(rows.std(), w), torch.full((2,), float(ids.max()))


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {"0": torch.randn(5, 4), "1": torch.randn(4, 4, requires_grad=True), "2": torch.tensor([0, 3, 2])}


@pytest.fixture
def program(record, inputs) -> dict:
    return record(work, *inputs.values())


def minimal(**changes) -> dict:
    """x + 1 over four float32 elements, as made by hand."""
    return {
        "version": 1, "refused": None, "storages": [16, 16], "operators": ["add.Tensor"],
        "views": [[0, "float32", 0, [4], [1], 0], [1, "float32", 0, [4], [1], 0]],
        "events": [["in", "x", 0], ["op", 0, 7, [["t", 0], 1], {}, [1]], ["out", 1]],
    } | changes


def test_the_programs_that_are_broken_below_are_whole(program, inputs) -> None:
    run(program, inputs)
    x = torch.randn(4)
    torch.testing.assert_close(run(minimal(), {"x": x})["outputs"][0], x + 1)


OP = ["op", 0, 7, [["t", 0], 1], {}, [1]]
IN, OUT = ["in", "x", 0], ["out", 1]
ZEROS = "AAAAAAAAAAAAAAAAAAAAAA=="  # 16 bytes

BROKEN = {
    "not a dict": [],
    "a key missing": {"version": 1},
    "a key too many": minimal(more=1),
    "another version": minimal(version=2),
    "version as a bool": minimal(version=True),
    "negative storage": minimal(storages=[16, -1]),
    "absurd storage": minimal(storages=[16, 1 << 60]),
    "a storage that is no number": minimal(storages=[16, 16.0]),
    "view beyond its storage": minimal(views=[[0, "float32", 1, [4], [1], 0], [1, "float32", 0, [4], [1], 0]]),
    "view by stride beyond its storage": minimal(views=[[0, "float32", 0, [4], [2], 0], [1, "float32", 0, [4], [1], 0]]),
    "view by dtype beyond its storage": minimal(views=[[0, "float64", 0, [4], [1], 0], [1, "float32", 0, [4], [1], 0]]),
    "view before its storage": minimal(views=[[0, "float32", -1, [4], [1], 0], [1, "float32", 0, [4], [1], 0]]),
    "negative stride": minimal(views=[[0, "float32", 3, [4], [-1], 0], [1, "float32", 0, [4], [1], 0]]),
    "view of no storage": minimal(views=[[9, "float32", 0, [4], [1], 0], [1, "float32", 0, [4], [1], 0]]),
    "huge expanded view": minimal(views=[[0, "float32", 0, [1 << 40], [0], 0], [1, "float32", 0, [4], [1], 0]]),
    "sizes that overflow": minimal(views=[[0, "float32", 0, [1 << 62] * 4, [0] * 4, 0],
                                          [1, "float32", 0, [4], [1], 0]]),
    "numbers beyond 64 bits": minimal(views=[[0, "float32", 1 << 200, [0], [1], 0], [1, "float32", 0, [4], [1], 0]]),
    "unknown dtype": minimal(views=[[0, "qint8", 0, [4], [1], 0], [1, "float32", 0, [4], [1], 0]]),
    "dtype that is an attribute of torch": minimal(views=[[0, "load", 0, [4], [1], 0], [1, "float32", 0, [4], [1], 0]]),
    "unknown flags": minimal(views=[[0, "float32", 0, [4], [1], 4], [1, "float32", 0, [4], [1], 0]]),
    "unknown event": minimal(events=[["exec", "x"]]),
    "event that is no list": minimal(events=["in"]),
    "empty event": minimal(events=[[]]),
    "operator without number": minimal(events=[IN, ["op", 1, 7, [["t", 0], 1], {}, [1]]]),
    "tensor used before it is made": minimal(events=[["op", 0, 7, [["t", 0], 1], {}, [1]], IN]),
    "tensor used after it is freed": minimal(events=[IN, OP, ["free", [1]], OUT]),
    "freed twice": minimal(events=[IN, OP, ["free", [1]], ["free", [1]]]),
    "input freed": minimal(events=[IN, OP, ["free", [0]], OUT]),
    "input twice": minimal(events=[IN, IN, OP, OUT]),
    "constant of the wrong size": minimal(events=[["const", 0, "MTIz", 1], OP]),
    "constant that is not base64": minimal(events=[["const", 0, ZEROS[:-1], 1], OP]),
    "constant that is no text": minimal(events=[["const", 0, 5, 1], OP]),
    "constant with something behind it": minimal(events=[["const", 0, ZEROS + "AAAA", 1], OP]),
    "constant twice": minimal(events=[["const", 0, ZEROS, 1], ["const", 0, ZEROS, 1], OP]),
    "constant over an input": minimal(events=[IN, ["const", 0, ZEROS, 1], OP]),
    "too many arguments": minimal(events=[IN, ["op", 0, 7, [["t", 0], 1, 1, 1, 1], {}, [1]], OUT]),
    "unknown argument by name": minimal(events=[IN, ["op", 0, 7, [["t", 0], 1], {"beta": 1}, [1]], OUT]),
    "argument given twice": minimal(events=[IN, ["op", 0, 7, [["t", 0], 1], {"self": ["t", 0]}, [1]], OUT]),
    "unknown kind of argument": minimal(events=[IN, ["op", 0, 7, [["pickle", b""], 1], {}, [1]], OUT]),
    "bytes as argument": minimal(events=[IN, ["op", 0, 7, [["t", 0], b"1"], {}, [1]], OUT]),
    "deep lists": minimal(events=[IN, ["op", 0, 7, [["l", [["l", [["l", [["l", [["l", [1]]]]]]]]]], 1], {}, [1]], OUT]),
    "result that is no view": minimal(events=[IN, ["op", 0, 7, [["t", 0], 1], {}, [5]], OUT]),
    "text as result": minimal(events=[IN, ["op", 0, 7, [["t", 0], 1], {}, ["x"]], OUT]),
    "segment left open": minimal(events=[["begin", "a"], IN, OP, OUT]),
    "segments crossed": minimal(events=[["begin", "a"], ["begin", "b"], ["end", "a"], ["end", "b"]]),
    "segment inside itself": minimal(events=[["begin", "a"], ["begin", "a"], ["end", "a"], ["end", "a"]]),
    "segment closed that is not open": minimal(events=[["end", "a"]]),
    "negative line": minimal(events=[IN, ["op", 0, -7, [["t", 0], 1], {}, [1]], OUT]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_programs_are_malformed(name) -> None:
    with pytest.raises(ProgramError, match="malformed"):
        parse(BROKEN[name])


@pytest.mark.parametrize("operators, reason", [
    (["matmul.default"], "composite"), (["as_strided.default"], "views"), (["set_.source_Tensor"], "memory or kind"),
    (["from_file.default"], "memory or kind"), (["__class__.x"], "no price"), (["add.__class__"], "no overload"),
    (["_unsafe_index.Tensor"], "indices"), (["_scaled_dot_product_flash_attention.default"], "backend"),
    (["add.t"], "does not take tensors"),
])
def test_operators_outside_the_table(operators, reason) -> None:
    with pytest.raises(RefusedProgram, match=reason) as refused:
        parse(minimal(operators=operators))
    assert refused.value.line == 7


def test_what_the_recorder_refused() -> None:
    empty = {"storages": [], "operators": [], "views": [], "events": []}
    with pytest.raises(RefusedProgram, match="too sparse") as refused:
        parse(minimal(refused=["too sparse", 12], **empty))
    assert refused.value.line == 12


def test_limits() -> None:
    program = minimal()
    parse(program, Limits(operators=1, live_bytes=32))
    with pytest.raises(ProgramError, match="operators"):
        parse(program, Limits(operators=0))
    with pytest.raises(ProgramError, match="at once"):
        parse(program, Limits(live_bytes=31))
    constant = minimal(events=[["const", 0, ZEROS, 1], OP, OUT])
    parse(constant, Limits(constant_bytes=16))
    with pytest.raises(ProgramError, match="constants"):
        parse(constant, Limits(constant_bytes=15))


@pytest.mark.parametrize("name, changes", {
    "wrong shape": {"views": [[0, "float32", 0, [4], [1], 0], [1, "float32", 0, [2, 2], [2, 1], 0]]},
    "wrong dtype": {"views": [[0, "float32", 0, [4], [1], 0], [1, "int32", 0, [4], [1], 0]]},
    "wrong memory": {"storages": [16, 64]},
    "claims to write in place": {"events": [IN, ["op", 0, 7, [["t", 0], 1], {}, [0]]]},
    "other number of results": {"events": [IN, ["op", 0, 7, [["t", 0], 1], {}, []]]},
    "a number for a tensor": {"events": [IN, ["op", 0, 7, [["t", 0], 1], {}, [["value", 1]]]]},
    "an argument of the wrong type": {"events": [IN, ["op", 0, 7, [["t", 0], "1"], {}, [1]]]},
    "an argument missing": {"events": [IN, ["op", 0, 7, [], {}, [1]]]},
}.items())
def test_programs_that_do_not_do_what_they_say(name, changes) -> None:
    with pytest.raises(ReplayError):
        run(minimal(**changes), {"x": torch.randn(4)})


def handmade(operator: str, arguments: list, inputs: list[torch.Tensor], result: torch.Tensor | int) -> dict:
    """One operator over contiguous inputs (views 0, 1, ...); the result is like a tensor, or is input number so."""
    tensors = inputs if isinstance(result, int) else [*inputs, result]
    views = [[number, str(t.dtype).removeprefix("torch."), 0, list(t.shape), list(t.stride()), 0]
             for number, t in enumerate(tensors)]
    events = [["in", str(number), number] for number in range(len(inputs))]
    events.append(["op", 0, 1, arguments, {}, [result if isinstance(result, int) else len(inputs)]])
    return minimal(storages=[t.numel() * t.element_size() for t in tensors], operators=[operator], views=views,
                   events=events)


A, IDS = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize("operator, arguments, inputs, result", [
    ("embedding_dense_backward.default", [["t", 0], ["t", 1], 4, -1, False], [torch.zeros(3, 2), IDS], torch.zeros(4, 2)),
    ("nll_loss_backward.default", [["t", 2], ["t", 0], ["t", 1], None, 1, -100, ["t", 2]], [A, IDS, torch.ones(())], A),
    ("index.Tensor", [["t", 0], ["l", [["t", 1]]]], [torch.zeros(4), IDS], torch.zeros(3)),
    ("gather.default", [["t", 0], 0, ["t", 1]], [torch.zeros(4), IDS], torch.zeros(3)),
    ("_index_put_impl_.default", [["t", 0], ["l", [["t", 1]]], ["t", 2], False, True],
     [torch.zeros(4), IDS, torch.zeros(3)], 0),
])
def test_indices_beyond_the_memory_are_not_followed(operator, arguments, inputs, result) -> None:
    program = handmade(operator, arguments, inputs, result)
    values = {str(number): tensor for number, tensor in enumerate(inputs)}
    run(program, values)
    for far in (1 << 40, 5, -9):
        with pytest.raises(ReplayError):
            run(program, values | {"1": torch.full((3,), far)})


def test_shapes_that_do_not_fit_are_not_followed() -> None:
    rows = [torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, 1), torch.ones(3, 1)]
    arguments = [["t", 0], ["t", 1], ["l", [4]], ["t", 2], ["t", 3], None, None, ["l", [True, False, False]]]

    def program(tensors):
        made = handmade("native_layer_norm_backward.default", arguments, tensors, torch.zeros(3, 4))
        made["events"][-1][-1] += [None, None]
        return made, {str(number): tensor for number, tensor in enumerate(tensors)}

    run(*program(rows))
    with pytest.raises(ReplayError, match="do not fit together"):
        run(*program([*rows[:2], torch.ones(1, 1), torch.ones(1, 1)]))
    with pytest.raises(ReplayError, match="do not fit together"):
        run(*program([torch.ones(1, 4), *rows[1:]]))


@pytest.mark.parametrize("operator, arguments, inputs", [
    ("gelu_backward.default", [["t", 0], ["t", 1]], [torch.ones(4), torch.ones(3, 4)]),
    ("native_batch_norm.default", [["t", 0], None, None, None, None, False, 0.1, 1e-5], [torch.ones(3, 4)]),
    ("native_batch_norm.default", [["t", 0], ["t", 1], None, None, None, True, 0.1, 1e-5],
     [torch.ones(3, 4), torch.ones(2)]),
    ("_scaled_dot_product_flash_attention_for_cpu.default", [["t", 0], ["t", 1], ["t", 0]],
     [torch.ones(1, 1, 8, 4), torch.ones(1, 1, 2, 4)]),
])
def test_arguments_that_crash_a_kernel_do_not_reach_it(operator, arguments, inputs) -> None:
    program = handmade(operator, arguments, inputs, torch.zeros(3, 4))
    with pytest.raises(ReplayError, match="do not fit together"):
        run(program, {str(number): tensor for number, tensor in enumerate(inputs)})


def test_absurd_results_are_no_harm() -> None:
    program = handmade("repeat.default", [["t", 0], ["l", [1 << 40]]], [torch.zeros(4)], torch.zeros(4))
    with pytest.raises(ReplayError, match="repeat"):
        run(program, {"0": torch.zeros(4)})
    with pytest.raises(ReplayError, match="ones"):
        run(handmade("ones.default", [["l", [1 << 45]]], [], torch.zeros(4)), {})


def test_a_replay_has_a_time_limit(record) -> None:
    def slow(x):
        for _ in range(50):
            x = x @ x
        return x

    program, values = record(slow, torch.eye(100)), {"0": torch.eye(100)}
    run(program, values)
    with pytest.raises(ReplayError, match="more than"):
        run(program, values, limits=Limits(seconds=0))


# ---- mutations ------------------------------------------------------------------------------------------------------

ODD = [None, True, -1, 0, 1, 2, 3, 17, 1 << 31, 1 << 62, -(1 << 63), 1 << 70, 0.5, float("nan"), float("inf"), "", "t",
       "float64", "in", "mm.default", b"", b"\xff" * 16, ZEROS, [], {}, ["t", 0], ["t", 99], ["l", []], ["value", 0], [[]]]


def places(value, path=()) -> list[tuple]:
    """Paths of everything inside a program."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            found += places(item, (*path, index))
    return found


def mutated(program: dict, dice: random.Random) -> dict:
    changed = copy.deepcopy(program)
    for _ in range(dice.choice([1, 1, 2, 4])):
        path = dice.choice(places(changed))
        holder = changed
        for step in path[:-1]:
            holder = holder[step]
        if not isinstance(holder, (dict, list)):
            continue
        match dice.randrange(5):
            case 0:
                del holder[path[-1]]
            case 1 if isinstance(holder, list):
                holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
            case 2 if isinstance(holder, list) and len(holder) > 1:
                other = dice.randrange(len(holder))
                holder[path[-1]], holder[other] = holder[other], holder[path[-1]]
            case 3 if type(holder[path[-1]]) is int:
                holder[path[-1]] += dice.choice([-1, 1, 8, -8, 1 << 20])
            case _:
                holder[path[-1]] = copy.deepcopy(dice.choice(ODD))
    return changed


@pytest.mark.parametrize("seed", range(4))
def test_mutated_programs_never_crash_the_validator_or_the_bench(program, inputs, seed) -> None:
    dice = random.Random(seed)
    limits = Limits(live_bytes=1 << 20, seconds=5)
    verdicts = {"run": 0, "refused": 0}
    for _ in range(150):
        try:
            run(mutated(program, dice), inputs, limits=limits)
            verdicts["run"] += 1
        except ProgramError as error:
            assert error.reason
            verdicts["refused"] += 1
    assert verdicts["refused"] > 75 and verdicts["run"] > 3  # e.g. another line number, a number changed
