"""Visible checks of 6.1 kv_cache. Expected values are written out or come from the decoder itself without its cache."""

import torch

from llmkata.checks import check, expect_error, hint, probe, same, task

SIZES = {
    "vocab_size": 16,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 4,
    "d_ff": 24,
    "max_positions": 32,
}


@probe
def make_decoder(module, sizes, seed):
    """A float64 decoder with fixed random weights of deviation 0.4."""
    import torch

    model = module.Decoder(module.DecoderConfig(**sizes)).double().requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    return model


def decoder(submission, **sizes):
    return submission.run(make_decoder, {**SIZES, **sizes}, 0)


def kv_cache(submission, batch=1, capacity=2, **sizes):
    return submission.KVCache(submission.DecoderConfig(**{**SIZES, **sizes}), batch, capacity, dtype=torch.float64)


def numbered(start, stop):
    """Keys (1, 2, t, 4) in which every number of a token is its slot."""
    return torch.arange(start, stop, dtype=torch.float64)[None, None, :, None].expand(1, 2, -1, 4).contiguous()


# --- task 1 -------------------------------------------------------------------------------------------------------


@task(1)
@hint("Keep a length for each layer; write at [length : length + t] and return [: length + t].")
def test_append_and_read(submission):
    """Three tokens, then one: what was appended comes back in order, layer by layer, and the buffer has doubled."""
    cache = kv_cache(submission)
    for layer in (0, 1):
        cache.append(layer, numbered(0, 2), -numbered(0, 2))
    check(
        (cache.length, cache.capacity) == (2, 2),
        "length and capacity after two tokens.",
        got=(cache.length, cache.capacity),
        want=(2, 2),
    )
    for layer in (0, 1):
        keys, values = cache.append(layer, numbered(2, 3), -numbered(2, 3))
        same(keys, numbered(0, 3), what=f"keys of layer {layer}")
        same(values, -numbered(0, 3), what=f"values of layer {layer}")
    check(
        cache.length == 3 and cache.capacity >= 4,
        "A full buffer at least doubles.",
        got=(cache.length, cache.capacity),
        want=(3, 4),
    )
    # K and V, 2 layers, 2 key/value heads, 4 numbers of 8 bytes
    check(
        cache.nbytes == 2 * 2 * 2 * 4 * 8 * cache.capacity,
        "nbytes counts all buffers.",
        got=cache.nbytes,
        want=256 * cache.capacity,
    )
    same(cache.key_slots(0), torch.tensor([0, 1, 2]), what="key_slots")
    with expect_error(ValueError, "(1, 3, 1, 4)", "(1, 2, 1, 4)"):
        cache.append(0, torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4))


@task(1)
@hint("truncate moves the lengths back; fork copies; reorder gathers rows (index_select along the batch axis).")
def test_truncate_reorder_fork(submission):
    """Going back, branching and changing rows leave exactly the tokens that should be there."""
    cache = kv_cache(submission)
    for layer in (0, 1):
        cache.append(layer, numbered(0, 4), numbered(0, 4))
    twin = cache.fork(3)
    cache.truncate(1)
    for layer in (0, 1):
        keys, _ = cache.append(layer, numbered(7, 8), numbered(7, 8))
        same(keys[0, 0, :, 0], torch.tensor([0.0, 7.0]).double(), what="keys after truncate(1)")
        keys, _ = twin.append(layer, numbered(9, 10), numbered(9, 10))
        same(keys[0, 1, :, 3], torch.tensor([0.0, 1.0, 2.0, 9.0]).double(), what="keys of fork(3)")
    cache.reorder(torch.tensor([0, 0]))
    both = torch.cat((numbered(5, 6), numbered(6, 7)))
    keys, _ = cache.append(0, both, both)
    same(keys[:, 0, :, 0], torch.tensor([[0.0, 7.0, 5.0], [0.0, 7.0, 6.0]]).double(), what="keys after reorder([0, 0])")


# --- task 2 -------------------------------------------------------------------------------------------------------


@task(2)
@hint("Do cache=None first. Then the same six tokens must give the same logits in pieces.")
def test_six_tokens_in_pieces(submission):
    """Six tokens in pieces of 3, 2 and 1 through the cache give the logits of one pass without it."""
    model = decoder(submission)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    full = model(ids)
    check(tuple(full.shape) == (1, 6, 16), "Logits must be (B, T, V).", got=tuple(full.shape), want=(1, 6, 16))
    same(model(ids, logits_to_keep=2), full[:, -2:], what="logits with logits_to_keep=2")
    cache = kv_cache(submission)
    pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 3), (3, 5), (5, 6))]
    same(torch.cat(pieces, dim=1), full, what="logits in pieces")


@task(2)
@hint("The last token of the longer prompt must not change when the tokens before it do not: who can see whom?")
def test_causal_order_and_window(submission):
    """A later token changes no earlier logits, and with a window of 2 nothing further back than one token counts."""
    model = decoder(submission)
    a, b = model(torch.tensor([[3, 1, 4, 1]])), model(torch.tensor([[3, 1, 4, 2]]))
    same(a[:, :3], b[:, :3], what="logits before the last token")
    # One layer: with more, the token before has itself seen the one before it.
    model = decoder(submission, sliding_window=2, n_layers=1)
    a, b, c = (model(torch.tensor([ids]))[:, -1] for ids in ([3, 1, 4, 1], [9, 9, 4, 1], [3, 1, 5, 1]))
    same(a, b, what="logits of the last token, which sees itself and the one before")
    check(bool((a - c).abs().max() > 1e-6), "With a window of 2 the last token must still see the one before it.")


@task(2)
@hint("Positions count real tokens: mask.cumsum(1) - 1. Slots, padding included, decide who sees whom.")
def test_two_prompts_left_padded(submission):
    """Two prompts of 5 and 3 tokens in one batch, the shorter padded on the left, give the logits of each alone."""
    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    ids = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 2, 7, 1]])
    for positions in ("learned", "rope"):
        model = decoder(submission, positions=positions)
        got = model(ids, attention_mask=mask)
        same(got[0], model(ids[:1])[0], what=f"logits of the longer row ({positions} positions)")
        same(got[1, 2:], model(ids[1:, 2:])[0], what=f"logits of the padded row ({positions} positions)")


# --- task 3 -------------------------------------------------------------------------------------------------------


@task(3)
@hint("prefill, take the argmax, feed that one token, take the argmax, ...")
def test_cached_equals_uncached(submission):
    """Greedy generation with and without the cache gives the same tokens, and the counts that the brief promises."""
    model = decoder(submission, positions="learned")
    mask = torch.tensor([[True] * 4, [False] + [True] * 3])
    ids = torch.tensor([[3, 1, 4, 1], [0, 2, 7, 1]])
    with_cache = submission.generate(model, ids, max_new_tokens=6, attention_mask=mask)
    without = submission.generate(model, ids, max_new_tokens=6, attention_mask=mask, use_cache=False)
    check(
        tuple(with_cache.tokens.shape) == (2, 10),
        "tokens must be (B, prompt + new).",
        got=tuple(with_cache.tokens.shape),
        want=(2, 10),
    )
    same(with_cache.tokens, without.tokens, what="tokens")
    counts = (with_cache.stats.tokens_forwarded, without.stats.tokens_forwarded)
    check(counts == (9, 4 + 5 + 6 + 7 + 8 + 9), "tokens_forwarded with and without cache.", got=counts, want=(9, 39))


@task(3)
@hint("A row that has ended gets pad_token_id; the loop stops when all rows have ended.")
def test_end_token(submission):
    """The end token stays, padding follows it, and generation stops early when every row has ended."""
    model = decoder(submission)
    ids = torch.tensor([[3, 1, 4]])
    free = submission.generate(model, ids, max_new_tokens=5).tokens
    eos = int(free[0, 4])
    at = 3 + free[0, 3:].tolist().index(eos)
    got = submission.generate(model, ids, max_new_tokens=5, eos_token_id=eos, pad_token_id=15)
    same(got.tokens, free[:, : at + 1], what="tokens up to the end token")


@task(3)
@hint("Feed ids in pieces of chunk_size; each piece's mask covers the slots up to its end.")
def test_prefill_in_chunks(submission):
    """Prefill gives the last token's logits, whole or in chunks of 2."""
    model = decoder(submission)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    want = model(ids)[:, -1]
    for chunk in (None, 2):
        same(submission.prefill(model, ids, kv_cache(submission), chunk_size=chunk), want, what=f"chunk_size={chunk}")


# --- task 4 -------------------------------------------------------------------------------------------------------


@task(4)
@hint("Llama-3-8B has 32 layers, 8 key/value heads, head_dim 128 and numbers of 2 bytes.")
def test_costs_by_hand(submission):
    """Bytes of real models, and the FLOPs of the worked example in the brief."""
    llama = {**SIZES, "d_model": 4096, "n_layers": 32, "n_heads": 32, "head_dim": 128, "d_ff": 14336}
    three, two = (submission.DecoderConfig(**{**llama, "n_kv_heads": heads}) for heads in (8, 32))
    same(submission.kv_bytes_per_token(three, 2), 131_072, what="bytes per token of Llama-3-8B")
    same(submission.kv_bytes_per_token(two, 2), 524_288, what="bytes per token of Llama-2-7B")
    small = {
        "vocab_size": 256,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "d_ff": 128,
    }
    c = submission.DecoderConfig(**small)
    same(submission.decode_flops(c, 129), 246_272, what="decode_flops at context 129")
    same(submission.generation_flops(c, 4, 1, cached=True), 630_784, what="FLOPs of one token behind a prompt of 4")
    same(submission.generation_flops(c, 4, 2, cached=False), 630_784 + 782_848, what="FLOPs of two tokens, no cache")


# --- task 5 -------------------------------------------------------------------------------------------------------


@task(5)
@hint("Slot s lies at index s mod 3. Before a chunk is stored, its early tokens must have seen the old keys.")
def test_ring_of_three(submission):
    """A window of 3 over 9 tokens: the slots by hand, and the logits of the window mask."""
    sizes = {**SIZES, "sliding_window": 3}
    cache = submission.SlidingKVCache(submission.DecoderConfig(**sizes), 1, dtype=torch.float64)
    # After 2, 1, 1 tokens the ring holds slots 3, 1, 2. A chunk of 3 needs slots 2 and 3 besides its own 4, 5, 6
    # (slot 1, which is retained too, may be returned or not). Then single tokens find 5, 6, 7 and 6, 7, 8.
    for start, stop, needed in (
        (0, 2, {0, 1}),
        (2, 3, {0, 1, 2}),
        (3, 4, {1, 2, 3}),
        (4, 7, {2, 3, 4, 5, 6}),
        (7, 8, {5, 6, 7}),
        (8, 9, {6, 7, 8}),
    ):
        keys, _ = cache.append(0, numbered(start, stop), numbered(start, stop))
        cache.append(1, numbered(start, stop), numbered(start, stop))
        slots = cache.key_slots(0)
        same(keys[0, 0, :, 0], slots.double(), what="keys (each holds its slot)")
        check(
            needed <= set(slots.tolist()) <= needed | {start - 3},
            "Slots after this append.",
            got=sorted(slots.tolist()),
            want=sorted(needed),
        )
    check(
        (cache.length, cache.capacity) == (9, 3),
        "length counts slots seen, capacity is the window.",
        got=(cache.length, cache.capacity),
        want=(9, 3),
    )
    with expect_error(ValueError, "sliding"):
        cache.truncate(2)

    model = decoder(submission, sliding_window=3)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    cache = submission.SlidingKVCache(submission.DecoderConfig(**sizes), 1, dtype=torch.float64)
    pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 2), (2, 6), (6, 7), (7, 9))]
    same(torch.cat(pieces, dim=1), model(ids), what="logits through the ring")


# --- task 6 -------------------------------------------------------------------------------------------------------


@task(6)
@hint("Copy the longest stored prefix, but never all of the prompt: the last token's logits are not in a cache.")
def test_three_prompts(submission):
    """The second prompt computes its own end only; the same prompt again still computes its last token."""
    model = decoder(submission)
    store = submission.PrefixStore(model)
    for ids, reused in (([3, 1, 4, 1, 5], 0), ([3, 1, 4, 9, 2], 3), ([3, 1, 4, 1, 5], 4)):
        hit = store.prefill(ids)
        check(
            (hit.reused, hit.computed) == (reused, 5 - reused),
            f"reused and computed for {ids}.",
            got=(hit.reused, hit.computed),
            want=(reused, 5 - reused),
        )
        same(hit.logits, model(torch.tensor([ids]))[:, -1], what=f"logits for {ids}")


# --- task 7 -------------------------------------------------------------------------------------------------------


@task(7)
@hint("Nothing is to be written: the names and shapes of the weights are those of a Llama checkpoint.")
def test_matches_llama(submission):
    """With the weights of a tiny LlamaForCausalLM (transformers) your decoder gives its logits."""
    import transformers

    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
    ).requires_grad_(False)
    for index, parameter in enumerate(llama.parameters()):
        if parameter.ndim > 1:
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    state = {name.removeprefix("model."): w.double() for name, w in llama.state_dict().items()}
    model = decoder(submission)
    model.load_state_dict(state)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    same(model(ids), llama(ids).logits.double(), atol=1e-4, rtol=0.0, what="logits")
