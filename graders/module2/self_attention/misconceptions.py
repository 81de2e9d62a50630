"""Wrong readings of self-attention, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `finite`, `tile_scores` and the rest are
its helpers. Where a mistake is in one place, the wrong version calls `original` with what the mistake amounts to.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import dataclasses
import math

import numpy as np
import torch

from llmkata.checks import misconception


def masked_scores(q, k, mask, is_causal, scale, fill, offset=None):
    """Scores with `fill` at hidden keys, float32 for half precision; `offset` moves the causal diagonal."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).mT * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        offset = k.shape[-2] - q.shape[-2] if offset is None else offset
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(offset), fill)
    return scores if mask is None else scores.masked_fill(~mask, fill)


def weighted(weights, v):
    """Output and weights, both in the dtype of v."""
    return (weights @ v.to(weights.dtype)).to(v.dtype), weights.to(v.dtype)


def softmax_or_zero(scores):
    """Softmax along the keys in which a row of -inf gives zeros, in value and in gradient."""
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


# --- attention --------------------------------------------------------------------------------------------------------


@misconception(
    "scale_by_d",
    replaces="attention",
    caught_by="test_attention_matches_reference",
    feedback="This behaves exactly as if you had scaled by d rather than sqrt(d): the variance of a dot product grows "
    "like d, its standard deviation like sqrt(d).",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    return original(q, k, v, mask=mask, is_causal=is_causal, scale=1.0 / q.shape[-1] if scale is None else scale)


@misconception(
    "softmax_over_queries",
    replaces="attention",
    caught_by="test_weights_are_distributions",
    feedback="Your columns sum to 1, not your rows: each query must distribute its attention over the keys.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    weights = softmax_or_zero(masked_scores(q, k, mask, is_causal, scale, NEG_INF).mT).mT
    return weighted(weights, v)


@misconception(
    "mask_after_softmax",
    replaces="attention",
    caught_by="test_weights_are_distributions",
    feedback="Hidden keys still took part in the normalisation: mask the scores before the softmax, not the weights "
    "after it.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    weights = masked_scores(q, k, None, False, scale, 0.0).softmax(-1)
    if is_causal:
        weights = weights.tril(k.shape[-2] - q.shape[-2])
    if mask is not None:
        weights = weights * mask
    return weighted(weights, v)


@misconception(
    "inverted_mask",
    replaces="attention",
    caught_by="test_weights_are_distributions",
    feedback="Your mask works the other way round: True means that the key may be attended to "
    "(nn.MultiheadAttention means the opposite).",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    return original(q, k, v, mask=None if mask is None else ~mask, is_causal=is_causal, scale=scale)


@misconception(
    "finite_fill",
    replaces="attention",
    caught_by="test_empty_rows",
    feedback="A query with nothing to see got the plain average of all values; it must get zero. A large negative "
    "fill such as -1e9 only hides keys as long as another key is visible.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    weights = masked_scores(q, k, mask, is_causal, scale, -1e9).softmax(-1)
    return weighted(weights, v)


@misconception(
    "nan_rows",
    replaces="attention",
    caught_by="test_empty_rows",
    feedback="A row of scores that is -inf throughout makes the softmax compute 0/0: a query that sees nothing must "
    "give zeros, not NaN.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    weights = masked_scores(q, k, mask, is_causal, scale, NEG_INF).softmax(-1)
    return weighted(weights, v)


@misconception(
    "zeroed_nan",
    replaces="attention",
    caught_by="test_attention_gradients",
    feedback="Your empty rows are zero but their gradients are NaN: a bias of -inf lets the softmax compute 0/0, and "
    "replacing the NaN afterwards does not take it out of the backward pass. Give such rows finite scores first.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    bias = masked_scores(torch.zeros_like(q), torch.zeros_like(k), mask, is_causal, scale, NEG_INF)
    weights = (masked_scores(q, k, None, False, scale, 0.0) + bias).softmax(-1).nan_to_num()
    return weighted(weights, v)


@misconception(
    "top_left_causal",
    replaces="attention",
    caught_by="test_causal_alignment",
    feedback="With more keys than queries the last query must see every key; you aligned the mask top-left, as for a "
    "fresh sequence.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    weights = softmax_or_zero(masked_scores(q, k, mask, is_causal, scale, NEG_INF, offset=0))
    return weighted(weights, v)


@misconception(
    "strictly_causal",
    replaces="attention",
    caught_by="test_causal_alignment",
    feedback="Your queries do not see their own position: the diagonal belongs to the visible side (j <= i + Tk - Tq).",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    offset = k.shape[-2] - q.shape[-2] - 1
    weights = softmax_or_zero(masked_scores(q, k, mask, is_causal, scale, NEG_INF, offset=offset))
    return weighted(weights, v)


@misconception(
    "exp_without_maximum",
    replaces="attention",
    caught_by="test_extreme_logits",
    feedback="exp overflows for scores above 88 in float32, and inf/inf is NaN: subtract each row's maximum first.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    mass = masked_scores(q, k, mask, is_causal, scale, NEG_INF).exp()
    total = mass.sum(-1, keepdim=True)
    weights = mass / torch.where(total > 0, total, 1.0)
    return weighted(weights, v)


@misconception(
    "softmax_in_half",
    replaces="attention",
    caught_by="test_half_precision",
    feedback="Your scores were rounded to half precision before the softmax: with a score of 100 that rounding alone "
    "changes its weight by tens of percent. Compute in float32 and round once, at the end.",
)
def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    scores = q @ k.mT * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    hidden = masked_scores(torch.zeros_like(q), torch.zeros_like(k), mask, is_causal, scale, NEG_INF) == NEG_INF
    weights = softmax_or_zero(scores.masked_fill(hidden, NEG_INF))
    return weights @ v, weights


# --- the layer --------------------------------------------------------------------------------------------------------


@misconception(
    "padding_polarity",
    replaces="SelfAttention.forward",
    caught_by="test_module",
    feedback="Your layer attends to the padding and hides the real tokens: key_padding_mask is True for real tokens "
    "here (nn.MultiheadAttention means the opposite).",
)
def forward(self, x, key_padding_mask=None, *, return_weights=False):
    mask = None if key_padding_mask is None else ~key_padding_mask
    return original(self, x, mask, return_weights=return_weights)


@misconception(
    "padding_masks_queries",
    replaces="SelfAttention.forward",
    caught_by="test_module",
    feedback="Your padding mask empties the rows of padding queries; it is the padding *keys*, the columns, that "
    "nobody may attend to: (B, T) becomes (B, 1, T), not (B, T, 1).",
)
def forward(self, x, key_padding_mask=None, *, return_weights=False):
    q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
    mask = None if key_padding_mask is None else key_padding_mask[:, :, None]
    context, weights = attention(q, k, v, mask=mask, is_causal=self.causal)
    output = self.out_proj(context)
    return (output, weights) if return_weights else output


@misconception(
    "scale_by_d_model",
    replaces="SelfAttention.forward",
    caught_by="test_module",
    feedback="You scale by sqrt(d_model); the dot products run over d_head numbers, so sqrt(d_head) it is.",
)
def forward(self, x, key_padding_mask=None, *, return_weights=False):
    q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
    mask = None if key_padding_mask is None else key_padding_mask[:, None, :]
    context, weights = attention(q, k, v, mask=mask, is_causal=self.causal, scale=x.shape[-1] ** -0.5)
    output = self.out_proj(context)
    return (output, weights) if return_weights else output


# --- summary ----------------------------------------------------------------------------------------------------------


@misconception(
    "entropy_in_bits",
    replaces="summarise_attention",
    caught_by="test_summary",
    feedback="Your entropy is in bits: only in nats (natural logarithm) is exp(entropy) the effective number of keys.",
)
def summarise_attention(weights, query_mask=None):
    right = original(weights, query_mask)
    bits = right.entropy / math.log(2)
    return dataclasses.replace(right, entropy=bits, effective_keys=np.exp(bits))


@misconception(
    "zero_log_zero",
    replaces="summarise_attention",
    caught_by="test_summary",
    feedback="0 · log 0 gave NaN: a key of weight 0 adds nothing to the entropy, so leave it out of the sum.",
)
def summarise_attention(weights, query_mask=None):
    right = original(weights, query_mask)
    w = weights.double().numpy()
    with np.errstate(all="ignore"):
        entropy = -(w * np.log(w)).sum(-1)
    return dataclasses.replace(right, entropy=entropy, effective_keys=np.exp(entropy))


@misconception(
    "distance_from_top_left",
    replaces="summarise_attention",
    caught_by="test_summary",
    feedback="Your distances are |i - j|: with more keys than queries, query i stands at key i + Tk - Tq.",
)
def summarise_attention(weights, query_mask=None):
    right = original(weights, query_mask)
    tq, tk = weights.shape[-2:]
    w = weights.double().numpy()
    distance = (w * np.abs(np.arange(tq)[:, None] - np.arange(tk))).sum(-1)
    return dataclasses.replace(right, mean_distance=np.where(np.isnan(right.entropy), np.nan, distance))


@misconception(
    "zeroed_queries",
    replaces="summarise_attention",
    caught_by="test_summary_leaves_out_invalid_queries",
    feedback="Invalid queries still count in your means, as zeros: divide by the number of valid queries.",
)
def summarise_attention(weights, query_mask=None):
    right = original(weights, query_mask)
    valid = ~np.isnan(right.entropy)
    received = np.where(valid[..., None], weights.double().numpy(), 0.0).mean(-2)
    return dataclasses.replace(right, received=received, sink_mass=received[..., 0])


# --- figure -----------------------------------------------------------------------------------------------------------


@misconception(
    "plot_transposed",
    replaces="plot_attention",
    caught_by="test_figure",
    feedback="Rows are queries: your picture shows who is looked at by whom, reversed.",
)
def plot_attention(weights, query_tokens, key_tokens, *, title="", path=None):
    figure = original(weights, query_tokens, key_tokens, title=title, path=path)
    for image in (image for ax in figure.axes for image in ax.images):
        image.set_data(image.get_array().T)
    return figure


@misconception(
    "automatic_colours",
    replaces="plot_attention",
    caught_by="test_figure",
    feedback="Your colours run from the smallest to the largest weight of the map: two maps cannot be compared, and "
    "noise of 0.01 looks like certainty. Fix the limits at 0 and 1.",
)
def plot_attention(weights, query_tokens, key_tokens, *, title="", path=None):
    figure = original(weights, query_tokens, key_tokens, title=title, path=path)
    for image in (image for ax in figure.axes for image in ax.images):
        image.set_clim(image.get_array().min(), image.get_array().max())
    return figure


@misconception(
    "mathtext_tokens",
    replaces="plot_attention",
    caught_by="test_figure",
    feedback="matplotlib took two `$` in a token for a formula: set parse_math=False on the tick labels.",
)
def plot_attention(weights, query_tokens, key_tokens, *, title="", path=None):
    figure = original(weights, query_tokens, key_tokens, title=title)
    for label in (label for ax in figure.axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())):
        label.set_parse_math(True)
    if path is not None:
        figure.savefig(path)
    return figure


# --- streaming forward ------------------------------------------------------------------------------------------------


@misconception(
    "forgot_rescale",
    replaces="streaming_forward",
    caught_by="test_streaming_matches_reference",
    feedback="Blocks before a new maximum keep their old scale: your result depends on the order of the blocks. "
    "Multiply the sum and the output by exp(m_old - m_new) when the maximum grows.",
)
def streaming_forward(q, k, v, key_padding_mask, is_causal, scale, block_q, block_k):
    tq, tk = q.shape[-2], k.shape[-2]
    dtype = accumulation_dtype(q.dtype)
    # Blocks of queries do not matter for this mistake: all of them at once.
    m = torch.full((*q.shape[:-1], 1), NEG_INF, dtype=dtype)
    l, o = torch.zeros_like(m), torch.zeros(*q.shape[:-1], v.shape[-1], dtype=dtype)
    for j in range(0, tk, block_k):
        k_tile, v_tile = k[..., j : j + block_k, :].to(dtype), v[..., j : j + block_k, :].to(dtype)
        s = tile_scores(q.to(dtype) * scale, k_tile, key_padding_mask, is_causal, 0, j, tq, tk)
        m = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - finite(m))
        l, o = l + p.sum(-1, keepdim=True), o + p @ v_tile
    return (o / torch.where(l > 0, l, 1.0)).to(q.dtype), (m + l.log()).squeeze(-1)


@misconception(
    "lse_without_max",
    replaces="streaming_forward",
    caught_by="test_streaming_matches_reference",
    feedback="Your log-sum-exp lacks the running maximum that you subtracted: it is m + log l.",
)
def streaming_forward(q, k, v, key_padding_mask, is_causal, scale, block_q, block_k):
    out, lse = original(q, k, v, key_padding_mask, is_causal, scale, block_q, block_k)
    dtype = accumulation_dtype(q.dtype)
    tq, tk = q.shape[-2], k.shape[-2]
    scores = tile_scores(q.to(dtype) * scale, k.to(dtype), key_padding_mask, is_causal, 0, 0, tq, tk)
    return out, lse - finite(scores.amax(-1))


@misconception(
    "empty_tile_nan",
    replaces="streaming_forward",
    caught_by="test_streaming_matches_reference",
    feedback="While a query has seen no key its maximum is -inf, and exp(-inf - (-inf)) is NaN: subtract 0 there.",
)
def streaming_forward(q, k, v, key_padding_mask, is_causal, scale, block_q, block_k):
    out, lse = original(q, k, v, key_padding_mask, is_causal, scale, block_q, block_k)
    dtype = accumulation_dtype(q.dtype)
    tq, tk = q.shape[-2], k.shape[-2]
    spoilt = torch.zeros(lse.shape, dtype=torch.bool)
    for i in range(0, tq, block_q):
        i_end = min(i + block_q, tq)
        q_tile = q[..., i:i_end, :].to(dtype)
        if visible_keys(i_end, tq, tk, is_causal) > 0:
            first = tile_scores(q_tile, k[..., :block_k, :].to(dtype), key_padding_mask, is_causal, i, 0, tq, tk)
            spoilt[..., i:i_end] = (first == NEG_INF).all(-1)  # the first tile hides everything: NaN from here on
    return out.masked_fill(spoilt[..., None], math.nan), lse.masked_fill(spoilt, math.nan)


@misconception(
    "mask_without_skipping",
    replaces="visible_keys",
    caught_by="test_causal_blocks_skipped",
    matches="flops",
    feedback="You compute tiles above the diagonal and then hide all of them: half of the work of a causal pass. Let "
    "the loop over keys end at the horizon of the block's last query.",
)
def visible_keys(i_end, tq, tk, is_causal):
    return tk


@misconception(
    "blocks_of_queries_only",
    replaces="streaming_attention",
    caught_by="test_forward_peak",
    matches="peak_bytes",
    equivalent_to="mask_without_skipping",  # it skips nothing either, and is told by its memory alone
    feedback="You hold the scores of a block of queries against all keys: cut the keys into blocks too and carry the "
    "running maximum, sum and output from one to the next.",
)
def streaming_attention(q, k, v, *, is_causal=False, key_padding_mask=None, scale=None, block_q=64, block_k=64):
    if min(block_q, block_k) < 1:
        raise ValueError("block")
    every = max(k.shape[-2], 1)
    padding = key_padding_mask
    return original(q, k, v, is_causal=is_causal, key_padding_mask=padding, scale=scale, block_q=block_q, block_k=every)


# --- merge ------------------------------------------------------------------------------------------------------------


@misconception(
    "merge_by_average",
    replaces="merge_attention",
    caught_by="test_merge_is_a_monoid",
    feedback="Parts must be weighed by their softmax mass exp(lse), not equally.",
)
def merge_attention(out_a, lse_a, out_b, lse_b):
    return (out_a + out_b) / 2, torch.logaddexp(lse_a, lse_b)


@misconception(
    "merge_by_lse",
    replaces="merge_attention",
    caught_by="test_merge_is_a_monoid",
    feedback="You weigh the parts by lse itself; lse is the logarithm of their mass, so the weights are exp(lse).",
)
def merge_attention(out_a, lse_a, out_b, lse_b):
    a, b = lse_a[..., None], lse_b[..., None]
    return (a * out_a + b * out_b) / (a + b), torch.logaddexp(lse_a, lse_b)


@misconception(
    "merge_overflows",
    replaces="merge_attention",
    caught_by="test_merge_at_the_edges",
    feedback="exp(lse) overflows for large lse and is 0/0 for two empty parts: take the larger lse out first.",
)
def merge_attention(out_a, lse_a, out_b, lse_b):
    a, b = lse_a.exp()[..., None], lse_b.exp()[..., None]
    return (a * out_a + b * out_b) / (a + b), (a + b).log()[..., 0]


# --- streaming backward -----------------------------------------------------------------------------------------------


@misconception(
    "backward_in_one_tile",
    replaces="streaming_backward",
    caught_by="test_backward_peak",
    matches="peak_bytes",
    feedback="Your backward pass holds the weights of all queries and all keys at once. It goes by the same tiles as the "
    "forward pass: nothing larger than block_q x block_k need exist.",
)
def streaming_backward(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, d_lse):
    tq, tk = max(q.shape[-2], 1), max(k.shape[-2], 1)
    return original(q, k, v, padding, causal, scale, tq, tk, out, lse, d_out, d_lse)


@misconception(
    "two_sweeps_backward",
    replaces="streaming_backward",
    caught_by="test_backward_flops",
    matches="flops",
    feedback="You go over the tiles twice, once for dQ and once for dK and dV, and compute the weights and dP both times: seven "
    "products a tile where five do. Add to all three gradients while you hold a tile.",
)
def streaming_backward(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, d_lse):
    tq, tk, dtype = q.shape[-2], k.shape[-2], accumulation_dtype(q.dtype)
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype, device=q.device) for x in (q, k, v))
    delta = (d_out.to(dtype) * out).sum(dim=-1, keepdim=True) - d_lse[..., None]

    def tile(i, j):
        rows, cols = slice(i, min(i + block_q, tq)), slice(j, min(j + block_k, tk))
        q_tile, do = q[..., rows, :].to(dtype) * scale, d_out[..., rows, :].to(dtype)
        k_tile, v_tile = k[..., cols, :].to(dtype), v[..., cols, :].to(dtype)
        scores = tile_scores(q_tile, k_tile, padding, causal, i, j, tq, tk)
        p = torch.exp(scores - finite(lse[..., rows, None]))
        return rows, cols, q_tile, k_tile, do, p, p * (do @ v_tile.mT - delta[..., rows, :])

    places = [(i, j) for i in range(0, tq, block_q) for j in range(0, tk, block_k)]
    for place in places:
        rows, _, _, k_tile, _, _, ds = tile(*place)
        dq[..., rows, :] += scale * (ds @ k_tile)
    for place in places:
        _, cols, q_tile, _, do, p, ds = tile(*place)
        dk[..., cols, :] += ds.mT @ q_tile
        dv[..., cols, :] += p.mT @ do
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


@misconception(
    "backward_without_delta",
    replaces="streaming_backward",
    caught_by="test_streaming_backward",
    feedback="Softmax's Jacobian has a second term: subtract rowsum(dO ∘ O) - dLSE from dP.",
)
def streaming_backward(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, d_lse):
    zero_out, zero_lse = torch.zeros_like(out), torch.zeros_like(d_lse)
    return original(q, k, v, padding, causal, scale, block_q, block_k, zero_out, lse, d_out, zero_lse)


@misconception(
    "lse_gradient_ignored",
    replaces="streaming_backward",
    caught_by="test_streaming_backward",
    feedback="Nothing flows back through your lse: its gradient enters as δ = rowsum(dO ∘ O) - dLSE.",
)
def streaming_backward(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, d_lse):
    return original(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, torch.zeros_like(d_lse))


@misconception(
    "lse_gradient_sign",
    replaces="streaming_backward",
    caught_by="test_streaming_backward",
    feedback="The gradient of lse has the wrong sign: ∂lse/∂s_j = P_j, so dS = P ∘ (dP - rowsum(dO ∘ O) + dLSE).",
)
def streaming_backward(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, d_lse):
    return original(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, -d_lse)


@misconception(
    "backward_without_scale",
    replaces="streaming_backward",
    caught_by="test_streaming_backward",
    feedback="dQ and dK lack the scale: S = scale · Q Kᵀ, so both carry it once.",
)
def streaming_backward(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, d_lse):
    dq, dk, dv = original(q, k, v, padding, causal, scale, block_q, block_k, out, lse, d_out, d_lse)
    return dq / scale, dk / scale, dv


# --- the layer at linear memory ---------------------------------------------------------------------------------------


@misconception(
    "layer_materialises",
    replaces="SelfAttention.forward",
    caught_by="test_layer_peak",
    matches="peak_bytes",
    feedback="Your layer makes the (T, T) weights although nobody asked for them. That is right for tasks 1 to 4; "
    "task 8 sends calls without return_weights through streaming_attention.",
)
def forward(self, x, key_padding_mask=None, *, return_weights=False):
    output, weights = original(self, x, key_padding_mask, return_weights=True)
    return (output, weights) if return_weights else output
