"""Mistakes people make in 0.1. Each replaces one function of the model answer, in whose namespace it runs."""

# ruff: noqa: F821
from __future__ import annotations

from llmkata.checks import misconception

# -- products ---------------------------------------------------------------------------------------------------------


@misconception(
    "vjp_forgets_unbroadcast",
    replaces="bmm_vjp",
    caught_by="test_bmm_vjp_matches_autograd",
    feedback="Your gradient has the shape of the output's batch, not of the operand. What was copied forward must be "
    "summed backward: an operand of extent 1 was used once for each batch element, and gets the sum.",
)
def vjp_forgets_unbroadcast(a, b, g, *, gemm=gemm):
    da = bmm(g, np.swapaxes(b, -1, -2), gemm=gemm)
    db = bmm(np.swapaxes(a, -1, -2), g, gemm=gemm)
    return da.astype(a.dtype), db.astype(b.dtype)


@misconception(
    "unbroadcast_sums_leading_only",
    replaces="unbroadcast",
    caught_by="test_unbroadcast_is_adjoint",
    feedback="You summed the axes that broadcasting added, but not the ones that it stretched. An axis that the shape "
    "has as 1 was repeated too: sum over it with keepdims=True.",
)
def unbroadcast_sums_leading_only(g, shape):
    lead = g.ndim - len(shape)
    wide = g.astype(np.float32) if g.dtype == np.float16 else g
    return wide.sum(axis=tuple(range(lead))).astype(g.dtype)


@misconception(
    "unbroadcast_in_float16",
    replaces="unbroadcast",
    caught_by="test_unbroadcast_is_adjoint",
    feedback="Summing float16 in float16 stalls: it has 11 bits, so 2048 + 1 is 2048. Accumulate in float32 and cast the "
    "result back.",
)
def unbroadcast_in_float16(g, shape):
    if g.dtype != np.float16:
        return original(g, shape)
    total = np.zeros(shape, np.float16)
    for row in g.reshape(-1, *shape):
        total = total + row
    return total


@misconception(
    "vjp_untransposed",
    replaces="bmm_vjp",
    caught_by="test_bmm_vjp_matches_autograd",
    feedback="For y = a·b, db is aᵀ·g: you multiplied by a itself. Shapes tell: a is [n, k], g is [n, m], and db must be "
    "[k, m].",
)
def vjp_untransposed(a, b, g, *, gemm=gemm):
    da = original(a, b, g, gemm=gemm)[0]
    return da, unbroadcast(bmm(a, g, gemm=gemm), b.shape).astype(b.dtype)


@misconception(
    "loop_over_the_batch",
    replaces="bmm",
    caught_by="test_gemm_calls",
    matches="calls",
    feedback="You call gemm once for each element of the broadcast batch. Where b has extent 1, all those products share "
    "one matrix: stack the matrices of a and make it one product.",
)
def loop_over_the_batch(a, b, *, gemm=gemm):
    if min(a.ndim, b.ndim) < 3:
        return original(a, b, gemm=gemm)
    batch = broadcast_batch(a.shape[:-2], b.shape[:-2])
    wide_a = np.broadcast_to(a, batch + a.shape[-2:])
    wide_b = np.broadcast_to(b, batch + b.shape[-2:])
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), np.result_type(a, b))
    for index in np.ndindex(*batch):
        out[index] = gemm(wide_a[index], wide_b[index])
    return out


@misconception(
    "materialised_broadcast",
    replaces="bmm",
    caught_by="test_bmm_peak",
    matches="peak_bytes",
    equivalent_to="loop_over_the_batch",  # it makes the same calls besides, and is told by its bytes alone
    feedback="np.broadcast_to is free, but reshape of a broadcast view copies it, silently: you paid for the broadcast "
    "in bytes. Reshape the operand first, at its own size, or index its extent-1 axis with 0.",
)
def materialised_broadcast(a, b, *, gemm=gemm):
    if a.ndim < 2 or b.ndim < 2:
        return original(a, b, gemm=gemm)
    batch = broadcast_batch(a.shape[:-2], b.shape[:-2])
    count = math.prod(batch)
    wide_a = np.broadcast_to(a, batch + a.shape[-2:]).reshape((count,) + a.shape[-2:])
    wide_b = np.broadcast_to(b, batch + b.shape[-2:]).reshape((count,) + b.shape[-2:])
    out = np.empty((count, a.shape[-2], b.shape[-1]), np.result_type(a, b))
    for i in range(count):
        out[i] = gemm(wide_a[i], wide_b[i])
    return out.reshape((*batch, a.shape[-2], b.shape[-1]))


@misconception(
    "sums_a_batch_of_gradients",
    replaces="bmm_vjp",
    caught_by="test_vjp_peak",
    matches="peak_bytes",
    feedback="You compute one gradient for each batch element and sum them afterwards: the batch of gradients is far "
    "larger than the gradient. Fold the batch into the rows, and the sum happens inside one product.",
)
def sums_a_batch_of_gradients(a, b, g, *, gemm=gemm):
    da = bmm(g, np.swapaxes(b, -1, -2), gemm=gemm)
    db = bmm(np.swapaxes(a, -1, -2), g, gemm=gemm)
    return unbroadcast(da, a.shape).astype(a.dtype), unbroadcast(db, b.shape).astype(b.dtype)


@misconception(
    "product_again_in_the_gradient",
    replaces="bmm_vjp",
    caught_by="test_flops_of_products",
    matches="flops",
    feedback="Your gradient computes the product a·b once more, which is half as much work again. The shapes of a and b say "
    "what shape g must have.",
)
def product_again_in_the_gradient(a, b, g, *, gemm=gemm):
    if bmm(a, b, gemm=gemm).shape != g.shape:
        raise ValueError("g does not have the shape of the product")
    return original(a, b, g, gemm=gemm)


# -- softmax ----------------------------------------------------------------------------------------------------------


@misconception(
    "softmax_overflows",
    replaces="softmax",
    caught_by="test_softmax_properties",
    feedback="exp of a large input overflows to infinity, and inf / inf is NaN. Subtract the maximum of each slice "
    "first: it changes nothing in the result.",
)
def softmax_overflows(x, axis=-1):
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(x)
        return weights / weights.sum(axis=axis, keepdims=True)


@misconception(
    "softmax_vjp_elementwise",
    replaces="softmax_vjp",
    caught_by="test_softmax_jacobian_and_vjp",
    feedback="p (1 - p) g is the diagonal of the Jacobian only. The outputs of softmax share a denominator: raising one "
    "input lowers all the others, -p_i p_j off the diagonal.",
)
def softmax_vjp_elementwise(p, g, axis=-1):
    return p * (1 - p) * g


# -- attention --------------------------------------------------------------------------------------------------------


@misconception(
    "scale_by_d",
    replaces="attention",
    caught_by="test_attention_forward",
    feedback="This behaves exactly as if you had scaled by 1/d rather than 1/sqrt(d). A sum of d products of independent "
    "numbers of variance 1 has variance d, that is standard deviation sqrt(d).",
)
def scale_by_d(q, k, v, mask=None, *, causal=False, scale=None, gemm=gemm):
    return original(q, k, v, mask, causal=causal, scale=1.0 / q.shape[-1] if scale is None else scale, gemm=gemm)


@misconception(
    "mask_inverted",
    replaces="attention",
    caught_by="test_attention_forward",
    feedback="Your mask works the other way round: in this course True means 'may attend'. (PyTorch has both "
    "conventions, in different places.)",
)
def mask_inverted(q, k, v, mask=None, *, causal=False, scale=None, gemm=gemm):
    return original(q, k, v, None if mask is None else ~mask, causal=causal, scale=scale, gemm=gemm)


@misconception(
    "causal_top_left",
    replaces="attention",
    caught_by="test_attention_forward",
    feedback="With more keys than queries the causal diagonal ends at the bottom right: the last query sees the last "
    "key, j <= i + S - T. Yours starts at the top left, j <= i.",
)
def causal_top_left(q, k, v, mask=None, *, causal=False, scale=None, gemm=gemm):
    if causal:
        lower = np.tri(q.shape[-2], k.shape[-2], dtype=bool)
        mask = lower if mask is None else mask & lower
    return original(q, k, v, mask, scale=scale, gemm=gemm)


@misconception(
    "causal_hides_the_present",
    replaces="attention",
    caught_by="test_attention_forward",
    feedback="Under your causal mask a query cannot see its own key. j <= i + S - T includes equality.",
)
def causal_hides_the_present(q, k, v, mask=None, *, causal=False, scale=None, gemm=gemm):
    if causal:
        t, s = q.shape[-2], k.shape[-2]
        earlier = np.tri(t, s, s - t - 1, dtype=bool)
        mask = earlier if mask is None else mask & earlier
    return original(q, k, v, mask, scale=scale, gemm=gemm)


@misconception(
    "masked_row_uniform",
    replaces="attention",
    caught_by="test_attention_forward",
    feedback="A query with no visible key must return zeros; yours averages all values. A large negative number in all "
    "places is the same number in all places: use -inf, and let the softmax of a row of -inf be zeros.",
)
def masked_row_uniform(q, k, v, mask=None, *, causal=False, scale=None, gemm=gemm):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = bmm(q, np.swapaxes(k, -1, -2), gemm=gemm) * scale
    t, s = scores.shape[-2:]
    allowed = np.ones((t, s), bool) if mask is None else mask
    if causal:
        allowed = allowed & np.tri(t, s, s - t, dtype=bool)
    p = softmax(np.where(allowed, scores, -1e9))
    return bmm(p, v, gemm=gemm), AttentionCache(q, k, v, p, scale)


@misconception(
    "softmax_over_queries",
    replaces="attention",
    caught_by="test_attention_forward",
    feedback="Your softmax runs over the queries. The weights of one query over the keys must sum to 1: the last axis of "
    "the scores [..., T, S].",
)
def softmax_over_queries(q, k, v, mask=None, *, causal=False, scale=None, gemm=gemm):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = bmm(q, np.swapaxes(k, -1, -2), gemm=gemm) * scale
    t, s = scores.shape[-2:]
    allowed = np.ones((t, s), bool) if mask is None else mask
    if causal:
        allowed = allowed & np.tri(t, s, s - t, dtype=bool)
    p = softmax(np.where(allowed, scores, -np.inf), axis=-2)
    return bmm(p, v, gemm=gemm), AttentionCache(q, k, v, p, scale)


@misconception(
    "vjp_without_scale",
    replaces="attention_vjp",
    caught_by="test_attention_vjp",
    feedback="Your dq and dk are sqrt(d) times too large: the scale is part of the chain rule. s = scale · q·kᵀ, so both "
    "gradients carry it.",
)
def vjp_without_scale(dout, cache, *, gemm=gemm):
    dq, dk, dv = original(dout, cache, gemm=gemm)
    return dq / cache.scale, dk / cache.scale, dv


@misconception(
    "output_again_in_the_gradient",
    replaces="attention_vjp",
    caught_by="test_flops_of_attention",
    matches="flops",
    feedback="You compute the output once more, for the sums of dout·out. They are the sums of p·dp, and dp you have: backward "
    "is two gradients of two products, four products in all.",
)
def output_again_in_the_gradient(dout, cache, *, gemm=gemm):
    q, k, v, p, scale = cache.q, cache.k, cache.v, cache.p, cache.scale
    dp, dv = bmm_vjp(p, v, dout, gemm=gemm)
    ds = (p * (dp - (dout * bmm(p, v, gemm=gemm)).sum(-1, keepdims=True))).astype(p.dtype)
    dq, dk_transposed = bmm_vjp(q, np.swapaxes(k, -1, -2), ds, gemm=gemm)
    return (dq * scale).astype(q.dtype), np.swapaxes(dk_transposed * scale, -1, -2).astype(k.dtype), dv


@misconception(
    "new_scores_for_each_step",
    replaces="attention",
    caught_by="test_attention_peak",
    matches="peak_bytes",
    feedback="Scores, scaled scores, masked scores, weights: each is a new T×S array, and all are alive at the end. The scores "
    "are yours, so scale, mask and normalise them in place.",
)
def new_scores_for_each_step(q, k, v, mask=None, *, causal=False, scale=None, gemm=gemm):
    if mask is not None and mask.dtype != np.bool_:
        raise TypeError("mask must be boolean")
    scale = float((q.shape[-1] or 1) ** -0.5 if scale is None else scale)
    scores = bmm(q, np.swapaxes(k, -1, -2), gemm=gemm)
    scaled = scores * scale
    t, s = scores.shape[-2:]
    allowed = np.ones((t, s), bool) if mask is None else mask
    if causal:
        allowed = allowed & np.tri(t, s, s - t, dtype=bool)
    masked = np.where(allowed, scaled, -np.inf).astype(scores.dtype)
    p = softmax(masked)
    return bmm(p, v, gemm=gemm), AttentionCache(q, k, v, p, scale)


@misconception(
    "chunk_diagonal_stays",
    replaces="chunked_attention",
    caught_by="test_chunked_equals_full",
    feedback="Each of your chunks gets all keys, so its causal diagonal ends at the last key: early queries see the "
    "future. Hand a chunk only the keys up to the one its last query may see.",
)
def chunk_diagonal_stays(q, k, v, *, chunk, causal=False, gemm=gemm):
    blocks = [
        attention(q[..., i : i + chunk, :], k, v, causal=causal, gemm=gemm)[0] for i in range(0, q.shape[-2], chunk)
    ]
    return np.concatenate(blocks, axis=-2)


@misconception(
    "chunks_of_the_full_scores",
    replaces="chunked_attention",
    caught_by="test_chunked_scaling",
    matches="peak_bytes",
    feedback="You compute all T×S scores and cut them afterwards. The point is that they never exist: cut the queries, "
    "and make the scores of one chunk at a time.",
)
def chunks_of_the_full_scores(q, k, v, *, chunk, causal=False, gemm=gemm):
    return attention(q, k, v, causal=causal, gemm=gemm)[0]


# -- memory -----------------------------------------------------------------------------------------------------------


@misconception(
    "peak_is_current",
    replaces="measure_peak",
    caught_by="test_measure_peak_on_scripted_allocations",
    feedback="You reported what was left at the end of the call, not the high-water mark: get_traced_memory() returns "
    "(current, peak).",
)
def peak_is_current(fn, *args, label="", **kw):
    left = []

    def noting(*args, **kw):
        level = tracemalloc.get_traced_memory()[0]
        result = fn(*args, **kw)
        left.append(tracemalloc.get_traced_memory()[0] - level)
        return result

    r = original(noting, *args, label=label, **kw)
    return MemoryRecord(r.label, r.shapes, r.dtype, r.input_bytes, r.output_bytes, left[0], left[0] - r.output_bytes)


@misconception(
    "model_forgets_broadcasting",
    replaces="predict_peak_bytes",
    caught_by="test_memory_model_matches_measurement",
    feedback="Your N is the batch of a alone. The output has one matrix for each element of the broadcast batch: "
    "N is the product of broadcast_batch of both.",
)
def model_forgets_broadcasting(method, a_shape, b_shape, itemsize):
    full = original(method, a_shape, b_shape, itemsize)
    count = math.prod(broadcast_batch(tuple(a_shape[:-2]), tuple(b_shape[:-2])))
    return full // count * math.prod(a_shape[:-2])
