"""Budgets of 2.1 self_attention. BH = 2 (one leading dimension), D = Dv = 32, float32, unless said.

Counts are taken from the recorded program, run again on fresh inputs. FLOPs are those of matrix products (a product
(m, k) x (k, n) is 2mkn), pointwise work is the number of elements that all other arithmetic reads or writes, peak
bytes are what is alive at once besides the inputs; the result counts.
"""

import torch
from torch.nn import functional as F

from llmkata.checks import hint, needs, points, task

BH, D = 2, 32
CLOSE = 1e-4  # float32 on unit-normal data: errors of 1e-6 are usual


def qkv(rng, t):
    return tuple(torch.randn(BH, t, D, generator=rng) for _ in range(3))


def sdpa(q, k, v, is_causal=False):
    """The output by PyTorch's own attention in float64; causal order is only used with Tq = Tk here."""
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=is_causal).float()


def product_flops(t):
    """Q Kᵀ and P V without causal skipping: 2 · (2 · BH · T · T · D)."""
    return 4 * BH * t * t * D


@task(1)
@points(4)
@needs("test_attention_matches_reference")
@hint(
    "Two matrix products are all the work there is: q @ k.mT and weights @ v.",
    "A product written as (q[:, None] * k).sum(-1) costs 2·D elements of pointwise work per score.",
)
def test_flops_attention(submission, budget, torch_rng):
    """Attention costs two matrix products, and at most 12 elements of other work per score."""
    t = 512
    # 4 · 2 · 512 · 512 · 32 = 67 108 864 FLOP. Pointwise: 12 · 2 · 512² = 6 291 456 elements; the model answer takes
    # mask 0.5 + not 0.5 + fill 1 + any 0.5 + fill 1 + softmax 1 + fill 1 = 5.5 per score; multiply-and-sum takes 64.
    run = budget.replay(
        lambda s, *x: s.attention(*x, is_causal=True)[0],
        *qkv(torch_rng, t),
        expect=lambda *x: sdpa(*x, is_causal=True),
        tol=CLOSE,
    )
    ideal = product_flops(t)
    budget.require("FLOPs of attention", run.flops, at_most=1.01 * ideal, at_least=0.99 * ideal, reference=ideal)
    budget.require("other work of attention", run.pointwise, at_most=12 * BH * t * t, unit="elements")


@task(5)
@points(4)
@needs("test_streaming_matches_reference")
@hint(
    "A tile whose first key comes after the last query's horizon is entirely hidden: end the loop over keys there.",
    "The last query of the block before i_end sees keys j < i_end + Tk - Tq.",
)
def test_causal_blocks_skipped(submission, budget, torch_rng):
    """Causal streaming computes only the tiles in which something is visible, for the block size it is given."""
    t, limits = 512, {64: 0.60, 256: 0.79}
    # With n = T / block the tiles on and below the diagonal are n(n+1)/2 of n²: (n+1)/2n of the full product.
    # block 64: 9/16 = 0.5625; block 256: 3/4. Masking without skipping: 1. The floor is the diagonal itself,
    # T(T+1)/2 pairs: 0.501. (The specification has T = 1024; half of it costs a quarter of the tiles and says as much.)

    def scenario(s, q, k, v):
        outputs = []
        for block in limits:
            with s.segment(f"blocks of {block}"):
                outputs.append(s.streaming_attention(q, k, v, is_causal=True, block_q=block, block_k=block)[0])
        return outputs

    run = budget.replay(
        scenario, *qkv(torch_rng, t), expect=lambda *x: [sdpa(*x, is_causal=True)] * len(limits), tol=CLOSE
    )
    full = product_flops(t)
    for block, most in limits.items():
        n = t // block
        budget.require(
            f"FLOPs with blocks of {block}",
            run[f"blocks of {block}"].flops,
            at_most=most * full,
            at_least=0.5 * full,
            reference=(n + 1) / (2 * n) * full,
        )


@task(5)
@points(4)
@needs("test_streaming_matches_reference")
@hint(
    "What is alive at once? One tile of scores, its exponentials, m, l, o of one block of queries, and the output.",
    "Blocks of queries alone are not enough: their scores against all keys are block_q · Tk numbers.",
)
def test_forward_peak(submission, budget, torch_rng):
    """The forward pass holds at most six tiles of scores and four outputs, and does not grow with T squared."""
    block_q, block_k = 256, 32
    tile = 4 * BH * block_q * block_k  # 65 536 bytes
    sizes, peaks, limits = (128, 256, 512), [], []
    for t in sizes:
        run = budget.replay(
            lambda s, *x: s.streaming_attention(*x, block_q=block_q, block_k=block_k)[0],
            *qkv(torch_rng, t),
            expect=sdpa,
            tol=CLOSE,
        )
        # T = 512: 6 · 65 536 + 4 · 131 072 = 917 504 bytes. Materialised scores are 32 tiles, 2 097 152 bytes, and
        # their softmax as many again; blocks of queries against all keys hold 16 tiles, 1 048 576 bytes, twice.
        # (The specification has T = 1024 and blocks of twice this size: the same ratios for four times the work.)
        peaks.append(run.peak_bytes)
        limits.append(6 * tile + 4 * (4 * BH * t * D))
    budget.growth(
        "peak bytes of the forward pass", sizes, peaks, exponent_at_most=1.25, at_most=limits, unit="bytes"
    )


def backward_run(budget, torch_rng, t, block_q, block_k):
    """Forward and backward of the output (the lse is left unused) for a given cotangent."""

    def scenario(s, q, k, v, d_out):
        kwargs = {"block_q": block_q, "block_k": block_k}
        return tuple(s.vjp("streaming_attention", (q, k, v), kwargs, wrt=(0, 1, 2), cotangents=(d_out, None))[1])

    def oracle(q, k, v, d_out):
        leaves = [x.double().requires_grad_() for x in (q, k, v)]
        grads = torch.autograd.grad(F.scaled_dot_product_attention(*leaves), leaves, d_out.double())
        return tuple(g.float() for g in grads)

    d_out = torch.randn(BH, t, D, generator=torch_rng)
    return budget.replay(scenario, *qkv(torch_rng, t), d_out, expect=oracle, tol=CLOSE)


@task(7)
@points(4)
@needs("test_streaming_backward")
@hint(
    "Keep q, k, v, out and lse between the passes, nothing of a tile.",
    "A streaming forward left to autograd saves every tile it computed, and that is T x T again.",
)
def test_backward_peak(submission, budget, torch_rng):
    """Forward and backward together stay below 20 outputs' worth of memory at T = 512."""
    t = 512
    run = backward_run(budget, torch_rng, t, 64, 256)
    # Output and tile are 131 072 bytes each; limit 20 · 131 072 = 2 621 440. Measured, in outputs: the model answer
    # (output, lse, three gradients, a few tiles) 8.2; recomputing blocks of queries by checkpointing 13.0. What is
    # quadratic: a streaming forward left to autograd saves every tile of scores, differences and exponentials, 39.
    # (The specification has T = 1024: the same tile for an output, four times the work.)
    output = 4 * BH * t * D
    budget.require("peak bytes, forward and backward", run.peak_bytes, at_most=20 * output, unit="bytes")


@task(7)
@points(2)
@needs("test_streaming_backward")
@hint("Five products per tile: S again, dP = dO Vᵀ, and one each for dV, dQ and dK. P needs no second softmax.")
def test_backward_flops(submission, budget, torch_rng):
    """Recomputing the weights once, forward and backward cost at most 4.2 times the forward pass."""
    t = 128
    run = backward_run(budget, torch_rng, t, 64, 64)
    # Forward 2 products; backward S, dP, dV, dQ, dK: 7/2 = 3.5 forwards. Checkpointing: (2 + 2 + 4)/2 = 4.0.
    full = product_flops(t)
    budget.require(
        "FLOPs, forward and backward", run.flops, at_most=4.2 * full, at_least=2.99 * full, reference=3.5 * full
    )


@task(8)
@points(2)
@needs("test_module")
@hint("When no weights are asked for, call streaming_attention with block_q = block_k = block_size.")
def test_layer_peak(submission, budget, torch_rng):
    """A layer that is not asked for its weights needs memory in proportion to T, not to T squared."""
    t, d = 512, 32
    parameters = {
        f"{name}.weight": torch.randn(d, d, generator=torch_rng) / d**0.5
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    }

    def scenario(s, x, parameters):
        layer = s.SelfAttention(d, causal=True, block_size=64)
        layer.load_state_dict(parameters)
        return layer(x)

    def oracle(x, parameters):
        q, k, v = (x @ parameters[f"{name}_proj.weight"].mT for name in "qkv")
        return sdpa(q, k, v, is_causal=True) @ parameters["out_proj.weight"].mT

    x = torch.randn(1, t, d, generator=torch_rng)
    run = budget.replay(scenario, x, parameters, expect=oracle, tol=CLOSE)
    # x is 65 536 bytes. q, k, v, context, output and a few tiles of 16 384: about 7. One T x T matrix alone is 16.
    size = 4 * t * d
    budget.require("peak bytes of the layer", run.peak_bytes, at_most=10 * size, unit="bytes")
