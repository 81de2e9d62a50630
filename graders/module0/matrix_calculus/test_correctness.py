"""Hidden checks of 0.1: 56 points on the core tasks, 14 on the stretch tasks.

Where the contract leaves a reading open, every reading passes: results may be views of any layout, an array with
nothing to sum may come back itself, two vectors give a NumPy scalar or a zero-dimensional array, `bmm` may use fewer
GEMM calls than the folding rule, NaN in a softmax slice need only stay NaN where it was, the batch axes of the mask and
the dtype of float16 scores are not asked about.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import strategies as st

from llmkata.checks import check, expect_error, hint, needs, points, probe, same, sk, task

EPS = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


# -- strategies: shapes first, then a seed ----------------------------------------------------------------------------


def part_of(draw, full):
    """A shape that broadcasts to `full`: its last extents, some of them 1."""
    kept = draw(st.integers(0, len(full)))
    ones = draw(st.integers(0, 2**kept - 1))
    return tuple(1 if ones >> i & 1 else extent for i, extent in enumerate(full[len(full) - kept :]))


@st.composite
def operands(draw, vectors: bool = False):
    """(a, b) that can be multiplied: up to three batch axes, extents 0 to 4; with `vectors`, 1-D operands too."""
    batch = draw(st.lists(st.sampled_from((1, 2, 3, 4, 0)), max_size=3))
    n, k, m = (draw(st.sampled_from((1, 2, 3, 4, 0))) for _ in range(3))
    sa, sb = (*part_of(draw, batch), n, k), (*part_of(draw, batch), k, m)
    if vectors:
        kind = draw(st.sampled_from(("matrices", "matrices", "matrices", "row", "column", "both")))
        sa, sb = (k,) if kind in ("row", "both") else sa, (k,) if kind in ("column", "both") else sb
    seed = draw(st.integers(0, 2**16))
    return sk.array(seed, sa), sk.array(seed + 1, sb)


@st.composite
def stretched(draw):
    """(shape, a shape that it broadcasts to, seed)."""
    full = draw(st.lists(st.integers(1, 4), max_size=4))
    return part_of(draw, full), tuple(full), draw(st.integers(0, 2**16))


#: Batch axes of q, k and v. The last but one is grouped-query attention.
BATCHES = (
    ((), (), ()),
    ((2,), (2,), (2,)),
    ((1,), (1,), (1,)),
    ((3,), (), ()),
    ((), (2,), (2,)),
    ((2, 2, 3), (2, 2, 1), (2, 2, 1)),
    ((2, 1), (3,), (2, 3)),
)


#: (T, S). Simple cases first, and those in which different mistakes differ: with S = T + 1 a diagonal that starts at the
#: top left is also one that hides a query's own key, with S = 1 an average is also a choice.
SIZES = ((2, 2), (2, 4), (3, 2), (1, 3), (4, 4), (5, 2), (3, 5), (1, 1), (2, 3), (3, 1), (1, 2), (5, 4))


@st.composite
def attention_cases(draw):
    """(q, k, v, mask, causal). The mask, where there is one, may leave queries without any key."""
    t, s = draw(st.sampled_from(SIZES))
    d, dv = draw(st.sampled_from((2, 3, 4, 1))), draw(st.integers(1, 3))
    batch = draw(st.sampled_from(BATCHES))
    mask_kind = draw(st.sampled_from(("none", "keys", "matrix", "full")))
    causal = draw(st.booleans())
    seed = draw(st.integers(0, 2**16))
    q, k, v = (sk.array(seed + i, b + tail) for i, (b, tail) in enumerate(zip(batch, ((t, d), (s, d), (s, dv)))))
    scores = np.broadcast_shapes(batch[0], batch[1]) + (t, s)
    shape = {"none": None, "keys": (1, s), "matrix": (t, s), "full": scores}[mask_kind]
    mask = None if shape is None else sk.array(seed + 3, shape) > -0.3
    return q, k, v, mask, causal


# -- task 1 -----------------------------------------------------------------------------------------------------------


@probe
def broadcast_all(module, pairs):
    found = []
    for sa, sb in pairs:
        try:
            found.append(module.broadcast_batch(sa, sb))
        except ValueError as error:
            found.append(str(error))
    return found


@task(1)
@points(3)
@hint(
    "Write both shapes flush right, one above the other, and put a 1 where an axis is missing.",
    "Two extents go together if they are equal or one of them is 1; the other one wins, also when it is 0.",
)
def test_broadcast_batch_matches_numpy(submission, rng):
    """Batch shapes broadcast by NumPy's rule, and shapes that do not fit are named in the error."""
    pairs = []
    for _ in range(500):
        full = [int(x) for x in rng.choice((1, 2, 3, 0), size=rng.integers(0, 4), p=(0.3, 0.3, 0.3, 0.1))]
        # Mostly pairs that fit (each a part of one full shape), some with an extent that does not.
        pair = []
        for _ in range(2):
            part = [1 if rng.random() < 0.35 else x for x in full[int(rng.integers(0, len(full) + 1)) :]]
            if part and rng.random() < 0.15:
                part[int(rng.integers(0, len(part)))] = int(rng.integers(0, 5))
            pair.append(tuple(part))
        pairs.append(tuple(pair))
    for (sa, sb), got in zip(pairs, submission.run(broadcast_all, pairs), strict=True):
        try:
            want = np.broadcast_shapes(sa, sb)
        except ValueError:
            refused = isinstance(got, str) and all(text in got for text in ("cannot broadcast", str(sa), str(sb)))
            check(
                refused,
                f"{sa} and {sb} do not broadcast: raise ValueError with 'cannot broadcast' and both shapes",
                got=got,
                want=f"ValueError: cannot broadcast {sa} and {sb}",
            )
        else:
            check(got == want, f"{sa} and {sb} broadcast to {want}", got=got, want=want)


@task(1)
@points(8)
@hint(
    "Which matrix of a, and which of b, makes the matrix of the result at batch index (i, j)? An axis of extent 1 has "
    "only index 0.",
    "Give both operands the same number of batch axes first (x[None]); a view, not a copy.",
    "For empty axes: reshape(-1, k) cannot guess a -1 when k is 0. Compute the number of rows.",
)
@sk.given(operands(vectors=True), examples=80)
def test_bmm_matches_matmul(submission, reference, case):
    """`bmm` gives what `np.matmul` gives, for any two operands that can be multiplied."""
    a, b = case
    want = reference.bmm(a, b)
    same(np.asarray(submission.bmm(a, b)), np.asarray(want), atol=1e-12, what="bmm(a, b)")


@task(1)
@points(3)
@hint(
    "The result has dtype np.result_type(a, b), whatever order the operands come in.",
    "Never write into an operand, and do not rely on it being contiguous: copy what you must, at its own size.",
)
def test_bmm_dtypes_and_layouts(submission, reference, rng):
    """Dtypes mix as in NumPy, any strides will do, and the operands are left as they were."""
    for da, db in (
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float16"),
        ("int64", "int64"),
        ("float32", "float64"),
        ("int64", "float32"),
        ("float16", "float32"),
    ):
        a, b = (rng.integers(-4, 5, s).astype(d) for s, d in (((2, 1, 3, 4), da), ((3, 4, 2), db)))
        if da.startswith("float"):
            a = (a + rng.random(a.shape)).astype(da)
        compare_product(submission, reference, a, b)
    x = rng.standard_normal((6, 4, 8)).astype("float32")
    y = rng.standard_normal((6, 8, 4)).astype("float32")
    w = rng.standard_normal((8, 4)).astype("float32")
    for a, b in (
        (y.swapaxes(-1, -2), x.swapaxes(-1, -2)),
        (x[::2], y[1::2]),
        (x[:, ::-1, ::2], y[::-1, ::2, :]),
        (np.broadcast_to(x[0], (5, 4, 8)), y[:5]),
        (x[:2, None], np.broadcast_to(y[3], (2, 5, 8, 4))),
        (x.transpose(1, 0, 2), w),
        (x.transpose(1, 0, 2)[:, :, None, :], w),
    ):
        compare_product(submission, reference, a, b)


def compare_product(submission, reference, a, b):
    got, (a_after, b_after) = submission.call("bmm", a, b, echo=True)
    dtype = np.result_type(a, b)
    k = a.shape[-1]
    # Each of the k products and k - 1 sums of an output rounds by eps/2 at most; 4 k leaves room for any order of sums.
    tol = 4 * k * EPS.get(dtype.name, 0.0) * float(np.abs(a).max()) * float(np.abs(b).max())
    same(
        got,
        reference.bmm(a, b).astype(dtype),
        atol=tol,
        rtol=0,
        what=f"bmm of {a.dtype} {a.shape} and {b.dtype} {b.shape}",
    )
    same(a_after, a, atol=0, rtol=0, what="the operand a after the call")
    same(b_after, b, atol=0, rtol=0, what="the operand b after the call")


@task(1)
@points(4)
@hint(
    "Every product and every sum of products has to come out of the gemm that you were handed.",
    "This gemm does not add and multiply: it takes the maximum of sums, or counts modulo 7. Adding partial results "
    "yourself is not the same then.",
)
def test_bmm_is_generic_over_gemm(submission, reference, rng):
    """Handed another product (max-plus, or integers modulo 7), `bmm` gives the batched version of that product."""

    def max_plus(a, b, out=None):
        return put((a[:, :, None] + b[None, :, :]).max(axis=1), out)

    def mod7(a, b, out=None):
        return put(a % 7 @ (b % 7) % 7, out)

    def put(product, out):
        if out is None:
            return product
        out[...] = product
        return out

    for sa, sb in (
        ((3, 4), (4, 2)),
        ((2, 3, 4), (4, 2)),
        ((2, 1, 3, 4), (3, 4, 2)),
        ((2, 3, 2, 4), (2, 1, 4, 3)),
        ((3, 2, 4), (2, 1, 4, 2)),
    ):
        a, b = rng.standard_normal(sa), rng.standard_normal(sb)
        want = reference.brute_force(a, b, reference.max_plus)
        same(submission.bmm(a, b, gemm=max_plus), want, atol=0, rtol=0, what=f"max-plus product of {sa} and {sb}")
        a, b = rng.integers(0, 7, sa), rng.integers(0, 7, sb)
        want = reference.brute_force(a, b, reference.mod7)
        same(submission.bmm(a, b, gemm=mod7), want, atol=0, rtol=0, what=f"product modulo 7 of {sa} and {sb}")


# -- task 2 -----------------------------------------------------------------------------------------------------------


@task(2)
@points(4)
@hint(
    "What was copied forward is summed backward. Which axes did broadcasting add, and which did it stretch?",
    "Stretched axes (extent 1 in the shape) are summed with keepdims, added ones without.",
    "float16 has 11 bits: 2048 + 1 is 2048. Sum in float32, then cast back.",
)
@sk.given(stretched(), examples=30)
def test_unbroadcast_is_adjoint(submission, reference, case):
    """`unbroadcast` is the adjoint of broadcasting: <broadcast(x), g> = <x, unbroadcast(g)>."""
    shape, full, seed = case
    g = np.random.default_rng(seed).standard_normal(full)  # all digits, or sums would be exact in float32 too
    got = submission.unbroadcast(g, shape)
    same(np.asarray(got), reference.unbroadcast(g, shape), atol=1e-12, what=f"unbroadcast of {full} to {shape}")
    ones = submission.unbroadcast(np.ones((4096, 3, 2), np.float16), (3, 2))
    same(ones, np.full((3, 2), 4096, np.float16), atol=0, rtol=0, what="the sum of 4096 ones in float16")
    for refused in ((2,), (4, 3), (1, 2, 3)):
        with expect_error(ValueError):
            submission.unbroadcast(np.ones((2, 3)), refused)


@task(2)
@points(8)
@hint(
    "y = a·b gives da = g·bᵀ and db = aᵀ·g: check it on shapes.",
    "An operand that was broadcast gets the sum over all its copies: the gradient has its shape, not the batch's.",
    "The transpose is of the last two axes only (swapaxes(-1, -2)), not .T.",
)
@sk.given(operands(), examples=50)
def test_bmm_vjp_matches_autograd(submission, reference, case):
    """`bmm_vjp` gives autograd's gradients, with exactly the shapes and dtypes of the operands."""
    a, b = case
    g = sk.array(a.size + 7, np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1]))
    da, db = submission.bmm_vjp(a, b, g)
    want_a, want_b = reference.bmm_vjp(a, b, g)
    same(da, want_a, atol=1e-11, what=f"da for a {a.shape}, b {b.shape}")
    same(db, want_b, atol=1e-11, what=f"db for a {a.shape}, b {b.shape}")
    # Mixed dtypes: each gradient is stored like its operand.
    da, db = submission.bmm_vjp(a.astype("float32"), b, g)
    same(da, want_a.astype("float32"), atol=1e-4, what="da of a float32 a")
    same(db, want_b, atol=1e-4, what="db beside a float32 a")


@task(2)
@points(2)
@hint("Your gradient and your own product disagree: take a tiny step along one direction and see which one is off.")
def test_bmm_vjp_finite_difference(submission, rng):
    """A small step along any direction changes the product by what `bmm_vjp` says."""
    h = 1e-5
    for sa, sb in (((3, 2, 4), (4, 3)), ((2, 1, 2, 3), (3, 3, 2)), ((2, 3), (2, 2, 3, 4))):
        a, b = rng.standard_normal(sa), rng.standard_normal(sb)
        g = rng.standard_normal(np.broadcast_shapes(sa[:-2], sb[:-2]) + (sa[-2], sb[-1]))
        da, db = submission.bmm_vjp(a, b, g)
        u, w = rng.standard_normal(sa), rng.standard_normal(sb)
        for name, step_a, step_b, said in (("a", h * u, 0 * w, (da * u).sum()), ("b", 0 * u, h * w, (db * w).sum())):
            ahead = submission.bmm(a + step_a, b + step_b)
            behind = submission.bmm(a - step_a, b - step_b)
            slope = ((ahead - behind) * g).sum() / (2 * h)
            # The product is linear along each operand, so the central difference is exact but for rounding, about
            # eps / h = 2e-11 of the terms that are summed.
            size = float(np.abs(ahead * g).sum())
            same(said, slope, atol=1e-6 * size, rtol=0, dtype=None, what=f"slope along {name}, shapes {sa}, {sb}")


# -- task 3 -----------------------------------------------------------------------------------------------------------


@task(3)
@points(4)
@hint(
    "exp(710) overflows. softmax(x) = softmax(x - c) for any c: which c makes the largest exponent 0?",
    "-inf - (-inf) is NaN: what should c be for a slice that has nothing but -inf?",
    "float16 ends at 65504 and has 11 bits: compute in float32, return float16.",
)
def test_softmax_properties(submission, reference, rng):
    """`softmax` is a distribution along its axis, whatever is added to the input, for large and infinite inputs too."""
    x = rng.standard_normal((3, 4, 5)) * 3
    for axis in (0, 1, 2, -1):
        p, (after,) = submission.call("softmax", x, axis=axis, echo=True)
        same(after, x, atol=0, rtol=0, what="x after the call")
        same(p, reference.softmax(x, axis), atol=1e-12, what=f"softmax along axis {axis}")
        same(p.sum(axis), np.ones_like(p.sum(axis)), atol=1e-12, what=f"sums along axis {axis}")
        same(submission.softmax(x + 500.0, axis), p, atol=1e-11, what="softmax(x + 500)")
    inf = np.inf
    # 1e4 has an ulp of 1.8e-12: exp(x - logsumexp(x)) is as right as exp(x - max) / sum, and rounds by as much.
    hard = np.array([[1e4, 0, -1e4], [0, -inf, 1], [-inf, -inf, -inf], [-1e4, -1e4, -inf]])
    same(submission.softmax(hard), reference.softmax(hard), atol=1e-11, what="softmax with huge and -inf entries")
    nan = np.array([[0.0, np.nan, 1.0], [1.0, 2.0, 3.0]])
    got = submission.softmax(nan)
    check(np.isnan(got[0, 1]), "NaN in, NaN out: it must not be hidden", got=got[0], want="NaN at index 1")
    same(got[1], reference.softmax(nan[1]), atol=1e-13, what="the row beside a row with NaN")
    half = np.array([[6e4, 5.9e4, -6e4], [1.0, 2.0, 3.0]], np.float16)
    want = reference.softmax(half).astype(np.float16)
    same(submission.softmax(half), want, atol=2 * EPS["float16"], rtol=0, what="softmax of float16")
    long = rng.standard_normal((2, 4000)).astype(np.float16)
    total = submission.softmax(long).astype(np.float64).sum(-1)
    same(total, np.ones(2), atol=2e-2, what="the sum of 4000 float16 weights")
    single = rng.standard_normal((2, 3)).astype(np.float32)
    same(submission.softmax(single), reference.softmax(single).astype(np.float32), atol=2e-6, what="softmax of float32")
    same(
        submission.softmax(np.array([1, 2, 3])), reference.softmax(np.array([1, 2, 3])), atol=1e-13, what="of integers"
    )


@task(3)
@points(4)
@hint(
    "The outputs share a denominator: raising one input lowers all the other outputs. J is not diagonal.",
    "J = diag(p) - p pᵀ, so J·g = p ∘ (g - p·g), with one number p·g for each slice.",
)
def test_softmax_jacobian_and_vjp(submission, reference, rng):
    """The Jacobian is diag(p) - p pᵀ, and the VJP is that matrix applied to g, along any axis."""
    for n in (1, 2, 5):
        x, g = rng.standard_normal(n), rng.standard_normal(n)
        p = reference.softmax(x)
        jacobian = submission.softmax_jacobian(p)
        same(jacobian, reference.softmax_jacobian(p), atol=1e-13, what=f"the Jacobian for n = {n}")
        same(jacobian.sum(1), np.zeros(n), atol=1e-13, what="row sums of the Jacobian")
        same(submission.softmax_vjp(p, g), jacobian @ g, atol=1e-13, what="softmax_vjp against J @ g")
    x, g = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    for axis in (0, 1, -1):
        got, after = submission.call("softmax_vjp", reference.softmax(x, axis), g, axis, echo=True)
        same(after[1], g, atol=0, rtol=0, what="g after the call")
        same(got, reference.softmax_vjp(x, g, axis), atol=1e-13, what=f"softmax_vjp along axis {axis}")
    p32, g32 = reference.softmax(x).astype("float32"), g.astype("float32")
    want = reference.softmax_vjp(x, g).astype("float32")
    same(submission.softmax_vjp(p32, g32), want, atol=1e-6, what="softmax_vjp in float32")
    got = submission.softmax_vjp(p32.astype("float16"), g32.astype("float16"))
    # Four roundings of numbers below 4, the first of them that of the input.
    same(got, want.astype("float16"), atol=16 * EPS["float16"], rtol=0, what="softmax_vjp in float16")


# -- task 4 -----------------------------------------------------------------------------------------------------------


@task(4)
@points(7)
@hint(
    "scores = scale · q kᵀ with scale = 1/sqrt(d), mask, softmax over the keys (the last axis), times v.",
    "With S keys and T queries the last query sees the last key: query i sees key j iff j <= i + S - T.",
    "Masked scores are -inf, and your softmax already turns a row of -inf alone into zeros.",
)
@sk.given(attention_cases(), examples=40)
def test_attention_forward(submission, reference, case):
    """`attention` gives PyTorch's scaled dot-product attention: any mask, causal, grouped queries, rows without keys."""
    q, k, v, mask, causal = case
    out, cache = submission.attention(q, k, v, mask, causal=causal)
    same(out, reference.attention(q, k, v, mask, causal), atol=1e-12, what="attention")
    same(cache.q, q, atol=0, rtol=0, what="cache.q, as it was given")
    out, _ = submission.attention(q, k, v, mask, causal=causal, scale=0.3)
    same(out, reference.attention(q, k, v, mask, causal, 0.3), atol=1e-12, what="attention with scale=0.3")


@task(4)
@points(1)
@needs("test_attention_forward")
@hint("q * scale is float64 for a NumPy scale and a float32 q; float(scale) leaves the dtype alone.")
def test_attention_dtypes(submission, reference, rng):
    """The output has the dtype of q, k and v together, float16 included, whatever kind of number the scale is."""
    q, k, v = (rng.standard_normal(s) for s in ((2, 4, 3), (2, 5, 3), (2, 5, 2)))
    for dtypes in (("float32", "float32", "float32"), ("float16", "float16", "float16"), ("float32", "float32", "float64")):
        operands = [x.astype(dtype) for x, dtype in zip((q, k, v), dtypes, strict=True)]
        out, _ = submission.attention(*operands, scale=np.float64(0.5))
        want = reference.attention(*(x.astype("float64") for x in operands), scale=0.5).astype(np.result_type(*operands))
        # Scores of order 1 and their weights round once or twice each in float16; the sum is of five weights.
        atol = {"float16": 20 * EPS["float16"]}.get(dtypes[0], 1e-5)
        same(out, want, atol=atol, rtol=0, what=f"attention of {', '.join(dtypes)}")


@task(4)
@points(6)
@hint(
    "Walk backwards: out = p·v, p = softmax(s), s = scale · q·kᵀ. Each step is a function you have written.",
    "The scale is part of the chain rule: it multiplies dq and dk, but not dv.",
    "kᵀ enters the product, so its gradient comes out transposed.",
)
@sk.given(attention_cases(), examples=30)
def test_attention_vjp(submission, reference, case):
    """`attention_vjp` gives autograd's gradients, with the shapes of q, k and v."""
    q, k, v, mask, causal = case
    want_out = reference.attention(q, k, v, mask, causal)
    dout = sk.array(q.size + 11, want_out.shape)
    _, cache = submission.attention(q, k, v, mask, causal=causal)
    got = submission.attention_vjp(dout, cache)
    check(len(got) == 3, "attention_vjp returns (dq, dk, dv)", got=len(got), want=3)
    for name, x, y in zip(("dq", "dk", "dv"), got, reference.attention_vjp(q, k, v, dout, mask, causal), strict=True):
        same(x, y, atol=1e-11, what=name)


@task(4)
@points(2)
@needs("test_attention_vjp")
@hint(
    "A key that nobody may see cannot change the output. Weights are exactly 0 there, and so is every product with one."
)
def test_attention_vjp_symmetries(submission, rng):
    """Keys hidden from every query get gradient exactly 0, and the order of the keys plays no part."""
    q, k, v = (rng.standard_normal(s) for s in ((2, 4, 3), (2, 5, 3), (2, 5, 2)))
    dout = rng.standard_normal((2, 4, 2))
    mask = rng.random((2, 4, 5)) < 0.7
    mask[..., 3] = False
    _, cache = submission.attention(q, k, v, mask)
    dq, dk, dv = submission.attention_vjp(dout, cache)
    zero = np.zeros((2, 3))
    same(dk[:, 3], zero, atol=0, rtol=0, what="dk of a key that no query may see")
    same(dv[:, 3], zero[:, :2], atol=0, rtol=0, what="dv of a key that no query may see")
    order = np.array([2, 0, 4, 1, 3])
    _, cache = submission.attention(q, k[:, order], v[:, order], mask[..., order])
    moved_q, moved_k, moved_v = submission.attention_vjp(dout, cache)
    same(moved_q, dq, atol=1e-12, what="dq after keys and values were permuted together")
    same(moved_k, dk[:, order], atol=1e-12, what="dk after keys and values were permuted together")
    same(moved_v, dv[:, order], atol=1e-12, what="dv after keys and values were permuted together")


# -- task 6 -----------------------------------------------------------------------------------------------------------


@task(6)
@points(4)
@needs("test_attention_forward")
@hint(
    "A block of queries is attention too: which keys does the last query of the block see?",
    "If you hand fewer keys to attention(..., causal=True), its diagonal moves with them: stop where the last query of "
    "the block stops, and it falls into place.",
)
def test_chunked_equals_full(submission, reference, rng):
    """Whatever the chunk, `chunked_attention` gives the output of full attention."""
    for batch_q, batch_k, t, s in (((2,), (2,), 6, 6), ((2, 3), (2, 1), 5, 8), ((), (2,), 7, 4), ((1,), (1,), 1, 3)):
        q, k, v = (rng.standard_normal(x) for x in ((*batch_q, t, 4), (*batch_k, s, 4), (*batch_k, s, 3)))
        for causal in (False, True):
            want = reference.attention(q, k, v, causal=causal)
            for chunk in (1, 3, t, t + 5):
                got = submission.chunked_attention(q, k, v, chunk=chunk, causal=causal)
                what = f"chunked_attention, T={t}, S={s}, chunk={chunk}, causal={causal}"
                same(got, want, atol=1e-12, what=what)


# -- task 7 -----------------------------------------------------------------------------------------------------------


@probe
def scripted(module, mebibytes):
    """measure_peak on functions whose memory is known; -> plain numbers."""
    import tracemalloc

    import numpy as np

    big, small = (int(x * 2**20) for x in mebibytes)

    def allocate_and_free(x, times=1, *, y):
        temporary = np.ones(big, np.uint8)
        del temporary
        return np.ones(small, np.uint8)

    def several(x):
        return [np.ones(100), (np.ones(1000),), "text", np.ones(50, np.float32)]

    def a_pair():
        return np.ones(100), np.ones(50, np.float32)

    def fail():
        raise KeyError("on purpose")

    def fields(r):
        return {
            "label": r.label, "shapes": list(r.shapes[:]), "dtype": r.dtype, "input": r.input_bytes, "output": r.output_bytes,
            "peak": r.peak_bytes, "temp": r.temp_bytes,
        }  # fmt: skip

    x, y = np.ones((3, 4), np.float32), np.ones(5, np.float32)
    report = {"scripted": fields(module.measure_peak(allocate_and_free, x, 2, y=y, label="a label"))}
    report["tracing after"] = tracemalloc.is_tracing()
    report["several"] = fields(module.measure_peak(several, x))
    report["no inputs"] = fields(module.measure_peak(a_pair))
    try:
        module.measure_peak(fail)
        report["raised"] = False
    except KeyError:
        report["raised"] = True
    report["tracing after an error"] = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        # What exists already, and an earlier peak, are no part of the call.
        earlier = np.ones(3 * big, np.uint8)
        del earlier
        report["while tracing"] = fields(module.measure_peak(allocate_and_free, x, y=y))
        report["still tracing"] = tracemalloc.is_tracing()
        try:
            module.measure_peak(fail)
        except KeyError:
            pass
        report["still tracing after an error"] = tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    return report


@task(7)
@points(3)
@hint(
    "get_traced_memory() returns (now, highest so far). What is left at the end says nothing about the way there.",
    "reset_peak() before the call, and subtract the level at entry. try/finally, so that an error leaves no trace behind.",
)
def test_measure_peak_on_scripted_allocations(submission):
    """A call that takes 8 MiB, gives them back and returns 1 MiB has a peak of 8 MiB and an output of 1 MiB."""
    mib = 2**20
    report = submission.run(scripted, (8, 1))
    for name in ("scripted", "while tracing"):
        r = report[name]
        check(
            8 * mib <= r["peak"] <= 9 * mib,
            f"{name}: the high-water mark of the call",
            got=r["peak"],
            want="8 to 9 MiB",
        )
        check(r["output"] == mib, f"{name}: bytes of the returned array", got=r["output"], want=mib)
        check(r["temp"] == r["peak"] - r["output"], f"{name}: temp = peak - output", got=r["temp"])
        check(r["input"] == 4 * (12 + 5), f"{name}: bytes of all array arguments, y too", got=r["input"], want=68)
        check(r["dtype"] == "float32", f"{name}: dtype by name", got=r["dtype"], want="float32")
    shapes = tuple(tuple(s) for s in report["scripted"]["shapes"])
    check(shapes == ((3, 4), (5,)), "shapes of the inputs", got=shapes, want=((3, 4), (5,)))
    check(report["scripted"]["label"] == "a label", "the label is kept", got=report["scripted"]["label"])
    output = report["several"]["output"]
    check(
        output == 800 + 200, "arrays directly inside a returned list count, deeper ones do not", got=output, want=1000
    )
    none = report["no inputs"]
    check(none["output"] == 800 + 200, "arrays of a returned tuple count too", got=none["output"], want=1000)
    got = (none["shapes"], none["dtype"], none["input"])
    check(got == ([], "", 0), "without array arguments: no shapes, no dtype, no bytes", got=got, want=([], "", 0))
    check(report["raised"], "an error of fn must come out of measure_peak")
    for name in ("tracing after", "tracing after an error"):
        check(not report[name], f"{name} the call: tracemalloc must be stopped if it was not tracing before")
    for name in ("still tracing", "still tracing after an error"):
        check(report[name], f"{name}: tracemalloc must be left tracing if it was tracing before")


def traced(fn, a, b):
    """Peak traced bytes of one call of ours."""
    tracemalloc.start()
    try:
        level = tracemalloc.get_traced_memory()[0]
        result = fn(a, b)
        peak = tracemalloc.get_traced_memory()[1] - level
        del result
        return peak
    finally:
        tracemalloc.stop()


@task(7)
@points(4)
@hint(
    "N is the number of matrices in the output: the product of the broadcast batch shape.",
    "What is alive at the worst moment of each method? Count elements, then multiply by the item size.",
)
def test_memory_model_matches_measurement(submission, reference, rng):
    """`predict_peak_bytes` says in advance what tracemalloc then measures for `bmm_expand` and `bmm_copy`."""
    # Outputs of 128 KiB and more: while it multiplies broadcast operands, NumPy holds buffers of up to 112 KiB that are
    # in no model. They are gone before the sum, where the peak is as long as the output is larger than they were.
    for sa, sb, dtype in (
        ((8, 1, 32, 64), (1, 16, 64, 8), "float32"),
        ((6, 128, 8), (8, 64), "float64"),
        ((3, 1, 64, 8), (3, 5, 8, 48), "float32"),
    ):
        a, b = (rng.standard_normal(s).astype(dtype) for s in (sa, sb))
        size = a.dtype.itemsize
        count = int(np.prod(np.broadcast_shapes(sa[:-2], sb[:-2])))
        for method, fn in (("expand", reference.expand), ("copy", reference.copy)):
            predicted = submission.predict_peak_bytes(method, sa, sb, size)
            measured = traced(fn, a, b)
            # Measured error: 1.5 KiB on 8.5 MB, 1.7 KiB on 1.4 MB (interpreter objects beside the arrays).
            what = f"bytes predicted for {method!r}, {sa} and {sb}"
            same(predicted, measured, atol=8192, rtol=0.02, dtype=None, what=what)
        got = submission.predict_peak_bytes("gemm", sa, sb, size)
        want = count * sa[-2] * sb[-1] * size
        check(got == want, f"'gemm' for {sa} and {sb}: the output only", got=got, want=want)
    with expect_error(ValueError):
        submission.predict_peak_bytes("einsum", (2, 3), (3, 4), 4)


@probe
def profiled(module, names, cases, dtype, seed):
    """profile_memory on functions that note their inputs; -> the inputs and the records, as plain data."""
    seen = []

    def noting(name):
        def fn(*arrays):
            seen.append((name, [x.copy() for x in arrays]))
            return arrays[0] * 2

        return fn

    records = module.profile_memory({name: noting(name) for name in names}, cases, dtype=dtype, seed=seed)
    plain = [
        (r.label, tuple(tuple(s) for s in r.shapes), r.dtype, r.input_bytes, r.output_bytes, r.peak_bytes, r.temp_bytes)
        for r in records
    ]
    return seen, plain


@task(7)
@points(3)
@hint(
    "Names outermost: all cases of the first function, then all of the second.",
    "Every pair starts again from np.random.default_rng(seed), so that each function sees the same inputs.",
    "A power law is a straight line in log-log: its slope is cov(x, y) / var(x) of the logarithms.",
)
def test_profile_and_fit(submission, rng):
    """The profile has one record a pair in order, the same seed gives the same inputs, and a power law is recovered."""
    names, cases = ["second", "first"], [((3, 4), (4, 2)), ((2, 5),)]
    for dtype, seed in (("float32", 5), ("float64", 6)):
        seen, records = submission.run(profiled, names, cases, dtype, seed)
        pairs = [(name, case) for name in names for case in cases]
        labels = [(r[0], r[1]) for r in records]
        check(labels == pairs, "one record for each (name, case), names outermost", got=labels, want=pairs)
        for (name, case), (called, inputs), r in zip(pairs, seen, records, strict=True):
            check(called == name, "which function was called", got=called, want=name)
            draw = np.random.default_rng(seed)
            for got, shape in zip(inputs, case, strict=True):
                same(got, draw.standard_normal(shape).astype(dtype), atol=0, rtol=0, what=f"input {shape} of {name}")
            size = np.dtype(dtype).itemsize
            total = sum(int(np.prod(s)) for s in case) * size
            check(r[2] == dtype and r[3] == total, "dtype and input bytes", got=r[2:4], want=(dtype, total))
            check(r[4] == int(np.prod(case[0])) * size, "output bytes", got=r[4])
            check(
                r[5] >= r[4] and r[6] == r[5] - r[4], "temp = peak - output, and the peak holds the output", got=r[4:]
            )
    sizes = [64, 100, 333, 1000]
    for exponent in (1.0, 2.0, 0.5):
        slope = submission.fit_exponent(sizes, [7.0 * s**exponent for s in sizes])
        same(slope, exponent, atol=1e-9, rtol=0, dtype=None, what=f"fit of 7 n^{exponent}")
    slope = submission.fit_exponent([0.25, 4.0], [0.5, 2.0])
    same(slope, 0.5, atol=1e-9, rtol=0, dtype=None, what="fit of two points of sqrt(n), one of them below 1")
    x, y = np.log(sizes), np.log([3.0, 5.0, 4.0, 30.0])
    want = float(np.polyfit(x, y, 1)[0])
    same(
        submission.fit_exponent(sizes, [3.0, 5.0, 4.0, 30.0]),
        want,
        atol=1e-9,
        rtol=0,
        dtype=None,
        what="fit of noisy points",
    )
    for bad_sizes, bad_values in (
        ([4.0], [2.0]),
        ([1.0, 2.0], [3.0]),
        ([1.0, 2.0], [0.0, 1.0]),
        ([1.0, 2.0], [3.0, -1.0]),
    ):
        with expect_error(ValueError):
            submission.fit_exponent(bad_sizes, bad_values)
