"""Budgets of 2.3 multi_head_attention. B = 2, d_model = 64, float32, unless said.

Counts are taken from the recorded program, run again on fresh inputs. FLOPs are those of matrix products (a product
(m, k) x (k, n) is 2mkn); bytes moved are those written by operators that only copy (a transposed tensor made
contiguous, a repeat, a concatenation).
"""

import math

import torch

from llmkata.checks import check, hint, needs, points, probe, task

B, D_MODEL = 2, 64
CLOSE = 1e-4  # float32 on unit-normal data: errors of 1e-6 are usual


def parameters_of(rng, n_heads, n_kv_heads, d=D_MODEL):
    kv = n_kv_heads * d // n_heads
    shapes = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "out_proj": (d, d)}
    weights = {f"{n}.weight": torch.randn(shape, generator=rng) / math.sqrt(d) for n, shape in shapes.items()}
    return weights | {f"{n}.bias": torch.randn(shape[0], generator=rng) for n, shape in shapes.items()}


def layers_run(budget, reference, rng, heads, tq, tk):
    """One layer for each of ``heads``, each call in its own segment; with tk None on its own input."""

    def scenario(s, query, memory, parameters):
        outputs = []
        for n, (h, kv) in enumerate(heads):
            layer = s.MultiHeadAttention(D_MODEL, h, kv)
            layer.load_state_dict(parameters[n])
            with s.segment(f"{h} over {kv}"):
                outputs.append(layer(query) if tk is None else layer(query, memory))
        return outputs

    def oracle(query, memory, parameters):
        memory = None if tk is None else memory
        return [
            reference.attention(p, query, memory, n_heads=h, n_kv_heads=kv)[0].float()
            for p, (h, kv) in zip(parameters, heads, strict=True)
        ]

    query = torch.randn(B, tq, D_MODEL, generator=rng)
    memory = torch.randn(B, tk or 1, D_MODEL, generator=rng)
    parameters = [parameters_of(rng, h, kv) for h, kv in heads]
    return budget.replay(scenario, query, memory, parameters, expect=oracle, tol=CLOSE)


@task(1)
@points(5)
@needs("test_mha_matches_reference")
@hint(
    "Heads are one more batch dimension: q of shape (B, H, T, D) needs no loop.",
    "Four projections of full width, scores, weighted sum: six products, whatever the number of heads.",
)
def test_heads_are_batched(submission, budget, reference, torch_rng):
    """The number of matrix products does not grow with the number of heads, and is at most 8."""
    heads = [(h, h) for h in (1, 4, 16)]
    run = layers_run(budget, reference, torch_rng, heads, 16, None)
    # 4 projections + scores + weighted sum = 6. A loop over heads: 4 + 2h, 36 products at 16 heads.
    for h, kv in reversed(heads):
        calls = run[f"{h} over {kv}"].matmul_calls
        budget.require(f"matrix products with {h} heads", calls, at_most=8, reference=6, unit="calls")
        alike = calls == run["1 over 1"].matmul_calls
        check(alike, f"{h} heads take another number of products than one head.", got=int(calls))


def ideal_flops(tq, tk, kv_dim):
    """q_proj, out_proj: 2 · 2·B·Tq·d²; k_proj, v_proj: 2 · 2·B·Tk·d·K·D; scores, weighted sum: 2 · 2·B·Tq·Tk·d."""
    return 4 * B * tq * D_MODEL**2 + 4 * B * tk * D_MODEL * kv_dim + 4 * B * tq * tk * D_MODEL


def require_flops(budget, run, heads, tq, tk):
    for h, kv in heads:
        ideal = ideal_flops(tq, tk, kv * D_MODEL // h)
        spent = run[f"{h} over {kv}"].flops
        name = f"FLOPs with {h} heads over {kv}"
        budget.require(name, spent, at_most=1.01 * ideal, at_least=0.99 * ideal, reference=ideal)


@task(2)
@points(3)
@needs("test_cross_attention")
@hint("Queries are projected once from `query`, keys and values once from `memory`: is anything projected in vain?")
def test_cross_flops(submission, budget, reference, torch_rng):
    """Cross-attention of 16 queries over 512 keys costs its six products and no more."""
    tq, tk, heads = 16, 512, [(8, 8)]
    # 4·2·16·64² + 4·2·512·64·64 + 4·2·16·512·64 = 524 288 + 16 777 216 + 4 194 304 = 21 495 808 FLOP.
    require_flops(budget, layers_run(budget, reference, torch_rng, heads, tq, tk), heads, tq, tk)


# --- decoding: B = 2, S = 16 source tokens, 8 target tokens, d = 32, 4 heads, vocabularies of 16 ---------------------

SIZE, WIDTH, HEADS = (16, 16, 16, 8), 32, 4


def model_parameters(rng):
    """A random float32 state dict of Seq2Seq with one block on each side; weights of order 1 so that outputs depend on their inputs."""
    src_vocab, tgt_vocab, src_len, tgt_len = SIZE
    d, linears, norms = WIDTH, {"unembed": (tgt_vocab, WIDTH)}, ["src_norm", "tgt_norm"]
    for part, attentions in (("encoder", ["attention"]), ("decoder", ["attention", "cross"])):
        block = f"{part}.0"
        projections = [f"{block}.{a}.{n}_proj" for a in attentions for n in ("q", "k", "v", "out")]
        linears |= dict.fromkeys(projections, (d, d)) | {f"{block}.ff.0": (2 * d, d), f"{block}.ff.2": (d, 2 * d)}
        norms += [f"{block}.norm{k + 1}" for k in range(len(attentions) + 1)]
    parameters = {f"{n}.weight": 2 * torch.randn(s, generator=rng) / math.sqrt(s[1]) for n, s in linears.items()}
    parameters |= {f"{n}.bias": 0.3 * torch.randn(s[0], generator=rng) for n, s in linears.items()}
    parameters |= {f"{n}.weight": 1 + 0.1 * torch.randn(d, generator=rng) for n in norms}
    parameters |= {f"{n}.bias": 0.1 * torch.randn(d, generator=rng) for n in norms}
    tables = {"src_embed.weight": src_vocab, "tgt_embed.weight": tgt_vocab + 1}
    tables |= {"src_positions": src_len, "tgt_positions": tgt_len}
    return parameters | {n: torch.randn(rows, d, generator=rng) for n, rows in tables.items()}


@probe
def make_model(module, size, heads, d, parameters):
    model = module.Seq2Seq(module.TaskSize(*size), heads, heads, d_model=d)
    model.load_state_dict(parameters)
    return model


@probe
def counted_decode(module, size, heads, d, depth, src, length):
    """How often the encoder's blocks ran, and how often a decoder block projected the source's keys."""
    model = module.Seq2Seq(module.TaskSize(*size), heads, heads, d_model=d, n_enc=depth, n_dec=depth)
    counts = {"encoder": 0, "cross": 0}

    def counter(name):
        def count(*_):
            counts[name] += 1

        return count

    for block in model.encoder:
        block.register_forward_hook(counter("encoder"))
    for block in model.decoder:
        block.cross.k_proj.register_forward_hook(counter("cross"))
    module.greedy_decode(model, src, length)
    return [counts["encoder"], counts["cross"]]


@task(3)
@points(4)
@needs("test_decode_matches_reference")
@hint(
    "The source does not change while you write: what depends on it alone belongs before the loop.",
    "kv = [block.cross.project_kv(memory) for block in model.decoder], then model.decode(tokens, kv=kv).",
)
def test_decode_encodes_once(submission, budget, torch_rng):
    """Whatever the length, each encoder block runs once and each decoder block projects the source once."""
    # 2 blocks each: 2 encoder calls and 2 projections. Again in every step: 8 · 2 = 16 of either.
    src = torch.randint(0, 16, (B, 16), generator=torch_rng)
    for length in (8, 1):
        encoder, cross = submission.run(counted_decode, SIZE, HEADS, WIDTH, 2, src, length)
        for name, calls in (("encoder block calls", encoder), ("projections of the source", cross)):
            budget.require(f"{name} for {length} tokens", calls, at_most=2, reference=2, unit="calls")


@task(3)
@points(4)
@needs("test_decode_matches_reference")
@hint(
    "Step t runs the decoder on t tokens. What else is computed in each step?",
    "Decode only the tokens there are so far, not a padded target of full length.",
)
def test_causal_prefix_cost(submission, budget, reference, torch_rng):
    """Decoding costs one encoding, one projection of the source, and the decoder on 1, 2, ... tokens."""
    s, t, d, vocab = SIZE[2], SIZE[3], WIDTH, SIZE[1]
    # A block's projections and feed-forward: 8·d² + 8·d² per token (cross-attention: 4·d² more, for q and output);
    # scores and weighted sum: 4·d per pair. One block on each side; for a sequence, with d² = 1024:
    #   encoder 16·16·1024 + 4·16·16·32 = 294 912;   source keys and values 4·16·1024 = 65 536
    #   decoder on n tokens: 20·n·1024 + 4·n·n·32 + 4·n·16·32 + 2·n·32·16 = 23 552·n + 128·n²
    encode = 16 * s * d * d + 4 * s * s * d
    source = 4 * s * d * d

    def decoder(queries, pairs):
        return 20 * queries * d * d + 4 * pairs * d + 4 * queries * s * d + 2 * queries * d * vocab

    # 2 · (294 912 + 65 536 + 23 552·36 + 128·204) = 2 · (360 448 + 873 984) = 2 468 864 FLOP
    ideal = B * (encode + source + sum(decoder(n, n * n) for n in range(1, t + 1)))
    floor = B * (encode + source + decoder(t, t * (t + 1) // 2))  # with a cache of the target's keys and values too
    # Projecting the source in every step adds 7 · 2 · 65 536 = 917 504 (37 %), encoding again 167 %, a padded
    # target 57 %.
    src = torch.randint(0, 16, (B, s), generator=torch_rng)

    def scenario(sub, parameters, src):
        model = sub.run(make_model, SIZE, HEADS, WIDTH, parameters)
        with sub.segment("decode"):
            return sub.greedy_decode(model, src, t)

    def oracle(parameters, src):
        return reference.greedy(parameters, src, t, {"n_heads": HEADS})

    run = budget.replay(scenario, model_parameters(torch_rng), src, expect=oracle)
    spent = run["decode"].flops
    budget.require("FLOPs of decoding", spent, at_most=1.05 * ideal, at_least=0.99 * floor, reference=ideal)


# --- task 6 -----------------------------------------------------------------------------------------------------------


@task(6)
@points(5)
@needs("test_gqa_matches_reference")
@hint(
    "With K < H the key and value projections are narrower. Are yours of full width?",
    "4·B·Tk·d·K·D: with 8 heads over 1 the projections of K and V cost an eighth.",
)
def test_gqa_flops(submission, budget, reference, torch_rng):
    """Sharing heads saves projections: FLOPs are exactly those of K key/value heads."""
    tq, tk, heads = 16, 512, [(8, 2), (8, 1)]
    # 524 288 + 4·2·512·64·16 + 4 194 304 = 8 912 896, and with one head 6 815 744 FLOP; full width: 21 495 808.
    require_flops(budget, layers_run(budget, reference, torch_rng, heads, tq, tk), heads, tq, tk)


@task(6)
@points(10)
@needs("test_gqa_matches_reference")
@hint(
    "repeat_interleave copies K and V G times; so does expand followed by a matrix product, and a grouped einsum.",
    "Move the group into the rows of the queries instead: (B, K, G·Tq, D) against (B, K, Tk, D).",
)
def test_gqa_copies_nothing(submission, budget, reference, torch_rng):
    """K and V are copied at most once (into another layout), never once per query head."""
    tq, tk, limits = 16, 512, {(8, 2): 1.6, (8, 1): 1.0}
    run = layers_run(budget, reference, torch_rng, list(limits), tq, tk)
    for (h, kv), most in limits.items():
        # K and V: 2 · B·Tk·K·D·4 = 131 072 bytes for (8, 2), 65 536 for (8, 1). One copy of both into (B, K, Tk, D)
        # layout, plus queries and output (2 · B·Tq·d·4 = 16 384 bytes): 1.12. With one head no copy is needed: 0.25.
        # Repeated for each query head: 4.1 and 8.25.
        size = 2 * B * tk * kv * (D_MODEL // h) * 4
        moved = run[f"{h} over {kv}"].bytes_moved
        budget.require(f"bytes moved with {h} heads over {kv}", moved, at_most=most * size, unit="bytes")
