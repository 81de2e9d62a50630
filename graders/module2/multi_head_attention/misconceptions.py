"""Wrong readings of multi-head attention and of comparisons, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `split_heads`, `greedy_decode` and the
rest are its helpers.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import dataclasses
import itertools
import math

import numpy as np
import torch

from llmkata.checks import misconception


def visible_or_none(tq, tk, key_padding_mask, attn_mask, is_causal, offset):
    """All masks in one, or None; `offset` moves the causal diagonal."""
    masks = [] if key_padding_mask is None else [key_padding_mask[:, None, None, :]]
    masks += [] if attn_mask is None else [attn_mask]
    if is_causal:
        masks.append(torch.ones(tq, tk, dtype=torch.bool).tril(offset))
    visible = None
    for mask in masks:
        visible = mask if visible is None else visible & mask
    return visible


def keys_and_values(self, query, memory, kv):
    """What the layer reads; the error that the stub raises."""
    if memory is not None and kv is not None:
        raise ValueError("not both")
    return self.project_kv(query if memory is None else memory) if kv is None else kv


def attend(
    self, query, k, v, key_padding_mask, attn_mask, is_causal, need_weights, *, scale=None, owner=None, offset=None
):
    """The layer with keys repeated for each query head; right unless told otherwise.

    `owner`: the key/value head of each query head; `scale`, `offset`: of the scores and of the causal diagonal.
    """
    batch, tq, d = query.shape
    tk, group = k.shape[2], self.n_heads // self.n_kv_heads
    owner = [h // group for h in range(self.n_heads)] if owner is None else owner
    scale = self.head_dim**-0.5 if scale is None else scale
    q = self.q_proj(query).view(batch, tq, self.n_heads, self.head_dim).transpose(1, 2)
    scores = q @ k[:, owner].mT * scale
    visible = visible_or_none(tq, tk, key_padding_mask, attn_mask, is_causal, tk - tq if offset is None else offset)
    if visible is None:
        weights = scores.softmax(-1)
    else:
        empty = ~visible.any(-1, keepdim=True)
        weights = scores.masked_fill(~visible & ~empty, -math.inf).softmax(-1).masked_fill(empty, 0.0)
    output = self.out_proj((weights @ v[:, owner]).transpose(1, 2).reshape(batch, tq, d))
    return (output, weights) if need_weights else output


# --- the layer --------------------------------------------------------------------------------------------------------


@misconception(
    "view_without_transpose",
    replaces="split_heads",
    caught_by="test_mha_matches_reference",
    feedback="You cut the time axis into heads: view(B, H, T, D) takes a head's numbers from neighbouring positions. "
    "Split the feature axis, view(B, T, H, D), then transpose.",
)
def split_heads(x, n):
    batch, t, width = x.shape
    return x.reshape(batch, n, t, width // n)


@misconception(
    "merge_without_transpose",
    replaces="merge_heads",
    caught_by="test_mha_matches_reference",
    feedback="Heads and positions are mixed when you merge: (B, H, T, D) must become (B, T, H, D) before the last two "
    "axes are joined.",
)
def merge_heads(x):
    batch, n, t, d = x.shape
    return x.reshape(batch, t, n * d)


@misconception(
    "reshaped_both_ways",
    replaces=("split_heads", "merge_heads"),
    caught_by="test_mha_matches_reference",
    feedback="You cut the time axis into heads, and joined it the same way: each of your heads sees a part of the "
    "positions, with all features. Split the feature axis, view(B, T, H, D), then transpose; merge the other way round.",
)
class Reshaped:
    def split_heads(x, n):
        batch, t, width = x.shape
        return x.reshape(batch, n, t, width // n)

    def merge_heads(x):
        batch, n, t, d = x.shape
        return x.reshape(batch, t, n * d)


@misconception(
    "scale_by_d_model",
    replaces="MultiHeadAttention.forward",
    caught_by="test_mha_matches_reference",
    feedback="You scale by sqrt(d_model). Each head's dot product has head_dim terms: scale by sqrt(head_dim).",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    k, v = keys_and_values(self, query, memory, kv)
    scale = query.shape[-1] ** -0.5
    return attend(self, query, k, v, key_padding_mask, attn_mask, is_causal, need_weights, scale=scale)


@misconception(
    "unscaled",
    replaces="MultiHeadAttention.forward",
    caught_by="test_mha_matches_reference",
    feedback="Your scores are not scaled: divide the dot products by sqrt(head_dim), or the softmax saturates.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    k, v = keys_and_values(self, query, memory, kv)
    return attend(self, query, k, v, key_padding_mask, attn_mask, is_causal, need_weights, scale=1.0)


@misconception(
    "padding_polarity",
    replaces="MultiHeadAttention.forward",
    caught_by="test_matches_torch_mha",
    feedback="Your layer reads the padding and hides the real tokens. That is nn.MultiheadAttention's convention; here "
    "True is a real token.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    flipped = None if key_padding_mask is None else ~key_padding_mask
    return original(self, query, memory, kv=kv, key_padding_mask=flipped, attn_mask=attn_mask, is_causal=is_causal,
                    need_weights=need_weights)


@misconception(
    "averaged_weights",
    replaces="MultiHeadAttention.forward",
    caught_by="test_weights",
    feedback="You return the mean over heads. Averaging hides what heads do: return one map per head, (B, H, Tq, Tk).",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    output, weights = original(self, query, memory, kv=kv, key_padding_mask=key_padding_mask, attn_mask=attn_mask,
                               is_causal=is_causal, need_weights=True)
    return (output, weights.mean(1)) if need_weights else output


@misconception(
    "nan_rows",
    replaces="MultiHeadAttention.forward",
    caught_by="test_empty_rows",
    feedback="A row of scores that is -inf throughout makes the softmax compute 0/0: a query that may read nothing must "
    "get zeros, not NaN.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    output, weights = original(self, query, memory, kv=kv, key_padding_mask=key_padding_mask, attn_mask=attn_mask,
                               is_causal=is_causal, need_weights=True)
    empty = (weights == 0).all(-1, keepdim=True)
    weights = weights.masked_fill(empty, math.nan)
    output = output.masked_fill(empty.any(1), math.nan)
    return (output, weights) if need_weights else output


@misconception(
    "finite_fill",
    replaces="MultiHeadAttention.forward",
    caught_by="test_empty_rows",
    feedback="A query with nothing to read got the plain average of all values; it must get zero. A large negative "
    "fill such as -1e9 only hides keys as long as another key is visible.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    k, v = keys_and_values(self, query, memory, kv)
    tq, tk = query.shape[1], k.shape[2]
    visible = visible_or_none(tq, tk, key_padding_mask, attn_mask, is_causal, tk - tq)
    if visible is None:
        return attend(self, query, k, v, None, None, False, need_weights)
    hidden = torch.zeros(query.shape[0], self.n_heads, tq, tk, dtype=torch.bool) | ~visible
    empty = hidden.all(-1, keepdim=True)
    output, weights = attend(self, query, k, v, None, ~hidden, False, True)
    # Equal scores of -1e9 throughout: every key weighs the same.
    weights = weights.masked_fill(empty, 1 / tk)
    owner = [h // (self.n_heads // self.n_kv_heads) for h in range(self.n_heads)]
    output = self.out_proj(merge_heads(weights @ v[:, owner]))
    return (output, weights) if need_weights else output


@misconception(
    "top_left_causal",
    replaces="MultiHeadAttention.forward",
    caught_by="test_cross_attention",
    feedback="With more keys than queries the last query must see every key; you aligned the causal mask top-left, as "
    "for a fresh sequence.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    k, v = keys_and_values(self, query, memory, kv)
    return attend(self, query, k, v, key_padding_mask, attn_mask, is_causal, need_weights, offset=0)


@misconception(
    "kv_from_query",
    replaces="MultiHeadAttention.forward",
    caught_by="test_cross_attention",
    feedback="Your values come from the query side: in cross-attention both keys and values are made of the memory.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    if memory is None:
        return original(self, query, kv=kv, key_padding_mask=key_padding_mask, attn_mask=attn_mask,
                        is_causal=is_causal, need_weights=need_weights)
    k, v = keys_and_values(self, query, memory, kv)[0], self.project_kv(query)[1]
    return attend(self, query, k, v, key_padding_mask, attn_mask, is_causal, need_weights)


@misconception(
    "loop_over_heads",
    replaces="MultiHeadAttention.forward",
    caught_by="test_heads_are_batched",
    matches="matmul_calls",
    feedback="Right, but two products per head: heads are one more batch dimension, (B, H, T, D), and need no loop.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    k, v = keys_and_values(self, query, memory, kv)
    tq, tk, group = query.shape[1], k.shape[2], self.n_heads // self.n_kv_heads
    q = split_heads(self.q_proj(query), self.n_heads) * self.head_dim**-0.5
    visible = visible_or_none(tq, tk, key_padding_mask, attn_mask, is_causal, tk - tq)
    seen = torch.ones(query.shape[0], self.n_heads, tq, tk, dtype=torch.bool)
    seen = seen if visible is None else seen & visible
    empty = ~seen.any(-1, keepdim=True)
    maps, contexts = [], []
    for h in range(self.n_heads):
        scores = (q[:, h] @ k[:, h // group].mT).masked_fill(~(seen | empty)[:, h], -math.inf)
        maps.append(scores.softmax(-1).masked_fill(empty[:, h], 0.0))
        contexts.append(maps[-1] @ v[:, h // group])
    output = self.out_proj(torch.cat(contexts, -1))
    return (output, torch.stack(maps, 1)) if need_weights else output


@misconception(
    "packed_projections",
    replaces="MultiHeadAttention.forward",
    caught_by="test_cross_flops",
    matches="flops",
    feedback="Right, but you make queries, keys and values of both inputs and throw half of them away: cross-attention "
    "needs queries of the query and keys and values of the memory only.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    if memory is not None:
        self.q_proj(memory), self.k_proj(query), self.v_proj(query)
    return original(self, query, memory, kv=kv, key_padding_mask=key_padding_mask, attn_mask=attn_mask,
                    is_causal=is_causal, need_weights=need_weights)


# --- shared key/value heads -------------------------------------------------------------------------------------------


@misconception(
    "gqa_modulo",
    replaces="MultiHeadAttention.forward",
    caught_by="test_gqa_head_mapping",
    feedback="You interleaved the groups (head h reads h % K). Heads h // G share a key/value head: that is the layout "
    "of every released GQA checkpoint.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    k, v = keys_and_values(self, query, memory, kv)
    owner = [h % self.n_kv_heads for h in range(self.n_heads)]
    return attend(self, query, k, v, key_padding_mask, attn_mask, is_causal, need_weights, owner=owner)


@misconception(
    "repeated_kv",
    replaces="MultiHeadAttention.forward",
    caught_by="test_gqa_copies_nothing",
    matches="bytes_moved",
    feedback="Right, but K and V are written out once per query head: the memory that sharing saves is spent again. "
    "Stack a group's queries as rows, (B, K, G·Tq, D), against the keys as they are.",
)
def forward(self, query, memory=None, *, kv=None, key_padding_mask=None, attn_mask=None, is_causal=False,
            need_weights=False):
    k, v = keys_and_values(self, query, memory, kv)
    group = self.n_heads // self.n_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    batch, tq, d = query.shape
    q = self.q_proj(query).view(batch, tq, self.n_heads, self.head_dim).transpose(1, 2) * self.head_dim**-0.5
    scores = q @ k.mT
    visible = visible_or_none(tq, k.shape[2], key_padding_mask, attn_mask, is_causal, k.shape[2] - tq)
    if visible is not None:
        empty = ~visible.any(-1, keepdim=True)
        scores = scores.masked_fill(~visible & ~empty, -math.inf)
    weights = scores.softmax(-1)
    if visible is not None:
        weights = weights.masked_fill(empty, 0.0)
    output = self.out_proj((weights @ v).transpose(1, 2).reshape(batch, tq, d))
    return (output, weights) if need_weights else output


@misconception(
    "full_width_projections",
    replaces="MultiHeadAttention.project_kv",
    caught_by="test_gqa_flops",
    matches="flops",
    feedback="Right, but you project keys and values at full width, each shared head G times: k_proj and v_proj have "
    "K · head_dim outputs, and that is all that must be computed.",
)
def project_kv(self, memory):
    def project(linear):
        group = self.n_heads // self.n_kv_heads
        order = torch.arange(self.n_kv_heads * self.head_dim).view(self.n_kv_heads, 1, self.head_dim)
        order = order.expand(-1, group, -1).flatten()
        bias = None if linear.bias is None else linear.bias[order]
        wide = torch.nn.functional.linear(memory, linear.weight[order], bias)
        return split_heads(wide, self.n_heads)[:, ::group]

    return project(self.k_proj), project(self.v_proj)


@misconception(
    "flops_of_full_width",
    replaces="attention_flops",
    caught_by="test_attention_flops",
    feedback="You count key and value projections of full width: with K shared heads they make K · head_dim features.",
)
def attention_flops(batch, tq, tk, d_model, n_heads, n_kv_heads):
    return original(batch, tq, tk, d_model, n_heads, n_heads)


@misconception(
    "multiply_adds",
    replaces="attention_flops",
    caught_by="test_attention_flops",
    feedback="You count multiply-adds. Each is two floating-point operations: a product (m, k) x (k, n) takes 2·m·k·n.",
)
def attention_flops(batch, tq, tk, d_model, n_heads, n_kv_heads):
    return original(batch, tq, tk, d_model, n_heads, n_kv_heads) // 2


# --- decoding and scoring ---------------------------------------------------------------------------------------------


@misconception(
    "start_returned",
    replaces="greedy_decode",
    caught_by="test_decode_matches_reference",
    feedback="Your sequences begin with the start symbol and lack their last token: return what was written, without "
    "what was read first.",
)
def greedy_decode(model, src, length):
    start = torch.full((src.shape[0], 1), model.start)
    return torch.cat([start, original(model, src, length)], 1)[:, :length]


@misconception(
    "first_position",
    replaces="greedy_decode",
    caught_by="test_decode_matches_reference",
    feedback="You take the logits after the first token in every step: the next token follows the last one, [:, -1].",
)
def greedy_decode(model, src, length):
    return original(model, src, 1).repeat(1, length)


@misconception(
    "encoded_every_step",
    replaces="greedy_decode",
    caught_by="test_decode_encodes_once",
    matches="calls",
    feedback="Right, but the encoder runs again for every token. The source does not change while you write: encode it "
    "before the loop.",
)
@torch.no_grad()
def greedy_decode(model, src, length):
    tokens = torch.full((src.shape[0], 1), model.start)
    for _ in range(length):
        logits = model.decode(tokens, model.encode(src))
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[:, 1:]


@misconception(
    "projected_every_step",
    replaces="greedy_decode",
    caught_by="test_decode_encodes_once",
    matches="calls",
    feedback="Right, but the decoder makes keys and values of the memory again for every token: make them once with "
    "project_kv and pass kv.",
)
@torch.no_grad()
def greedy_decode(model, src, length):
    tokens, memory = torch.full((src.shape[0], 1), model.start), model.encode(src)
    for _ in range(length):
        tokens = torch.cat([tokens, model.decode(tokens, memory)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[:, 1:]


@misconception(
    "padded_target",
    replaces="greedy_decode",
    caught_by="test_causal_prefix_cost",
    matches="flops",
    feedback="Right, but every step decodes a target padded to its full length: decode the tokens there are so far.",
)
@torch.no_grad()
def greedy_decode(model, src, length):
    memory = model.encode(src)
    kv = [block.cross.project_kv(memory) for block in model.decoder]
    tokens = torch.full((src.shape[0], length + 1), model.start)
    for t in range(length):
        tokens[:, t + 1] = model.decode(tokens[:, :length], kv=kv)[:, t].argmax(-1)
    return tokens[:, 1:]


@misconception(
    "teacher_forced_score",
    replaces="evaluate",
    caught_by="test_evaluate_is_free_running",
    feedback="You fed the true prefix while testing, so errors could not compound: score what greedy_decode writes.",
)
@torch.no_grad()
def evaluate(model, src, tgt):
    right = model(src, tgt).argmax(-1) == tgt
    return right.float().mean().item(), right.all(1).float().mean().item()


# --- trials -----------------------------------------------------------------------------------------------------------


@misconception(
    "test_on_training_data",
    replaces="run_trial",
    caught_by="test_run_trial_protocol",
    feedback="Your test batch comes from the seed of the training data, so the first test sequences were trained on: "
    "draw it from a generator seeded with 10_000 + seed.",
)
def run_trial(variant, task, seed, *, steps=150, make_batch=make_batch):
    def leaking(name, n, generator):
        return make_batch(name, n, torch.Generator().manual_seed(seed) if n == TEST_SIZE else generator)

    return original(variant, task, seed, steps=steps, make_batch=leaking)


@misconception(
    "one_generator",
    replaces="run_trial",
    caught_by="test_run_trial_protocol",
    feedback="Your test batch continues the training generator, so it changes with the number of steps: draw it from a "
    "generator of its own, seeded with 10_000 + seed.",
)
def run_trial(variant, task, seed, *, steps=150, make_batch=make_batch):
    kept = []

    def going_on(name, n, generator):
        kept.append(generator)
        return make_batch(name, n, kept[0])

    return original(variant, task, seed, steps=steps, make_batch=going_on)


@misconception(
    "kv_of_all_heads",
    replaces="kv_bytes_per_token",
    caught_by="test_kv_bytes",
    feedback="You count a key and a value for every query head: only the n_kv_heads shared ones are kept.",
)
def kv_bytes_per_token(d_model, n_heads, n_kv_heads, itemsize=4):
    return 2 * d_model * itemsize


# --- statistics -------------------------------------------------------------------------------------------------------


@misconception(
    "one_sided_test",
    replaces="sign_flip_pvalue",
    caught_by="test_sign_flip",
    feedback="You count only patterns on the side of the data. Two-sided means as far from zero in either direction: "
    "compare absolute values.",
)
def sign_flip_pvalue(differences):
    original(differences)
    sums = [sum(s * d for s, d in zip(p, differences)) for p in itertools.product((1, -1), repeat=len(differences))]
    sign = 1 if sum(differences) >= 0 else -1
    return float(np.mean([sign * s >= abs(sum(differences)) - 1e-12 for s in sums]))


@misconception(
    "observed_left_out",
    replaces="sign_flip_pvalue",
    caught_by="test_sign_flip",
    feedback="Patterns as extreme as the data do not count in your share, not even the data themselves, so p can be 0. "
    "It is |mean| >= |observed|, with equality.",
)
def sign_flip_pvalue(differences):
    original(differences)
    sums = [sum(s * d for s, d in zip(p, differences)) for p in itertools.product((1, -1), repeat=len(differences))]
    return float(np.mean([abs(s) > abs(sum(differences)) + 1e-12 for s in sums]))


@misconception(
    "unpaired_test",
    replaces="compare",
    caught_by="test_compare",
    feedback="You shuffle the pooled values, so the seeds' common ups and downs drown the difference. Same seeds, same "
    "data: test the paired differences.",
)
def compare(trials, baseline, *, metric="exact_match", alpha=0.05):
    rows = original(trials, baseline, metric=metric, alpha=alpha)
    base = {r.task: r.values for r in rows if r.variant == baseline}
    out = []
    for row in rows:
        if row.variant != baseline:
            pool, n = np.array(row.values + base[row.task]), row.n
            chosen = np.array(list(itertools.combinations(range(2 * n), n)))
            first = pool[chosen].mean(1)
            difference = first - (pool.sum() - n * first) / n
            p = float((np.abs(difference) >= abs(row.diff_mean) - 1e-12).mean())
            side = "better" if row.diff_mean > 0 else "worse"
            row = dataclasses.replace(row, p_value=p, verdict=side if p < alpha else "indistinguishable")
        out.append(row)
    return out


@misconception(
    "ddof_zero",
    replaces="compare",
    caught_by="test_compare",
    feedback="Yours is the population sd; from a sample of seeds divide by n - 1 (and one seed has none: NaN).",
)
def compare(trials, baseline, *, metric="exact_match", alpha=0.05):
    rows = original(trials, baseline, metric=metric, alpha=alpha)
    return [dataclasses.replace(row, sd=float(np.std(row.values))) for row in rows]


@misconception(
    "verdict_by_mean",
    replaces="compare",
    caught_by="test_compare",
    feedback="Your verdict looks at the sign of the difference alone: unless p < alpha, the two are indistinguishable.",
)
def compare(trials, baseline, *, metric="exact_match", alpha=0.05):
    rows = original(trials, baseline, metric=metric, alpha=alpha)
    return [
        row if row.variant == baseline or row.diff_mean == 0
        else dataclasses.replace(row, verdict="better" if row.diff_mean > 0 else "worse")
        for row in rows
    ]


@misconception(
    "equals_beat_each_other",
    replaces="pareto_front",
    caught_by="test_pareto",
    feedback="Two variants that are equal in both respects threw each other out: to beat another one, a variant must be "
    "better in at least one.",
)
def pareto_front(rows):
    mean = {n: float(np.mean([r.mean for r in rows if r.variant == n])) for n in dict.fromkeys(r.variant for r in rows)}
    cost = {r.variant: r.kv_bytes for r in rows}
    front = [a for a in mean if not any(b != a and mean[b] >= mean[a] and cost[b] <= cost[a] for b in mean)]
    return sorted(front, key=cost.get)


@misconception(
    "sd_as_error_bar",
    replaces="plot_comparison",
    caught_by="test_plot_comparison",
    feedback="Your bars carry the standard deviation of the seeds; the standard error of their mean is sd / sqrt(n).",
)
def plot_comparison(rows, path):
    return original([dataclasses.replace(r, sd=r.sd * math.sqrt(r.n)) for r in rows], path)
