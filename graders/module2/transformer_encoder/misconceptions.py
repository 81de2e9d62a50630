"""Wrong readings of the transformer encoder, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `pack`, `zero_padding` and the rest are
its helpers. Where a mistake is in one place, the wrong version calls `original` with what the mistake amounts to.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import dataclasses
import math

import torch

from llmkata.checks import misconception


def split_heads(qkv, n_heads):
    """q, k, v (B, H, T, d/H) from q, k, v side by side (B, T, 3d)."""
    return qkv.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4)


def keys_only(padding_mask):
    return None if padding_mask is None else padding_mask[:, None, None, :]


def embedded(self, inputs):
    """Token embeddings, scaled where configured, or the vectors that were passed in."""
    if inputs.is_floating_point():
        return inputs
    if self.embed is None:
        raise ValueError("vocab_size")
    return self.embed(inputs) * (math.sqrt(self.cfg.d_model) if self.cfg.scale_embedding else 1.0)


def joined(context):
    return context.transpose(1, 2).flatten(start_dim=-2)


# --- positions --------------------------------------------------------------------------------------------------------


@misconception(
    "halves_not_interleaved",
    replaces="sinusoidal_positions",
    caught_by="test_sinusoid_values",
    feedback="Your sines fill the first half and your cosines the second; the paper interleaves them, one pair of "
    "neighbours for each frequency. (Either works in a model, but weights trained with one do not work with the other.)",
)
def sinusoidal_positions(length, d_model, *, base=10000.0, offset=0, dtype=torch.float32):
    right = original(length, d_model, base=base, offset=offset, dtype=dtype)
    return torch.cat((right[:, 0::2], right[:, 1::2]), dim=-1)


@misconception(
    "exponent_i_over_d",
    replaces="sinusoidal_positions",
    caught_by="test_sinusoid_values",
    feedback="Your frequencies fall half as fast as they should: pair i has base^(-2i/d), not base^(-i/d).",
)
def sinusoidal_positions(length, d_model, *, base=10000.0, offset=0, dtype=torch.float32):
    return original(length, d_model, base=math.sqrt(base), offset=offset, dtype=dtype)


@misconception(
    "frequency_per_feature",
    replaces="sinusoidal_positions",
    caught_by="test_sinusoid_values",
    feedback="Sine and cosine of one pair have different frequencies in your table: both use 2i/d, the exponent of the "
    "even feature. Only then is a shift of the position a rotation.",
)
def sinusoidal_positions(length, d_model, *, base=10000.0, offset=0, dtype=torch.float32):
    original(0, d_model)  # refuses what is not even
    position = torch.arange(offset, offset + length, dtype=torch.float64)
    angle = torch.outer(position, base ** (-torch.arange(d_model, dtype=torch.float64) / d_model))
    return torch.where(torch.arange(d_model) % 2 == 0, angle.sin(), angle.cos()).to(dtype)


@misconception(
    "float32_angles",
    replaces="sinusoidal_positions",
    caught_by="test_sinusoid_far_positions",
    feedback="At position 100 000 your encoding is off by 4e-3: compute the angles in float64 and cast at the end.",
)
def sinusoidal_positions(length, d_model, *, base=10000.0, offset=0, dtype=torch.float32):
    original(0, d_model)  # refuses what is not even
    position = torch.arange(offset, offset + length, dtype=torch.float32)
    angle = torch.outer(position, base ** (-torch.arange(0, d_model, 2, dtype=torch.float32) / d_model))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(start_dim=-2).to(dtype)


@misconception(
    "positions_from_packed_index",
    replaces="TransformerEncoder.embed_inputs",
    caught_by="test_encoder_matches_reference",
    feedback="You count positions over real tokens only: padding in front of a token has shifted its position. A token "
    "keeps its slot number.",
)
def embed_inputs(self, inputs, padding_mask):
    x = zero_padding(embedded(self, inputs), padding_mask)
    table = self.pos(torch.zeros_like(x))
    if padding_mask is not None:
        counted = (padding_mask.cumsum(dim=-1) - 1).clamp(min=0)
        table = table.gather(1, counted[..., None].expand_as(x))
    x = x + table
    if self.embed_norm is not None:
        x = self.embed_norm(x)
    return zero_padding(self.dropout(x), padding_mask)


# --- feed-forward -----------------------------------------------------------------------------------------------------


@misconception(
    "gelu_tanh",
    replaces="FeedForward.forward",
    caught_by="test_layer_matches_torch",
    feedback="You used the tanh approximation of GELU (GPT-2's); BERT's and PyTorch's default is x · Φ(x) with erf.",
)
def forward(self, x):
    if self.activation != "gelu":
        return original(self, x)
    return self.down(self.dropout(F.gelu(self.up(x), approximate="tanh")))


@misconception(
    "gate_and_up_swapped",
    replaces="FeedForward.forward",
    caught_by="test_feed_forward_matches_reference",
    feedback="In your SwiGLU the nonlinearity sits on `up`; it belongs to the gate: silu(gate(x)) * up(x).",
)
def forward(self, x):
    if self.activation != "swiglu":
        return original(self, x)
    return self.down(self.dropout(F.silu(self.up(x)) * self.gate(x)))


@misconception(
    "sigmoid_gate",
    replaces="FeedForward.forward",
    caught_by="test_feed_forward_matches_reference",
    feedback="You gate with the sigmoid (that is GLU, of 2017); SwiGLU gates with silu(z) = z · sigmoid(z).",
)
def forward(self, x):
    if self.activation != "swiglu":
        return original(self, x)
    return self.down(self.dropout(torch.sigmoid(self.gate(x)) * self.up(x)))


# --- the layer --------------------------------------------------------------------------------------------------------


@misconception(
    "mask_inverted",
    replaces="EncoderLayer.heads",
    caught_by="test_layer_matches_reference",
    feedback="You attend exactly to the padding: in this course True means a real token, and so it does in "
    "F.scaled_dot_product_attention.",
)
def heads(self, qkv, padding_mask):
    return original(self, qkv, None if padding_mask is None else ~padding_mask)


@misconception(
    "mask_hides_queries",
    replaces="EncoderLayer.heads",
    caught_by="test_layer_matches_reference",
    feedback="Your mask empties the rows of padding queries; it is the padding *keys*, the columns, that nobody may "
    "attend to: (B, T) becomes (B, 1, 1, T), not (B, 1, T, 1).",
)
def heads(self, qkv, padding_mask):
    q, k, v = split_heads(qkv, self.n_heads)
    visible = None if padding_mask is None else padding_mask[:, None, :, None]
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=visible))


@misconception(
    "scale_by_d_model",
    replaces="EncoderLayer.heads",
    caught_by="test_layer_matches_reference",
    feedback="You scale by sqrt(d_model); the dot products of a head run over d_model / n_heads numbers.",
)
def heads(self, qkv, padding_mask):
    q, k, v = split_heads(qkv, self.n_heads)
    scale = 1 / math.sqrt(qkv.shape[-1] // 3)
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=keys_only(padding_mask), scale=scale))


@misconception(
    "qkv_by_head",
    replaces="EncoderLayer.heads",
    caught_by="test_layer_matches_reference",
    feedback="You read the rows of qkv as (head, q/k/v, feature); they are all of q, then all of k, then all of v "
    "(PyTorch's in_proj order): unflatten to (3, heads, size), not (heads, 3, size).",
)
def heads(self, qkv, padding_mask):
    q, k, v = qkv.unflatten(-1, (self.n_heads, 3, -1)).permute(3, 0, 2, 1, 4)
    return joined(F.scaled_dot_product_attention(q, k, v, attn_mask=keys_only(padding_mask)))


@misconception(
    "heads_reshaped_not_split",
    replaces="EncoderLayer.heads",
    caught_by="test_layer_matches_reference",
    feedback="You view (B, T, d) as (B, H, T, d/H) directly, which cuts the sequence into pieces, not the features: "
    "view as (B, T, H, d/H) and transpose.",
)
def heads(self, qkv, padding_mask):
    b, t, d3 = qkv.shape
    q, k, v = (part.reshape(b, self.n_heads, t, -1) for part in qkv.chunk(3, dim=-1))
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=keys_only(padding_mask))
    return context.reshape(b, t, d3 // 3)


@misconception(
    "heads_not_transposed_back",
    replaces="EncoderLayer.heads",
    caught_by="test_layer_matches_reference",
    feedback="You flatten (B, H, T, d/H) to (B, T, d) as it lies in memory, which mixes tokens: transpose heads and "
    "tokens back first.",
)
def heads(self, qkv, padding_mask):
    q, k, v = split_heads(qkv, self.n_heads)
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=keys_only(padding_mask))
    return context.reshape(qkv.shape[0], qkv.shape[1], -1)


@misconception(
    "empty_row_nan",
    replaces="EncoderLayer.heads",
    caught_by="test_all_padding_row",
    feedback="In a row of padding alone every score is -inf and the softmax is 0/0: the NaN is hidden in the output and "
    "alive in the gradients. Give such rows finite scores, or zeros instead of weights before anything uses them.",
)
def heads(self, qkv, padding_mask):
    if padding_mask is None:
        return original(self, qkv, None)
    q, k, v = split_heads(qkv, self.n_heads)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return joined(scores.masked_fill(~keys_only(padding_mask), float("-inf")).softmax(-1) @ v)


@misconception(
    "pad_zeroed_not_masked",
    replaces="EncoderLayer.forward",
    caught_by="test_padding_invariance",
    feedback="Zeroed padding keys still take part in the softmax (with the score of q and the bias of k): hide their "
    "scores.",
)
def forward(self, x, padding_mask=None):
    return original(self, zero_padding(x, padding_mask), None)


@misconception(
    "post_as_pre",
    replaces="EncoderLayer.residual_steps",
    caught_by="test_layer_matches_torch",
    feedback="Your post-norm layer normalises before each branch; post-norm is norm(x + branch(x)).",
)
def residual_steps(self, x, attention):
    x = x + self.dropout(attention(self.norm1(x)))
    return x + self.dropout(self.ff(self.norm2(x)))


@misconception(
    "pre_as_post",
    replaces="EncoderLayer.residual_steps",
    caught_by="test_layer_matches_torch",
    feedback="Your pre-norm layer normalises the sum; pre-norm is x + branch(norm(x)), and the stream x itself is never "
    "normalised.",
)
def residual_steps(self, x, attention):
    x = self.norm1(x + self.dropout(attention(x)))
    return self.norm2(x + self.dropout(self.ff(x)))


@misconception(
    "residual_from_normed",
    replaces="EncoderLayer.residual_steps",
    caught_by="test_layer_matches_reference",
    feedback="In pre-norm the skip must carry the un-normalised stream: x + attn(norm(x)), not norm(x) + attn(norm(x)).",
)
def residual_steps(self, x, attention):
    if not self.pre_norm:
        return original(self, x, attention)
    y = self.norm1(x)
    x = y + self.dropout(attention(y))
    y = self.norm2(x)
    return y + self.dropout(self.ff(y))


@misconception(
    "one_norm_for_both",
    replaces="EncoderLayer.residual_steps",
    caught_by="test_layer_matches_reference",
    feedback="norm1 is used twice: the feed-forward network has a norm of its own, norm2.",
)
def residual_steps(self, x, attention):
    if self.pre_norm:
        x = x + self.dropout(attention(self.norm1(x)))
        return x + self.dropout(self.ff(self.norm1(x)))
    x = self.norm1(x + self.dropout(attention(x)))
    return self.norm1(x + self.dropout(self.ff(x)))


# --- the encoder ------------------------------------------------------------------------------------------------------


@misconception(
    "scale_after_positions",
    replaces="TransformerEncoder.embed_inputs",
    caught_by="test_encoder_matches_reference",
    feedback="You scale the sum of embedding and position; sqrt(d_model) belongs to the token embedding alone.",
)
def embed_inputs(self, inputs, padding_mask):
    if inputs.is_floating_point() or not self.cfg.scale_embedding or self.embed is None:
        return original(self, inputs, padding_mask)
    x = self.pos(self.embed(inputs)) * math.sqrt(self.cfg.d_model)
    if self.embed_norm is not None:
        x = self.embed_norm(x)
    return zero_padding(self.dropout(x), padding_mask)


@misconception(
    "vectors_scaled",
    replaces="TransformerEncoder.embed_inputs",
    caught_by="test_encoder_matches_reference",
    feedback="scale_embedding concerns token embeddings; vectors that are passed in are taken as they are.",
)
def embed_inputs(self, inputs, padding_mask):
    if inputs.is_floating_point() and self.cfg.scale_embedding:
        inputs = inputs * math.sqrt(self.cfg.d_model)
    return original(self, inputs, padding_mask)


@misconception(
    "embed_norm_before_positions",
    replaces="TransformerEncoder.embed_inputs",
    caught_by="test_encoder_matches_reference",
    feedback="You normalise the token embeddings and then add the positions; embed_norm comes after the sum.",
)
def embed_inputs(self, inputs, padding_mask):
    x = zero_padding(embedded(self, inputs), padding_mask)
    if self.embed_norm is not None:
        x = self.embed_norm(x)
    return zero_padding(self.dropout(self.pos(x)), padding_mask)


@misconception(
    "padding_multiplied_away",
    replaces="zero_padding",
    caught_by="test_padding_invariance",
    feedback="You multiply padding by 0, and 0 · NaN and 0 · inf are NaN, which the next layer spreads to every token. "
    "Replace it: masked_fill or torch.where.",
)
def zero_padding(x, padding_mask):
    return x if padding_mask is None else x * padding_mask[..., None]


@misconception(
    "padding_replaced_too_late",
    replaces="TransformerEncoder.embed_inputs",
    caught_by="test_padding_invariance",
    feedback="You replace padding after it went through embed_norm. The values are right, but backward the norm "
    "multiplies its zero gradient by the NaN that stood there: replace padding before anything is computed from it.",
)
def embed_inputs(self, inputs, padding_mask):
    x = self.pos(embedded(self, inputs))
    if self.embed_norm is not None:
        x = self.embed_norm(x)
    return zero_padding(self.dropout(x), padding_mask)


@misconception(
    "no_final_norm",
    replaces="TransformerEncoder.run_padded",
    caught_by="test_encoder_matches_reference",
    feedback="A pre-norm encoder ends with final_norm: its stream leaves the last layer un-normalised.",
)
def run_padded(self, x, padding_mask):
    for layer in self.layers:
        x = layer(x, padding_mask)
    return zero_padding(x, padding_mask)


@misconception(
    "padding_left_in_output",
    replaces="TransformerEncoder.run_padded",
    caught_by="test_encoder_matches_reference",
    feedback="Real tokens are right, but padding leaves your encoder as if it were tokens: its slots must be zeros.",
)
def run_padded(self, x, padding_mask):
    for layer in self.layers:
        x = layer(x, padding_mask)
    return x if self.final_norm is None else self.final_norm(x)


# --- packing and unpadded execution -----------------------------------------------------------------------------------


@misconception(
    "lengths_of_empty_rows",
    replaces="pack",
    caught_by="test_pack_roundtrip",
    feedback="Your lengths hold a 0 for rows without tokens: there is one length for each row that has any.",
)
def pack(x, padding_mask):
    return dataclasses.replace(original(x, padding_mask), lengths=tuple(padding_mask.sum(dim=-1).tolist()))


@misconception(
    "index_within_row",
    replaces="pack",
    caught_by="test_pack_roundtrip",
    feedback="Your index is the slot within its row; the flat slot is b·T + t, so that one number finds the token again.",
)
def pack(x, padding_mask):
    right = original(x, padding_mask)
    return dataclasses.replace(right, index=right.index % padding_mask.shape[1])


@misconception(
    "attend_across_sequences",
    replaces="EncoderLayer.forward_packed",
    caught_by="test_unpad_equals_padded",
    feedback="After unpadding, sequences see one another: attention must stay inside each length.",
)
def forward_packed(self, values, lengths):
    if not lengths:
        return original(self, values, lengths)
    return self.residual_steps(values, lambda y: self.out(self.heads(self.qkv(y)[None], None)[0]))


@misconception(
    "unpad_ignored",
    replaces="TransformerEncoder.run_packed",
    caught_by="test_flops_unpadded",
    matches="flops",
    feedback="Your layers still run on every slot of the padded batch: the result is right, the work is not saved.",
)
def run_packed(self, x, padding_mask):
    return self.run_padded(x, padding_mask)


@misconception(
    "padded_tensors",
    replaces="TransformerEncoder.run_packed",
    caught_by="test_skewed_batch_peak",
    matches="peak_bytes",
    equivalent_to="unpad_ignored",
    feedback="You hold tensors of B · T rows (with d_ff numbers in each) where N rows are tokens: pack before the first "
    "layer, unpack after the last.",
)
def run_packed(self, x, padding_mask):
    return self.run_padded(x, padding_mask)


@misconception(
    "padded_scores",
    replaces="EncoderLayer.forward_packed",
    caught_by="test_flops_unpadded",
    matches="flops",
    feedback="Your linear maps run on real tokens, but for attention you pad again: B · T² scores for one long row among "
    "short ones. Attend sequence by sequence, or by groups of one length.",
)
def forward_packed(self, values, lengths):
    if not lengths:
        return original(self, values, lengths)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    index = mask.flatten().nonzero().squeeze(-1)

    def attention(y):
        projected = self.qkv(y)
        padded = projected.new_zeros(mask.numel(), projected.shape[-1]).index_copy(0, index, projected)
        return self.out(self.heads(padded.unflatten(0, mask.shape), mask).flatten(0, 1)[index])

    return self.residual_steps(values, attention)


@misconception(
    "block_diagonal_mask",
    replaces="EncoderLayer.forward_packed",
    caught_by="test_flops_unpadded",
    matches="flops",
    feedback="You compute all N x N scores of the packed tokens and mask those between sequences: right, and more work "
    "than padding would be. Split q, k and v by the lengths instead.",
)
def forward_packed(self, values, lengths):
    if not lengths:
        return original(self, values, lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def attention(y):
        q, k, v = split_heads(self.qkv(y)[None], self.n_heads)
        same_sequence = owner[:, None] == owner
        return self.out(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=same_sequence))[0])

    return self.residual_steps(values, attention)


@misconception(
    "full_batch_unpadded",
    replaces="TransformerEncoder.forward",
    caught_by="test_uniform_batch_is_batched",
    matches="matmul_calls",
    feedback="A batch without padding goes through your per-sequence loop: many small products instead of one. Take the "
    "batched path when there is no mask or the mask is True everywhere.",
)
def forward(self, inputs, padding_mask=None):
    if padding_mask is None:
        padding_mask = torch.ones(inputs.shape[:2], dtype=torch.bool)
    check_mask(padding_mask)
    return self.run_packed(self.embed_inputs(inputs, padding_mask), padding_mask)


# --- counting and memory ----------------------------------------------------------------------------------------------


@misconception(
    "multiply_adds_counted_once",
    replaces="encoder_flops",
    caught_by="test_flop_formula",
    feedback="You count a multiply-add as one operation: a product (m, k) x (k, n) is 2mkn FLOPs.",
)
def encoder_flops(cfg, lengths):
    return FlopBreakdown(*(part // 2 for part in dataclasses.astuple(original(cfg, lengths))))


@misconception(
    "one_product_of_scores",
    replaces="encoder_flops",
    caught_by="test_flop_formula",
    feedback="Your scores lack a product: q kᵀ costs 2·n²·d, and the weights times v cost as much again.",
)
def encoder_flops(cfg, lengths):
    right = original(cfg, lengths)
    return dataclasses.replace(right, scores=right.scores // 2, total=right.total - right.scores // 2)


@misconception(
    "flops_of_the_padded_batch",
    replaces="encoder_flops",
    caught_by="test_flop_formula",
    feedback="You count every row with the longest length: that is the padded batch, what unpadding is there to save.",
)
def encoder_flops(cfg, lengths):
    return original(cfg, [max(lengths)] * len(lengths))


@misconception(
    "square_of_the_sum",
    replaces="encoder_flops",
    caught_by="test_flop_formula",
    feedback="Your scores grow with (Σn)², as if all sequences were one: it is the sum of the squares, Σn².",
)
def encoder_flops(cfg, lengths):
    right = original(cfg, lengths)
    scores = cfg.n_layers * 4 * sum(lengths) ** 2 * cfg.d_model
    return dataclasses.replace(right, scores=scores, total=right.total - right.scores + scores)


@misconception(
    "all_scores_at_once",
    replaces="EncoderLayer.heads",
    caught_by="test_peak_linear_in_length",
    matches="peak_bytes",
    feedback="All T x T scores of a sequence are alive at once, and again as their softmax. Written by hand that is right "
    "for task 3; task 8 wants blocks of queries. If you call F.scaled_dot_product_attention, your q, k, v have three "
    "dimensions: its CPU kernel needs four, (B, H, T, d/H), and otherwise silently makes all scores.",
)
def heads(self, qkv, padding_mask):
    b = qkv.shape[0]
    q, k, v = (part.flatten(0, 1) for part in split_heads(qkv, self.n_heads))
    visible = None if padding_mask is None else padding_mask.repeat_interleave(self.n_heads, 0)[:, None, :]
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return joined(context.unflatten(0, (b, self.n_heads)))
