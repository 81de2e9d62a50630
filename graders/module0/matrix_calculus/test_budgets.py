"""Budgets of 0.1: calls, FLOPs and bytes, 30 points, 6 of them on the core tasks.

Calls and FLOPs are counted in the GEMM that is handed in. It runs on the grader's side; only the writing of `out=`
happens beside the submission (`with_gemm`), because an array of the submission cannot be written from outside.
Every count is one of arrays: T and S are queries and keys, item size 4 bytes (float32).
"""

from __future__ import annotations

import numpy as np

from llmkata.checks import hint, needs, points, probe, same, task


class CountingGemm:
    """`factor · (a b)`, with its calls and its FLOPs: 2·n·k·m for [n, k]·[k, m]."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.calls = self.flops = 0

    def __call__(self, a, b):
        self.calls += 1
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return self.factor * (a @ b)


@probe
def with_gemm(module, name, gemm, args, kwargs):
    """module.<name>(*args, gemm=...) with a GEMM that writes `out` here and takes its numbers from the grader."""

    def handed_in(a, b, out=None):
        if a.ndim != 2 or b.ndim != 2:
            raise ValueError(f"gemm: needs two matrices, got shapes {a.shape} and {b.shape}")
        product = gemm(a, b)
        if out is None:
            return product
        out[...] = product
        return out

    return getattr(module, name)(*args, gemm=handed_in, **kwargs)


def run(submission, name, *args, factor=1.0, **kwargs):
    """-> (what the submission returned, the GEMM that counted)."""
    gemm = CountingGemm(factor)

    def product(a, b):
        return gemm(a, b)

    return submission.run(with_gemm, name, product, args, kwargs), gemm


def normal(rng, *shapes, dtype="float32"):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


# -- calls ------------------------------------------------------------------------------------------------------------


@task(1)
@points(2)
@needs("test_bmm_matches_matmul")
@hint("If b is one matrix, the matrices of a can be stacked on top of each other: one tall matrix, one product.")
def test_shared_weight_is_one_gemm(submission, reference, budget, rng):
    """A batch times one shared matrix is a single GEMM."""
    for sa, sb in (((64, 4, 128), (128, 32)), ((2, 3, 5, 8), (1, 8, 6))):
        a, b = normal(rng, sa, sb)
        out, gemm = run(submission, "bmm", a, b)
        same(out, reference.bmm(a, b).astype("float32"), atol=1e-3, what=f"bmm of {sa} and {sb}")
        # One matrix in b: 1 call. One call per batch element: 64, and 2·3 = 6.
        name = f"GEMM calls for {sa} · {sb}"
        budget.require(name, gemm.calls, at_most=1, at_least=1, reference=1, unit="calls", trust="handed in")


@task(5)
@points(4)
@needs("test_bmm_matches_matmul", "test_bmm_vjp_matches_autograd")
@hint(
    "Sort the batch axes by what b does on them: has it one matrix there, or many?",
    "Bring the axes on which b has extent 1 next to the rows (transpose), merge them with the rows (reshape), and loop "
    "over the other ones only.",
    "Backward: a batch of products summed afterwards is a longer contraction. The axes to sum join the inner axis.",
)
def test_gemm_calls(submission, reference, budget, rng):
    """One GEMM for each distinct matrix of b, never one for each element of the broadcast batch."""
    for sa, sb, limit in (
        ((8, 1, 32, 64), (1, 16, 64, 8), 16),  # b has 1·16 matrices; batch 8·16 = 128
        ((2, 2, 4, 64, 32), (2, 2, 1, 32, 64), 4),  # 2·2·1; batch 2·2·4 = 16
        ((6, 4, 32, 48), (4, 48, 40), 4),  # 4; batch 6·4 = 24
    ):
        a, b = normal(rng, sa, sb)
        out, gemm = run(submission, "bmm", a, b)
        same(out, reference.bmm(a, b).astype("float32"), atol=1e-3, what=f"bmm of {sa} and {sb}")
        name = f"GEMM calls for {sa} · {sb}"
        budget.require(name, gemm.calls, at_most=limit, at_least=1, reference=limit, unit="calls", trust="handed in")
    for sa, sb, limit in (
        ((64, 8, 128), (128, 128), 2),  # db = aᵀ·g and da = g·bᵀ, rows folded: 2; a batch of products: 65 to 128
        ((2, 2, 4, 16, 8), (2, 2, 1, 8, 16), 8),  # twice the 4 matrices of b; batch of products: 20 to 32
    ):
        a, b = normal(rng, sa, sb)
        (g,) = normal(rng, reference.bmm(a, b).shape)
        _, gemm = run(submission, "bmm_vjp", a, b, g)
        name = f"GEMM calls backward for {sa} · {sb}"
        budget.require(name, gemm.calls, at_most=limit, at_least=2, reference=limit, unit="calls", trust="handed in")


# -- FLOPs ------------------------------------------------------------------------------------------------------------


def require_flops(budget, name, gemm, exact):
    budget.require(name, gemm.flops, at_most=exact, at_least=exact, reference=exact, unit="FLOP", trust="handed in")


@task(2)
@points(2)
@needs("test_bmm_matches_matmul", "test_bmm_vjp_matches_autograd")
@hint(
    "Fewer FLOPs than the product has: something was multiplied outside gemm. More: something was computed twice.",
    "da and db cost as much as the product each. Summing copies adds no product.",
)
def test_flops_of_products(submission, reference, budget, rng):
    """`bmm` needs exactly 2·N·n·k·m FLOPs, `bmm_vjp` twice that, all of them in the GEMM handed in."""
    for sa, sb in (((3, 4, 5), (5, 6)), ((2, 1, 3, 4), (3, 4, 2)), ((2, 2, 3, 4), (2, 1, 4, 3)), ((4, 3), (2, 3, 5))):
        a, b = normal(rng, sa, sb, dtype="float64")
        want = reference.bmm(a, b)
        exact = 2 * want.size * sa[-1]  # N·n·m outputs, k multiply-adds each
        # A GEMM that halves its product tells work done by it from work done elsewhere.
        out, gemm = run(submission, "bmm", a, b, factor=0.5)
        same(out, 0.5 * want, atol=1e-11, what=f"bmm of {sa} and {sb} with a GEMM that halves")
        require_flops(budget, f"FLOPs of bmm, {sa} · {sb}", gemm, exact)
        (g,) = normal(rng, want.shape, dtype="float64")
        grads, gemm = run(submission, "bmm_vjp", a, b, g, factor=0.5)
        halves = tuple(0.5 * x for x in reference.bmm_vjp(a, b, g))
        same(tuple(grads), halves, atol=1e-11, what=f"bmm_vjp for {sa} and {sb} with a GEMM that halves")
        require_flops(budget, f"FLOPs of bmm_vjp, {sa} · {sb}", gemm, 2 * exact)


@task(4)
@points(2)
@needs("test_attention_forward", "test_attention_vjp")
@hint(
    "Forward is two products: q·kᵀ and p·v. Backward is the two gradients of each, from the weights in the cache.",
    "2.5 times forward: you computed the weights again. Pass gemm on to every product.",
)
def test_flops_of_attention(submission, reference, budget, rng):
    """Attention needs exactly 2·N·T·S·(d + dv) FLOPs forward and twice that backward."""
    for batch_q, batch_k, t, s, d, dv in (((2,), (2,), 6, 6, 4, 4), ((2, 2, 3), (2, 2, 1), 5, 7, 4, 3)):
        q, k, v = normal(rng, (*batch_q, t, d), (*batch_k, s, d), (*batch_k, s, dv), dtype="float64")
        exact = 2 * int(np.prod(batch_q)) * t * s * (d + dv)
        scale = d**-0.5
        # With a GEMM that halves, the scores are halved and so is the output.
        want = 0.5 * reference.attention(q, k, v, scale=0.5 * scale)
        (out, _), gemm = run(submission, "attention", q, k, v, factor=0.5)
        same(out, want, atol=1e-11, what="attention with a GEMM that halves")
        require_flops(budget, f"FLOPs of attention, q {q.shape}, k {k.shape}", gemm, exact)

        dout = rng.standard_normal(out.shape)
        dq, dk, dv_ = reference.attention_vjp(q, k, v, dout)
        _, cache = submission.attention(q, k, v)
        grads, gemm = run(submission, "attention_vjp", dout, cache, factor=0.5)
        # dv is one product behind dout, dq and dk are two.
        want = (0.25 * dq, 0.25 * dk, 0.5 * dv_)
        same(tuple(grads), want, atol=1e-11, what="attention_vjp with a GEMM that halves")
        require_flops(budget, f"FLOPs of attention_vjp, q {q.shape}, k {k.shape}", gemm, 2 * exact)


# -- bytes ------------------------------------------------------------------------------------------------------------

SLACK = 64 * 1024


@task(5)
@points(6)
@needs("test_bmm_matches_matmul")
@hint(
    "np.broadcast_to costs nothing, reshaping what it returns costs everything: a view with stride 0 cannot be "
    "reshaped without a copy of every repeated element.",
    "Index the extent-1 axis with 0 instead of repeating it. Let gemm write into the result: out=result[i].",
)
def test_bmm_peak(submission, budget, rng):
    """`bmm` needs its output and at most one copy of each operand at its own size."""
    for sa, sb in (
        # Limit out + a + b + 64 KiB. Bytes of the last but one, for example: 131072 + 65536 + 32768 + 65536 = 294912;
        # measured 138130; bmm_copy 1443824, bmm_expand 8521116.
        ((64, 4, 128), (128, 32)),
        ((2, 2, 4, 64, 32), (2, 2, 1, 32, 64)),
        ((6, 4, 32, 48), (4, 48, 40)),
        ((8, 1, 32, 64), (1, 16, 64, 8)),
        ((1, 12, 24, 40), (10, 1, 40, 24)),
    ):
        a, b = normal(rng, sa, sb)
        out = 4 * int(np.prod(np.broadcast_shapes(sa[:-2], sb[:-2]))) * sa[-2] * sb[-1]
        peak = budget.peak_bytes(lambda s, a=a, b=b: s.bmm(a, b))
        limit = out + a.nbytes + b.nbytes + SLACK
        budget.require(f"peak bytes of {sa} · {sb}", peak, at_most=limit, at_least=out, reference=out, unit="bytes")


@task(5)
@points(6)
@needs("test_bmm_vjp_matches_autograd")
@hint(
    "A batch of gradients that is summed afterwards is as large as the batch. How large is the gradient you want?",
    "With the rows folded, db = aᵀ·g is one product [k, B·n]·[B·n, m]: the sum over the batch is its inner sum.",
)
def test_vjp_peak(submission, budget, rng):
    """`bmm_vjp` needs its gradients and at most a copy of each operand and of g."""
    for sa, sb in (
        # Limit 2(a + b) + g + 64 KiB = 2(262144 + 65536) + 262144 + 65536 = 983040; measured 592360 (alternatives 334896
        # and 329992); 64 products of 65536 bytes that are summed afterwards: 4981384.
        ((64, 8, 128), (128, 128)),
        # 2(81920 + 40960) + 51200 + 65536 = 362496; measured 207256; 40 products of 40960 bytes: 1884904.
        ((40, 4, 128), (1, 128, 80)),
    ):
        a, b, g = normal(rng, sa, sb, (*sa[:-1], sb[-1]))
        peak = budget.peak_bytes(lambda s, a=a, b=b, g=g: s.bmm_vjp(a, b, g))
        limit = 2 * (a.nbytes + b.nbytes) + g.nbytes + SLACK
        floor = a.nbytes + b.nbytes
        budget.require(f"peak bytes backward of {sa} · {sb}", peak, at_most=limit, at_least=floor, unit="bytes")


@task(6)
@points(4)
@needs("test_attention_forward", "test_attention_vjp")
@hint(
    "Count the T×S arrays that are alive at the same time. Each `x = f(x)` on the scores holds two.",
    "The scores are yours: scale, mask, exponentiate and divide them in place (out=, +=, np.copyto(..., where=...)).",
)
def test_attention_peak(submission, reference, budget, rng):
    """Attention never holds three arrays of the size of its scores forward, or more than three backward."""
    t, heads, d = 512, 2, 32
    q, k, v, dout = normal(rng, *[(1, heads, t, d)] * 4)
    scores = 4 * heads * t * t  # S = 2 MiB
    # In units of S, beside the scores: out 1/16, the causal mask 1/8 (one byte an element, one for all heads).
    # Measured 1.19 in place; with softmax into a second array 2.06 to 2.15; s = s * scale, s = np.where(...),
    # e / e.sum() 4.0; one new array per line, all alive, 6.1.
    forward = budget.peak_bytes(lambda s: s.attention(q, k, v, causal=True))
    limit = int(2.75 * scores)
    budget.require("peak bytes forward", forward, at_most=limit, at_least=scores, reference=1.19 * scores, unit="bytes")
    # dp and one more array, and three gradients of 1/16: measured 2.08; p * (g - (p * g).sum()) 3.06; one new array per
    # line, all alive, 5.2.
    p = reference.attention(q, k, np.eye(t), causal=True).astype("float32")
    backward = budget.peak_bytes(lambda s: s.attention_vjp(dout, s.AttentionCache(q, k, v, p, d**-0.5)))
    limit = int(3.25 * scores)
    budget.require(
        "peak bytes backward", backward, at_most=limit, at_least=scores, reference=2.08 * scores, unit="bytes"
    )


@task(6)
@points(4)
@needs("test_chunked_equals_full")
@hint(
    "Nothing of size T×S may exist, not for a moment: slice the queries before the product, not the scores after it.",
    "A causal chunk needs only the keys up to its last query: half of all scores, on average.",
)
def test_chunked_scaling(submission, budget, rng):
    """Beyond its output, chunked attention needs memory in proportion to T, and under causal about half the FLOPs."""
    heads, d, chunk = 2, 32, 32
    sizes, temps, limits = (256, 512, 1024), [], []
    for t in sizes:
        q, k, v = normal(rng, *[(1, heads, t, d)] * 3)
        peak = budget.peak_bytes(lambda s, q=q, k=k, v=v: s.chunked_attention(q, k, v, chunk=chunk))
        # The output has the size of q. What is left is still a metric: it keeps where it was measured.
        temps.append(type(peak)(max(peak - q.nbytes, 1.0), peak.trust))
        # Three arrays of [heads, chunk, T] scores, a copy of q, k and v, 64 KiB: at T = 1024
        # 3·2·32·1024·4 + 3·262144 + 65536 = 1638400. Measured 299104 (887008 with the chunks concatenated at the end);
        # full attention holds 2·1024·1024·4 = 8388608.
        limits.append(3 * heads * chunk * t * 4 + 3 * q.nbytes + SLACK)
    # Linear in T. Measured 0.77 (0.90, 0.99); full attention 1.9.
    budget.growth("bytes beyond the output", sizes, temps, exponent_at_most=1.3, at_most=limits, unit="bytes")
    t, chunk = 128, 8
    q, k, v = normal(rng, *[(1, heads, t, d)] * 3)
    full = 2 * heads * t * t * (2 * d)
    _, gemm = run(submission, "chunked_attention", q, k, v, chunk=chunk, causal=True)
    # 16 chunks; chunk c sees 8(c + 1) keys: Σ = 136 blocks of 256, 0.531 of all. Needed for the scores alone: 0.504.
    limit, floor = int(0.60 * full), int(0.5 * full)
    budget.require("FLOPs of causal chunks", gemm.flops, at_most=limit, at_least=floor, reference=0.53125 * full,
                   unit="FLOP", trust="handed in")  # fmt: skip
