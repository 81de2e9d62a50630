"""Visible checks of 0.1: the worked examples of the brief, function by function. Run `pytest exercises/module0`."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
import torch.nn.functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

LN3 = math.log(3.0)
#: The attention of the brief: two queries, two keys, d = 1.
Q, K, V = np.array([[0.0], [1.0]]), np.array([[0.0], [LN3]]), np.array([[4.0], [8.0]])


# -- task 1 -----------------------------------------------------------------------------------------------------------


@task(1)
@hint("Align the shapes at the right, a missing axis is 1, and an extent of 1 gives way to the other one.")
def test_broadcast_batch_example(submission):
    """(8, 1, 6) and (7, 1) broadcast to (8, 7, 6); (2, 3) and (2, 4) do not broadcast."""
    same(submission.broadcast_batch((8, 1, 6), (7, 1)), (8, 7, 6), what="broadcast_batch((8, 1, 6), (7, 1))")
    same(submission.broadcast_batch((), (0, 1)), (0, 1), what="broadcast_batch((), (0, 1))")
    with expect_error(ValueError, "cannot broadcast", "(2, 3)", "(2, 4)"):
        submission.broadcast_batch((2, 3), (2, 4))


@task(1)
@hint("A row of a times a column of b: 1·5 + 2·7 = 19.")
def test_bmm_example(submission):
    """[[1, 2], [3, 4]] times [[5, 6], [7, 8]] is [[19, 22], [43, 50]], once or in a batch."""
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]])
    want = np.array([[19.0, 22.0], [43.0, 50.0]])
    same(submission.bmm(a, b), want, atol=0, what="bmm(a, b)")
    same(submission.bmm(np.stack([a, 2 * a]), b), np.stack([want, 2 * want]), atol=0, what="a batch of two, one b")


@task(1)
@hint("Which axes do the shapes share? Look at the first pair that fails, and at its extents of 1.")
def test_bmm_matches_matmul_on_six_pairs(submission, rng):
    """`bmm` equals `np.matmul` on six pairs of shapes."""
    for sa, sb in (
        ((2, 3, 4), (2, 4, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((2, 5, 3, 4), (2, 1, 4, 2)),
        ((2, 3, 0), (0, 4)),
    ):
        a, b = rng.standard_normal(sa), rng.standard_normal(sb)
        same(submission.bmm(a, b), a @ b, atol=1e-12, what=f"bmm of {sa} and {sb}")


@probe
def count_calls(module, a, b):
    """How often bmm calls the GEMM that it is handed."""
    calls = []

    def counting(x, y, out=None):
        calls.append((x.shape, y.shape))
        return module.gemm(x, y, out=out)

    module.bmm(a, b, gemm=counting)
    return calls


@task(1)
@hint("Stack the matrices of a: [64, 4, 8] is [256, 8], and one product does them all.")
def test_shared_weight_is_one_call(submission, rng):
    """A batch of 64 matrices times one shared matrix is one GEMM call."""
    calls = submission.run(count_calls, rng.standard_normal((64, 4, 8)), rng.standard_normal((8, 5)))
    check(len(calls) == 1, "one shared matrix: one GEMM call", got=len(calls), want=1)


# -- task 2 -----------------------------------------------------------------------------------------------------------


@task(2)
@hint("An axis that was added is summed away; an axis that was stretched is summed, and stays with extent 1.")
def test_unbroadcast_example(submission):
    """Where one number was used six times, its gradient is the sum of six."""
    g = np.arange(6.0).reshape(2, 3)
    same(submission.unbroadcast(g, (3,)), np.array([3.0, 5.0, 7.0]), atol=0, what="to (3,)")
    same(submission.unbroadcast(g, (2, 1)), np.array([[3.0], [12.0]]), atol=0, what="to (2, 1)")
    same(submission.unbroadcast(g, (1, 1)), np.array([[15.0]]), atol=0, what="to (1, 1)")


@task(2)
@hint("da = g·bᵀ and db = aᵀ·g; b was used twice, so db is a sum of two.")
def test_bmm_vjp_example(submission):
    """The gradients of a batch of two row vectors times one shared matrix, worked out by hand."""
    a, b = np.array([[[1.0, 2.0]], [[3.0, 4.0]]]), np.array([[5.0], [7.0]])  # [2, 1, 2] · [2, 1]
    g = np.array([[[1.0]], [[10.0]]])
    da, db = submission.bmm_vjp(a, b, g)
    same(da, np.array([[[5.0, 7.0]], [[50.0, 70.0]]]), atol=0, what="da")
    same(db, np.array([[31.0], [42.0]]), atol=0, what="db = 1·[1, 2] + 10·[3, 4]")


# -- task 3 -----------------------------------------------------------------------------------------------------------


@task(3)
@hint("exp(ln 3) = 3, so the weights are in proportion 1 to 3.")
def test_softmax_example(submission):
    """softmax([0, ln 3]) is [1/4, 3/4], and so is softmax([1000, 1000 + ln 3])."""
    for start in (0.0, 1000.0):
        got = submission.softmax(np.array([start, start + LN3]))
        same(got, np.array([0.25, 0.75]), atol=1e-12, what=f"softmax([{start:g}, {start:g} + ln 3])")


@task(3)
@hint("p = [1/4, 3/4]: J has p_i (1 - p_i) on its diagonal and -p_i p_j elsewhere.")
def test_softmax_jacobian_example(submission):
    """At p = [1/4, 3/4] the Jacobian is 3/16 · [[1, -1], [-1, 1]]."""
    p, g = np.array([0.25, 0.75]), np.array([1.0, 0.0])
    same(submission.softmax_jacobian(p), 3 / 16 * np.array([[1.0, -1.0], [-1.0, 1.0]]), atol=1e-15, what="J")
    same(submission.softmax_vjp(p, g), 3 / 16 * np.array([1.0, -1.0]), atol=1e-15, what="J applied to [1, 0]")


# -- task 4 -----------------------------------------------------------------------------------------------------------


@task(4)
@hint("The second query has scores [0, ln 3], weights [1/4, 3/4], and so the value 4/4 + 3·8/4 = 7.")
def test_attention_example(submission):
    """The attention of the brief: [6, 7], and [4, 7] when it is causal."""
    out, cache = submission.attention(Q, K, V)
    same(out, np.array([[6.0], [7.0]]), atol=1e-12, what="attention")
    same(cache.p, np.array([[0.5, 0.5], [0.25, 0.75]]), atol=1e-12, what="the weights in the cache")
    out, _ = submission.attention(Q, K, V, causal=True)
    same(out, np.array([[4.0], [7.0]]), atol=1e-12, what="causal attention")
    blind = np.array([[False, False], [True, False]])
    out, _ = submission.attention(Q, K, V, blind)
    same(out, np.array([[0.0], [4.0]]), atol=1e-12, what="attention when query 0 may see nothing")
    with expect_error(TypeError, "mask must be boolean"):
        submission.attention(Q, K, V, blind.astype("float64"))


@task(4)
@hint("Is your causal diagonal at the bottom right? Is the scale 1/sqrt(d)?")
def test_attention_matches_pytorch(submission, rng):
    """Causal attention equals `F.scaled_dot_product_attention`."""
    q, k, v = (rng.standard_normal((2, 3, 5, 4)) for _ in range(3))
    want = F.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), is_causal=True).numpy()
    out, _ = submission.attention(q, k, v, causal=True)
    same(out, want, atol=1e-12, what="causal attention")
    out, _ = submission.attention(*(x.astype("float32") for x in (q, k, v)), causal=True)
    same(out, want.astype("float32"), atol=1e-5, what="causal attention in float32")


@task(4)
@hint("dv = pᵀ·dout, dp = dout·vᵀ, ds = p∘(dp - Σ p dp), dq = scale · ds·k, dk = scale · dsᵀ·q.")
def test_attention_vjp_example(submission):
    """The gradients of the brief's attention for dout = 1."""
    _, cache = submission.attention(Q, K, V)
    dq, dk, dv = submission.attention_vjp(np.ones((2, 1)), cache)
    same(dv, np.array([[0.75], [1.25]]), atol=1e-12, what="dv")
    same(dq, np.array([[LN3], [0.75 * LN3]]), atol=1e-12, what="dq")
    same(dk, np.array([[-0.75], [0.75]]), atol=1e-12, what="dk")


@task(4)
@hint("Your gradient and your own forward disagree. Which of dq, dk, dv is it? The scale enters dq and dk.")
def test_attention_vjp_finite_difference(submission, rng):
    """A small step in q, k or v changes the output by what `attention_vjp` says."""
    h = 1e-5
    inputs = [rng.standard_normal(s) for s in ((2, 3, 4), (2, 5, 4), (2, 5, 3))]
    dout = rng.standard_normal((2, 3, 3))
    _, cache = submission.attention(*inputs, causal=True)
    grads = submission.attention_vjp(dout, cache)
    for i, name in enumerate(("q", "k", "v")):
        step = rng.standard_normal(inputs[i].shape)
        ends = []
        for sign in (1, -1):
            moved = [x + sign * h * step if j == i else x for j, x in enumerate(inputs)]
            ends.append((submission.attention(*moved, causal=True)[0] * dout).sum())
        slope = (ends[0] - ends[1]) / (2 * h)
        same((grads[i] * step).sum(), slope, atol=1e-6, rtol=0, dtype=None, what=f"the slope along a step in {name}")


# -- tasks 5 and 6 ----------------------------------------------------------------------------------------------------


@task(5)
@hint("Broadcast views are free, copies of them are not: np.broadcast_to(...).reshape(...) copies.")
def test_bmm_peak_example(submission, budget, rng):
    """A product that broadcasts both operands peaks below twice its output."""
    a, b = (rng.standard_normal(s).astype("float32") for s in ((8, 1, 32, 64), (1, 16, 64, 16)))
    out = 8 * 16 * 32 * 16 * 4  # bytes; copies of both operands at the full batch would add 1.5 MB
    peak = budget.peak_bytes(lambda s: s.bmm(a, b))
    budget.require("peak bytes of bmm", peak, at_most=2 * out, at_least=out, reference=out, unit="bytes")


@task(6)
@hint("Each chunk of queries is an attention of its own.")
def test_chunked_attention_example(submission):
    """The brief's attention, one query at a time, gives the same rows."""
    same(submission.chunked_attention(Q, K, V, chunk=1), np.array([[6.0], [7.0]]), atol=1e-12, what="chunk=1")
    got = submission.chunked_attention(Q, K, V, chunk=1, causal=True)
    same(got, np.array([[4.0], [7.0]]), atol=1e-12, what="chunk=1, causal")
    with expect_error(ValueError):
        submission.chunked_attention(Q, K, V, chunk=0)


# -- task 7 -----------------------------------------------------------------------------------------------------------


@task(7)
@hint("Six output matrices of 4 × 5, inner size 3. Count the elements that are alive at the worst moment.")
def test_predict_peak_bytes_example(submission):
    """(2, 1, 4, 3) · (3, 3, 5) in float32: 480, 1128 and 1920 bytes."""
    shapes = (2, 1, 4, 3), (3, 3, 5)  # N = 2·3 = 6
    for method, want in (("gemm", 6 * 20 * 4), ("copy", 6 * (12 + 15 + 20) * 4), ("expand", 6 * (60 + 20) * 4)):
        got = submission.predict_peak_bytes(method, *shapes, 4)
        check(got == want, f"predicted bytes of {method!r}", got=got, want=want)


@probe
def profile_table(module, shapes):
    """Profile the three ways of multiplying, print the table, and return it with the numbers in it."""
    methods = {"gemm": module.bmm, "copy": module.bmm_copy, "expand": module.bmm_expand}
    records = module.profile_memory(methods, shapes)
    table = module.format_report(records)
    print(table)
    return table, [(r.label, r.output_bytes, r.peak_bytes, r.temp_bytes) for r in records]


@task(7)
@hint("One record for each pair, the functions outermost. temp is what the peak has beyond the output.")
def test_profile_of_six_shapes(submission):
    """The profile of three methods on six pairs of shapes prints as a table (`pytest -s` shows it)."""
    shapes = [
        ((64, 64), (64, 64)),
        ((8, 32, 64), (64, 32)),
        ((8, 32, 64), (8, 64, 32)),
        ((8, 1, 16, 64), (1, 8, 64, 16)),
        ((2, 2, 4, 16, 32), (2, 2, 1, 32, 16)),
        ((1, 4, 64, 16), (1, 4, 16, 64)),
    ]
    table, records = submission.run(profile_table, shapes)
    check(len(table.splitlines()) == 1 + 18, "a head and a line for each record", got=len(table.splitlines()), want=19)
    for label, output, peak, temp in records:
        check(peak >= output and temp == peak - output, f"{label}: the peak holds the output", got=(output, peak, temp))
    for gemm, copy, expand in zip(records[:6], records[6:12], records[12:], strict=True):
        check(copy[2] < expand[2], "expand needs more than copy", got=expand[2], want=f"more than {copy[2]}")
        check(gemm[2] < expand[2], "expand needs more than bmm", got=expand[2], want=f"more than {gemm[2]}")


@probe
def small_llama_profile(module):
    """What `python matrix_calculus.py --profile` prints, at 1/64 of the size."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        module.main(["--profile", "--heads", "2", "--tokens", "64", "128", "256", "--chunk", "32"])
    return printed.getvalue()


@task(7)
@hint("This runs everything you wrote; look for the first function in the traceback that is yours.")
def test_llama_profile_runs(submission):
    """The profile of LLaMA's attention (given, here at 1/64 size) runs, and its predictions for copies hold."""
    text = submission.run(small_llama_profile)
    pairs = re.findall(r"^copy .*predicted +([\d,]+) +measured +([\d,]+)", text, re.MULTILINE)
    check(len(pairs) == 3, "a predicted and a measured size for each T", got=len(pairs), want=3)
    for predicted, measured in pairs:
        predicted, measured = (int(x.replace(",", "")) for x in (predicted, measured))
        # Interpreter objects beside the arrays take 1 to 2 KiB.
        same(measured, predicted, atol=8192, rtol=0.02, dtype=None, what="measured bytes of bmm_copy")
    check(text.count("grow as T^") == 2, "an exponent for full and one for chunked attention", got=text[-200:])


@probe
def peak_of_known_call(module):
    """measure_peak of a call that takes 2 MiB, frees it, and returns 1 MiB."""
    import numpy as np

    def call():
        temporary = np.ones(2 * 2**20, np.uint8)
        del temporary
        return np.ones(2**20, np.uint8)

    r = module.measure_peak(call, label="known")
    return r.label, r.output_bytes, r.peak_bytes


@task(7)
@hint("tracemalloc.get_traced_memory() returns (now, peak): which one still knows about the array that is gone?")
def test_measure_peak_example(submission):
    """A call that takes 2 MiB, gives them back and returns 1 MiB peaks at 2 MiB."""
    label, output, peak = submission.run(peak_of_known_call)
    check(label == "known", "the label of the record", got=label, want="known")
    check(output == 2**20, "bytes of the output", got=output, want=2**20)
    check(2 * 2**20 <= peak < 2.1 * 2**20, "bytes at the peak", got=peak, want=2 * 2**20)


@task(7)
@hint("log 8 / log 2 = 3: the slope of a straight line through two points on log-log paper.")
def test_fit_exponent_example(submission):
    """Doubling the size and getting eight times the value is exponent 3."""
    same(submission.fit_exponent([10, 20, 40], [1.0, 8.0, 64.0]), 3.0, atol=1e-9, dtype=None, what="the exponent")
    with expect_error(ValueError):
        submission.fit_exponent([10], [1.0])
