"""Budgets of 2.2 transformer_encoder. d = 32, 4 heads, d_ff = 128, 2 layers, float32, forward only, no gradients.

Counts are taken from the recorded program, run again on fresh weights and inputs. FLOPs are those of matrix products (a
product (m, k) x (k, n) is 2mkn, and F.scaled_dot_product_attention is its two products), matmul calls their number,
peak bytes what is alive at once besides inputs and weights; the result counts.

Of a sequence of n tokens one layer needs 8nd² + 4nd·d_ff + 4n²d = 24 576 n + 128 n² FLOP.
"""

import torch

from llmkata.checks import hint, needs, points, probe, task

CFG = {"d_model": 32, "n_heads": 4, "d_ff": 128, "n_layers": 2}
D, FF = CFG["d_model"], CFG["d_ff"]
CLOSE = 1e-4  # float32 on values of order 1: errors of 1e-6 are usual


def weights(rng):
    """A float32 state dict with the names of the contract (pre-norm, gelu, vectors in)."""
    shapes = {"qkv": (3 * D, D), "out": (D, D), "ff.up": (FF, D), "ff.down": (D, FF), "norm1": (D,), "norm2": (D,)}
    shapes = {f"layers.{i}.{name}": shape for i in range(CFG["n_layers"]) for name, shape in shapes.items()}
    state = {}
    for name, shape in {**shapes, "final_norm": (D,)}.items():
        x = torch.randn(shape, generator=rng)
        state[f"{name}.weight"] = 1 + 0.2 * x if "norm" in name else x / shape[-1] ** 0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=rng)
    return state


@probe
def frozen(module, cfg, state):
    """An encoder with these weights that records no gradients."""
    encoder = module.TransformerEncoder(module.EncoderConfig(**cfg)).requires_grad_(False).eval()
    own = dict(encoder.named_buffers())
    encoder.load_state_dict({**{n: v for n, v in encoder.state_dict().items() if n in own}, **state})
    return encoder


def prefix_mask(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def encode(masks):
    """A scenario: one encoder on each batch, in a segment of its number."""

    def scenario(s, state, batches):
        encoder, outputs = s.run(frozen, CFG, state), []
        for number, (x, mask) in enumerate(zip(batches, masks, strict=True)):
            with s.segment(str(number)):
                outputs.append(encoder(x, mask))
        return outputs

    return scenario


def oracle(reference, masks):
    return lambda state, batches: [
        reference.encoder(state, CFG, x, mask).float() for x, mask in zip(batches, masks, strict=True)
    ]


def replay(budget, reference, rng, sizes, masks):
    batches = [torch.randn(*size, D, generator=rng) for size in sizes]
    return budget.replay(encode(masks), weights(rng), batches, expect=oracle(reference, masks), tol=CLOSE)


# Rows of one batch. Ideal, per layer: Σ 24 576 n + 128 n².
SKEWED = [128] + [16] * 15  # 368 tokens, Σn² = 20 224: 11 632 640, two layers 23 265 280 FLOP. Padded: 7.2 times that.
MIXED = [64, 60, 50, 40, 30, 20, 10, 5]  # 279 tokens, Σn² = 13 221: 17 097 984 in all. Padded: 2.0 times that.


@task(6)
@points(8)
@needs("test_unpad_equals_padded")
@hint(
    "qkv, out and the feed-forward network on (N, d) real tokens, scores per sequence: nothing is done for padding.",
    "Scores on a padded (B, T, T) or on all N x N pairs are what is left over the limit.",
)
def test_flops_unpadded(submission, budget, reference, torch_rng):
    """With padding, an unpadded forward pass costs at most 1.10 times what the real tokens need."""
    # Ideal: 23 265 280 and 17 097 984 FLOP (the sums stand above); limits 1.10 times that. Padded: 7.2 and 2.0 times.
    # Padding for the scores alone: 3.7 and 1.3 times. All N x N pairs of the packed tokens: 2.3 and 2.0 times.
    rows = [SKEWED, MIXED]
    masks = [prefix_mask(lengths, max(lengths)) for lengths in rows]
    run = replay(budget, reference, torch_rng, [mask.shape for mask in masks], masks)
    for number, lengths in enumerate(rows):
        ideal = reference.encoder_flops(CFG, lengths)["total"]
        name = "one long row among short ones" if lengths is SKEWED else "rows of 5 to 64"
        budget.require(f"FLOPs, {name}", run[str(number)].flops, at_most=1.10 * ideal, at_least=ideal, reference=ideal)


@task(6)
@points(3)
@hint(
    "Without padding there is nothing to unpad: one product for the whole batch, not one for each sequence.",
    "`padding_mask.all()` tells that a mask hides nothing.",
)
def test_uniform_batch_is_batched(submission, budget, reference, torch_rng):
    """32 rows without padding take at most 8 matrix products a layer, without a mask and with one that is all True."""
    # qkv, scores, weights times v, out, up, down: 6 a layer. A loop over rows makes that 4 + 2 · 32.
    size, layers = (32, 16), CFG["n_layers"]
    masks = [None, torch.ones(size, dtype=torch.bool)]
    run = replay(budget, reference, torch_rng, [size, size], masks)
    for number, name in enumerate(("no mask", "a mask that is True everywhere")):
        calls = run[str(number)].matmul_calls
        budget.require(f"matrix products, {name}", calls, at_most=8 * layers, reference=6 * layers, unit="calls")


@task(6)
@points(4)
@needs("test_unpad_equals_padded")
@hint(
    "What is as long as B · T · d_ff? Pack before the layers, unpack after the last of them.",
    "Split into sequences before the scores, so that only one sequence's scores are alive at a time.",
)
def test_skewed_batch_peak(submission, budget, reference, torch_rng):
    """One row of 128 and fifteen of 16 tokens: at most 30 times the bytes of the real tokens' vectors."""
    mask = prefix_mask(SKEWED, 128)
    run = replay(budget, reference, torch_rng, [mask.shape], [mask])
    # Real vectors: 4 · 368 · 32 = 47 104 bytes; limit 1 413 120. The embedded padded batch is 5.6 of them, twice while
    # it is made; d_ff numbers a token are 4, qkv 3. Padded: qkv 16.7, d_ff 22.3 each, twice around the activation.
    hidden = 4 * sum(SKEWED) * D
    budget.require("peak bytes of a skewed batch", run.peak_bytes, at_most=30 * hidden, unit="bytes")


@task(8)
@points(6)
@needs("test_layer_matches_reference")
@hint(
    "F.scaled_dot_product_attention works tile by tile only for four-dimensional q, k and v with d_v = d: (B, H, T, d/H).",
    "By hand: blocks of queries against all keys keep block · T scores alive, not T · T.",
)
def test_peak_linear_in_length(submission, budget, reference, torch_rng):
    """Peak memory of one sequence grows with its length, not with its square."""
    # Bytes of x are 128 T. Alive at once: d_ff numbers a token, twice, are 8 of them, the stream and its norm 2. The
    # limit of 48 leaves room for blocks of queries: 64 · T · 4 heads · 4 bytes = 1024 T are 8 x, twice in a
    # softmax. All scores: 16 T² bytes, 128 x at T = 1024, twice in a softmax.
    sizes = (256, 512, 1024)
    run = replay(budget, reference, torch_rng, [(1, t) for t in sizes], [None] * len(sizes))
    peaks, limits = [run[str(number)].peak_bytes for number in range(len(sizes))], [48 * 4 * t * D for t in sizes]
    budget.growth("peak bytes of one sequence", sizes, peaks, exponent_at_most=1.3, at_most=limits, unit="bytes")
