"""Work hidden from the recorder is missing from the program: refused, or wrong on fresh inputs.

Each attack computes the right answer in the learner's process. Its negative control is the same computation done
openly, at the top: it replays right.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from llmkata.bench.replay import run
from llmkata.bench.structure import ProgramError, RefusedProgram

N = 6


def honest(a, b):
    return (a @ b).relu()


def switched_off(a, b):
    with _disable_current_modes():
        hidden = a @ b
    return hidden.relu()


def switched_off_into_known_memory(a, b):
    out = torch.empty(N, N)
    with _disable_current_modes():
        torch.mm(a, b, out=out)
    return out.relu()


def switched_off_into_declared_overwrite(a, b):
    """A storage that is first seen overwritten whole brings no bytes; the hidden write comes after."""
    with _disable_current_modes():
        out = torch.empty(N, N)
    out.zero_()
    with _disable_current_modes():
        torch.mm(a, b, out=out)
    return out.relu()


def below_the_dispatcher(a, b):
    with torch._C._DisableTorchDispatch():
        hidden = a @ b
    return hidden.relu()


def in_another_thread(a, b):
    box = []
    thread = threading.Thread(target=lambda: box.append(a @ b))
    thread.start()
    thread.join()
    return box[0].relu()


def through_numpy(a, b):
    return torch.from_numpy(a.numpy() @ b.numpy()).relu()


def through_numpy_in_place(a, b):
    out = torch.zeros(N, N)
    out.numpy()[:] = a.numpy() @ b.numpy()
    return out.relu()


def through_lists(a, b):
    rows, columns = a.tolist(), b.t().tolist()
    return torch.tensor([[sum(x * y for x, y in zip(r, c, strict=True)) for c in columns] for r in rows]).relu()


def through_scalars(a, b):
    out = torch.zeros(N, N)
    for i in range(N):
        for j in range(N):
            out[i, j] = sum(a[i, k].item() * b[k, j].item() for k in range(N))
    return out.relu()


def scalars_poured_in(a, b):
    with _disable_current_modes():
        values = (a @ b).tolist()
    return torch.stack([torch.stack([torch.full((), value) for value in row]) for row in values]).relu()


_BEFORE = {}


def constant_from_before_the_run(a, b):
    return _BEFORE["answer"].relu()


def branching_on_values(a, b):
    """Only what the recorded values needed is in the program."""
    out = torch.zeros(N, N)
    for i in range(N):
        for j in range(N):
            with _disable_current_modes():
                positive = float(a[i] @ b[:, j]) > 0
            if positive:
                out[i, j] = a[i] @ b[:, j]
    return out


ATTACKS = [switched_off, switched_off_into_known_memory, switched_off_into_declared_overwrite, below_the_dispatcher,
           in_another_thread, through_numpy, through_numpy_in_place, through_lists, through_scalars, scalars_poured_in,
           constant_from_before_the_run, branching_on_values]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_hidden_work_is_missing(replayed, right, attack) -> None:
    a, b = torch.randn(N, N), torch.randn(N, N)
    _BEFORE["answer"] = a @ b
    torch.testing.assert_close(attack(a, b), honest(a, b))  # the attack itself computes the answer
    result = replayed(attack, a, b, truth=honest)
    assert result.total.flops < 2 * N**3 and not right(result)


def test_open_work_is_right(replayed, right) -> None:
    result = replayed(honest, torch.randn(N, N), torch.randn(N, N))
    assert right(result) and result.total.flops == 2 * N**3


def test_the_reason_names_the_line(replayed) -> None:
    result = replayed(through_lists, torch.randn(N, N), torch.randn(N, N), truth=honest)
    assert [c["line"] for c in result.constants] == [through_lists.__code__.co_firstlineno + 2]
    result = replayed(through_scalars, torch.randn(N, N), torch.randn(N, N), truth=honest)
    assert {r["line"] for r in result.reads} == {through_scalars.__code__.co_firstlineno + 4}
    assert all(r["recorded"] != r["replayed"] for r in result.reads)


def test_honest_constants_and_reads_replay(replayed, right) -> None:
    def work(x, lengths):
        table = torch.tensor([1.0, 2.0, 4.0])
        longest = int(lengths.max())
        return x[:longest] * table

    result = replayed(work, torch.randn(5, 3), torch.tensor([2, 4, 1]))
    assert right(result) and result.constants and not result.reads


def test_uninitialised_memory_holds_no_answer(record) -> None:
    """An answer computed openly and thrown away cannot be found again in memory that was never written."""
    def work(a, b):
        for _ in range(50):
            (a @ b).relu()
            out = torch.empty(N, N)
        return out

    values = {"0": torch.randn(N, N), "1": torch.randn(N, N)}
    got = run(record(work, torch.randn(N, N), torch.randn(N, N)), values)["outputs"][0]
    assert not torch.allclose(got, honest(values["0"], values["1"]))
    assert got.isfinite().all()


# ---- operators ------------------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    library = torch.library.Library("llmkata_test", "DEF")
    library.define("product(Tensor a, Tensor b) -> Tensor")
    library.impl("product", lambda a, b: a @ b, "CPU")
    yield library
    library._destroy()


def test_an_operator_of_the_learner_is_refused(library, record) -> None:
    def work(a, b):
        return torch.ops.llmkata_test.product(a, b)

    program = record(work, torch.randn(N, N), torch.randn(N, N))
    with pytest.raises(RefusedProgram, match="llmkata_test::product is not one of torch's own") as refused:
        run(program, {})
    assert refused.value.line == work.__code__.co_firstlineno + 1


def test_an_operator_slipped_into_aten_is_refused(record) -> None:
    library = torch.library.Library("aten", "FRAGMENT")
    try:
        library.define("llmkata_product(Tensor a, Tensor b) -> Tensor")
        library.impl("llmkata_product", lambda a, b: a @ b, "CPU")
        program = record(lambda a, b: torch.ops.aten.llmkata_product(a, b), torch.randn(N, N), torch.randn(N, N))
        with pytest.raises(RefusedProgram, match="llmkata_product has no price"):
            run(program, {"0": torch.randn(N, N), "1": torch.randn(N, N)})
    finally:
        library._destroy()


@pytest.mark.parametrize("work, name", [
    (lambda a, b: torch._weight_norm(a, b[:, :1]), "_weight_norm_interface"),
    (lambda a, b: torch.ops.aten._compute_linear_combination(a, b), "_compute_linear_combination"),
    (lambda a, b: torch.nn.functional.embedding_bag(torch.zeros(1, 2, dtype=torch.long), a), "_embedding_bag"),
])
def test_a_fused_kernel_without_a_price_is_refused(record, work, name) -> None:
    program = record(work, torch.randn(N, N), torch.randn(N, N))
    with pytest.raises(RefusedProgram, match=name):
        run(program, {"0": torch.randn(N, N), "1": torch.randn(N, N)})


def test_fused_inference_kernels_are_refused(record) -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    def work(x):
        with torch.inference_mode():
            return layer(x)

    with pytest.raises(RefusedProgram, match="without a price"):
        run(record(work, torch.randn(1, 4, 8)), {"0": torch.randn(1, 4, 8)})


def test_tensor_subclasses_are_refused(record) -> None:
    class Sneaky(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            with torch._C._DisableTorchDispatch():
                return func(*args, **(kwargs or {}))

    program = record(lambda x: x + torch.ones(2).as_subclass(Sneaky), torch.zeros(2))
    with pytest.raises(RefusedProgram, match="class Sneaky"):
        run(program, {})


# ---- segments -------------------------------------------------------------------------------------------------------


def test_work_moved_out_of_a_segment_shows_in_the_timeline(record) -> None:
    """A program doctored to do the second step's work before the segment must let its input arrive there too."""
    program = record(lambda a, b: a @ b, torch.randn(N, N), torch.randn(N, N))
    first, second, product, out = program["events"]
    values = {"0": torch.randn(N, N), "1": torch.randn(N, N)}
    program["events"] = [first, ["begin", "decode"], second, product, out, ["end", "decode"]]
    true = run(program, values)
    program["events"] = [first, second, product, ["begin", "decode"], out, ["end", "decode"]]
    doctored = run(program, values)
    assert true["segments"]["decode"]["flops"] == 2 * N**3 and doctored["segments"]["decode"]["flops"] == 0
    assert doctored["timeline"] != true["timeline"]
    program["events"] = [first, product, ["begin", "decode"], second, out, ["end", "decode"]]
    with pytest.raises(ProgramError, match="does not exist"):
        run(program, values)
