"""Visible checks of 0.3: worked examples of the brief, by hand or against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from llmkata.checks import check, expect_error, hint, probe, same, task


@task(1)
@hint("2·n·k·m for each element of the batch; operands at their own sizes.")
def test_costs_by_hand(submission):
    """The costs of the brief's examples."""
    # torch's FlopCounterMode says 32 768 for this product, too.
    cost = submission.cost_matmul((4, 8, 16), (16, 32), 4)
    got = (cost.flops, cost.bytes_read, cost.bytes_written)
    check(got == (32_768, 4096, 4096), "(4, 8, 16)·(16, 32) in float32: FLOPs, bytes read, bytes written", got=got)
    cost = submission.cost_elementwise([(1024,), (1024,)], 4)
    got = (cost.flops, cost.bytes_read, cost.bytes_written)
    check(got == (1024, 8192, 4096), "an addition of 1024 elements in float32", got=got)
    for fused, want in ((True, (320, 256, 256)), (False, (320, 5 * 256 + 2 * 16, 3 * 256 + 2 * 16))):
        cost = submission.cost_softmax((4, 16), 4, fused=fused)
        got = (cost.flops, cost.bytes_read, cost.bytes_written)
        check(got == want, f"softmax of 4 rows of 16 in float32, fused={fused}", got=got, want=want)
    # q, k, v and the result are 2·128·64·2 = 32 768 bytes each, the scores 2·128·128·2 = 65 536.
    for fused, want in ((True, (8_552_448, 98_304, 32_768)), (False, (8_552_448, 229_376, 163_840))):
        cost = submission.cost_attention(1, 2, 128, 128, 64, 2, fused=fused)
        got = (cost.flops, cost.bytes_read, cost.bytes_written)
        check(
            got == want, f"attention with two heads of 128 tokens, d = 64, float16, fused={fused}", got=got, want=want
        )
    with expect_error(ValueError):
        submission.cost_matmul((2, 0), (0, 2), 4)


@task(2)
@hint("(AB)C: 2·10·30·5 + 2·10·5·60. A(BC): 2·30·5·60 + 2·10·30·60.")
def test_chain_by_hand(submission):
    """[10, 30]·[30, 5]·[5, 60] takes 9000 FLOPs from the left and 54 000 from the right."""
    check(submission.chain_flops([10, 30, 5, 60], ((0, 1), 2)) == 9000, "(AB)C")
    check(submission.chain_flops([10, 30, 5, 60], (0, (1, 2))) == 54_000, "A(BC)")
    flops, tree = submission.best_chain([10, 30, 5, 60])
    check(flops == 9000 and tree == ((0, 1), 2), "the cheapest order", got=(flops, tree), want=(9000, ((0, 1), 2)))
    flops, tree = submission.best_chain([7, 3])
    check((flops, tree) == (0, 0), "one matrix costs nothing", got=(flops, tree))
    with expect_error(ValueError):
        submission.best_chain([7])


@task(3)
@hint("Double the number of calls until a block lasts min_time; then time repeat blocks of that many calls.")
def test_benchmark_of_a_toy(submission):
    """On a device that does its work at once, 3 ms a call come out as 3 ms, from blocks of four calls."""
    now, calls = [0.0], [0]

    def fn():
        now[0] += 0.003
        calls[0] += 1

    got = submission.benchmark(fn, synchronize=lambda: None, clock=lambda: now[0], warmup=2, repeat=5)
    check(got.number == 4, "1 and 2 calls last less than 10 ms, 4 do not", got=got.number, want=4)
    check(calls[0] == 2 + (1 + 2 + 4) + 5 * 4, "2 calls of warm-up, 7 in trials, 5 blocks of 4", got=calls[0], want=29)
    same(list(got.times), [0.003] * 5, atol=1e-9, dtype=None, what="seconds per call")
    same([got.median, got.best, got.spread], [0.003, 0.003, 0.0], atol=1e-9, dtype=None, what="median, best, spread")


@task(4)
@hint("Ridge: 100 GFLOP/s over 10 GB/s = 10 FLOP per byte.")
def test_roofline_by_hand(submission):
    """The machine of the brief: 100 GFLOP/s, 10 GB/s."""
    machine = submission.Machine("by hand", 100e9, 10e9)
    addition = submission.Cost(1024, 8192, 4096)
    roof = submission.roofline(addition, machine)
    check(roof.bound == "memory", "an addition is bound by memory", got=roof.bound)
    got = [roof.intensity, roof.ridge, roof.attainable_flops, roof.min_seconds]
    same(
        got,
        [1 / 12, 10.0, 1e10 / 12, 1.2288e-6],
        atol=0,
        rtol=1e-9,
        dtype=None,
        what="intensity, ridge, FLOP/s, seconds",
    )
    reached = submission.efficiency(addition, 2.4576e-6, machine)
    same(reached.pct_roof, 50.0, atol=1e-9, dtype=None, what="percent of roof in twice the least time")


@probe
def on_both(module, x):
    """softmax_xp in NumPy and in torch."""
    import torch

    in_torch = module.softmax_xp(torch.asarray(x))
    return module.softmax_xp(x), in_torch.numpy(), isinstance(in_torch, torch.Tensor)


@task(5)
@hint("xp = array_api_compat.array_namespace(x), and every function from xp.")
def test_softmax_on_numpy_and_torch(submission, rng):
    """One softmax for NumPy and torch."""
    x = rng.standard_normal((3, 5)).astype("float32")
    want = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    in_numpy, in_torch, stayed = submission.run(on_both, x)
    same(in_numpy, want, atol=1e-6, what="softmax in NumPy")
    same(in_torch, want, atol=1e-6, what="softmax in torch")
    check(stayed, "a tensor comes back as a tensor")


@task(6)
@hint("Load, barrier, multiply, barrier; eight products for each element here, from one pair of tiles.")
def test_kernel_on_one_tile(submission, rng):
    """The tiled kernel multiplies two 8 × 8 matrices (in the simulator, unless there is a GPU)."""
    a, b = rng.standard_normal((8, 8)).astype("float32"), rng.standard_normal((8, 8)).astype("float32")
    same(submission.matmul_gpu(a, b), a @ b, atol=1e-5, what="matmul_gpu")


@probe
def there_and_back(module, x):
    """An array moved to torch, squared and moved back."""
    b = module.get_backend("torch")
    return b.name, b.to_numpy(b.xp.multiply(b.asarray(x), b.asarray(x)))


@task(7)
@hint("b.asarray, b.xp, b.synchronize, b.to_numpy; torch.asarray shares the memory of a NumPy array.")
def test_torch_backend(submission):
    """The torch backend is there, and an unknown name is refused."""
    name, squares = submission.run(there_and_back, np.arange(4, dtype="float32"))
    check(name == "torch", "its name", got=name)
    same(squares, np.array([0, 1, 4, 9], "float32"), atol=0, what="squares in torch")
    with expect_error(ValueError):
        submission.get_backend("abacus")


@probe
def figure_of_a_suite(module):
    """What plot_roofline returns for two rows, and the first bytes of its file."""
    import tempfile
    from pathlib import Path

    b, machine = module.get_backend("numpy"), module.Machine("by hand", 100e9, 10e9)
    cases = [
        module.Case("product", "matmul", ((64, 64), (64, 64)), "float32"),
        module.Case("sum", "add", ((64, 64), (64, 64)), "float32"),
    ]
    rows = module.run_suite(b, cases, machine)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "roofline.png")
        points = module.plot_roofline(rows, machine, str(path))
        return points, path.read_bytes()[:8], [row.timing.median for row in rows]


@task(7)
@hint("One Row per case, in order; the achieved FLOP/s are FLOPs over the median.")
def test_figure_of_a_suite(submission):
    """A suite on this machine, drawn under its roof."""
    points, start, medians = submission.run(figure_of_a_suite)
    check(points["labels"] == ["product", "sum"], "one point for each case", got=points["labels"])
    same(points["x"], [64 / 6, 1 / 12], atol=0, rtol=1e-9, dtype=None, what="intensities: n/6 and 1/12")
    rates = [2 * 64**3 / medians[0], 64**2 / medians[1]]
    same(points["y"], rates, atol=0, rtol=1e-9, dtype=None, what="achieved FLOP/s")
    check(start == b"\x89PNG\r\n\x1a\n", "plot_roofline writes a PNG", got=start)


@probe
def has_gpu(module):
    import torch

    return torch.cuda.is_available()


@task(7)
@hint("Only where there is a GPU: torch.cuda.synchronize() waits for it.")
def test_torch_on_a_gpu(submission):
    """On a GPU a product takes longer than its launch."""
    if not submission.run(has_gpu):
        pytest.skip("no CUDA device")
    b = submission.get_backend("torch:cuda")
    rows = submission.run_suite(
        b, [submission.Case("large", "matmul", ((2048, 2048), (2048, 2048)), "float32")],
        submission.Machine("no machine is faster", 1e18, 1e18),
    )  # fmt: skip
    check(rows[0].timing.median > 5e-5, "17 GFLOP take more than 50 µs", got=rows[0].timing.median)
