"""Wrong readings of the KV cache, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `_visible`, `_resized` and the rest are
its helpers. The functions without a decorator are shared by the entries below them.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import torch

from llmkata.checks import misconception


def run_decoder(model, ids, attention_mask, cache, logits_to_keep, positions):
    """Decoder.forward with the positions given."""
    x = model.embed_tokens(ids)
    if model.cfg.positions == "learned":
        x = x + model.embed_positions(positions)
    for index, layer in enumerate(model.layers):
        x = layer(x, positions, attention_mask, cache, index)
    return model.lm_head(model.norm(x[:, -logits_to_keep:]))


def visible_from(queries, slots, key_mask, oldest):
    """The mask of `_visible` for queries that believe to sit in these slots; `oldest` is the first slot each may see."""
    visible = slots <= queries
    if oldest is not None:
        visible = visible & (slots >= oldest)
    visible = visible[None, None, None]
    return visible if key_mask is None else visible & key_mask[:, None, None, None, slots]


# --- attention and positions ------------------------------------------------------------------------------------------


@misconception(
    "positions_restart",
    replaces="Decoder.forward",
    caught_by="test_incremental_equals_full",
    feedback="Every decoded token is rotated as if it were the first: add the number of cached tokens.",
)
def forward(self, ids, *, attention_mask=None, cache=None, logits_to_keep=0):
    new = ids.shape[1]
    if attention_mask is None:
        positions = torch.arange(new)
    else:
        positions = (attention_mask[:, -new:].cumsum(dim=1) - 1).clamp(min=0)
    return run_decoder(self, ids, attention_mask, cache, logits_to_keep, positions)


@misconception(
    "rotate_cache_again",
    replaces="KVCache.append",
    caught_by="test_incremental_equals_full",
    feedback="Cached keys are already rotated; you rotated them once more at every step.",
)
def append(self, layer, k, v):
    keys, values = original(self, layer, k, v)
    if self.cfg.positions == "rope":
        inv_freq = rope_frequencies(self.cfg.head_dim, self.cfg.rope_theta)
        keys = apply_rope(keys, torch.arange(keys.shape[2]), inv_freq)
    return keys, values


@misconception(
    "chunk_mask_top_left",
    replaces="_visible",
    caught_by="test_incremental_equals_full",
    feedback="In a chunk after the first, query i must also see the whole past; your mask is aligned to the left edge.",
)
def visible(past, new, slots, key_mask, window):
    if new == 1:
        return original(past, new, slots, key_mask, window)
    queries = torch.arange(new)[:, None]
    return visible_from(queries, slots, key_mask, None if window is None else queries - window + 1)


@misconception(
    "padded_positions",
    replaces="Decoder.forward",
    caught_by="test_left_padding_positions",
    feedback="With left padding the first real token must get position 0 (RoPE hides this, learned positions do not).",
)
def forward(self, ids, *, attention_mask=None, cache=None, logits_to_keep=0):
    past = 0 if cache is None else cache.length
    positions = torch.arange(past, past + ids.shape[1])
    return run_decoder(self, ids, attention_mask, cache, logits_to_keep, positions)


@misconception(
    "window_off_by_one",
    replaces="_visible",
    caught_by="test_forward_matches_reference",
    feedback="A window of W includes the token itself: you keep W+1.",
)
def visible(past, new, slots, key_mask, window):
    if window is None:
        return original(past, new, slots, key_mask, window)
    queries = torch.arange(past, past + new)[:, None]
    return visible_from(queries, slots, key_mask, queries - window)


# --- the cache --------------------------------------------------------------------------------------------------------


@misconception(
    "cat_cache",
    replaces="KVCache.append",
    caught_by="test_bytes_reallocated_per_step",
    matches="bytes_moved",
    feedback="Right tokens, but each step copies the whole cache: bytes moved per step grow with T (slope 1.0). "
    "Preallocate and write in place.",
)
def append(self, layer, k, v):
    used = self._seen[layer]
    self._keys[layer] = torch.cat((self._keys[layer][:, :, :used], k), dim=2)
    self._values[layer] = torch.cat((self._values[layer][:, :, :used], v), dim=2)
    self._seen[layer] = used + k.shape[2]
    return self._keys[layer], self._values[layer]


@misconception(
    "cache_expanded_heads",
    replaces=("KVCache.__init__", "KVCache.append"),
    caught_by="test_cache_state_machine",
    feedback="You cache each KV head n_heads/n_kv_heads times and lose the memory GQA was made for.",
)
class ExpandedHeads:
    def __init__(self, cfg, batch, capacity, *, dtype=torch.float32, device="cpu"):
        self.cfg, self.batch, self.dtype, self.device = cfg, batch, dtype, device
        shape = (batch, cfg.n_heads, capacity, cfg.head_dim)
        self._keys = [torch.empty(shape, dtype=dtype) for _ in range(cfg.n_layers)]
        self._values = [torch.empty(shape, dtype=dtype) for _ in range(cfg.n_layers)]
        self._seen = [0] * cfg.n_layers

    def append(self, layer, k, v):
        self.check_append(k, v)
        group = self.cfg.n_heads // self.cfg.n_kv_heads
        start, end = self._seen[layer], self._seen[layer] + k.shape[2]
        capacity = self._keys[layer].shape[2]
        if end > capacity:
            self._keys[layer] = _resized(self._keys[layer], start, max(2 * capacity, end))
            self._values[layer] = _resized(self._values[layer], start, max(2 * capacity, end))
        self._keys[layer][:, :, start:end] = k.repeat_interleave(group, dim=1)
        self._values[layer][:, :, start:end] = v.repeat_interleave(group, dim=1)
        self._seen[layer] = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]


@misconception(
    "fork_aliases",
    replaces="KVCache.fork",
    caught_by="test_fork_is_isolated",
    feedback="Two continuations of one prefix overwrite each other: a fork must own its storage.",
)
def fork(self, length=None, capacity=None):
    length = self.length if length is None else length
    twin = KVCache(self.cfg, self.batch, 1, dtype=self.dtype, device=self.device)
    twin._keys, twin._values = list(self._keys), list(self._values)
    twin._seen = [length] * self.cfg.n_layers
    return twin


@misconception(
    "ring_overwrites_chunk",
    replaces="SlidingKVCache.append",
    caught_by="test_sliding_cache",
    feedback="The chunk's late tokens evicted keys that its early tokens still needed.",
)
def append(self, layer, k, v):
    for at in range(k.shape[2]):
        keys, values = original(self, layer, k[:, :, at : at + 1], v[:, :, at : at + 1])
    return keys, values


# --- generation -------------------------------------------------------------------------------------------------------


def run_generate(model, ids, options, *, mask_in_decode, feed_last):
    """Greedy generation with a cache, in which the mask may be forgotten or the last token fed."""
    batch, prompt = ids.shape
    new, mask, eos = options["max_new_tokens"], options.get("attention_mask"), options.get("eos_token_id")
    cache = options.get("cache")
    if cache is None:
        cache = KVCache(model.cfg, batch, prompt + new - 1, dtype=model.lm_head.weight.dtype)
    if cache.length == prompt:
        cache.truncate(prompt - 1)
    reused = cache.length
    tokens, forwarded = ids, prompt - reused
    ended = torch.zeros(batch, dtype=torch.bool)
    logits = prefill(model, ids[:, reused:], cache, attention_mask=mask, chunk_size=options.get("prefill_chunk"))
    while True:
        chosen = logits.argmax(dim=-1)
        if eos is not None:
            chosen = torch.where(ended, options.get("pad_token_id", 0), chosen)
            ended = ended | (chosen == eos)
        tokens = torch.cat((tokens, chosen[:, None]), dim=1)
        last = tokens.shape[1] == prompt + new or (eos is not None and bool(ended.all()))
        if last and not feed_last:
            break
        if mask is not None:
            mask = F.pad(mask, (0, 1), value=True)
        logits = model(chosen[:, None], attention_mask=mask if mask_in_decode else None, cache=cache)[:, -1]
        forwarded += 1
        if last:
            break
    done = tokens.shape[1] - prompt
    return Generation(tokens, GenerationStats(prompt, done, forwarded, reused, cache.nbytes // batch))


@misconception(
    "padding_only_in_prefill",
    replaces="generate",
    caught_by="test_greedy_parity",
    feedback="From the second step on you attend to padding: pass the attention mask, one column longer, to every "
    "decode step.",
)
def generate(model, ids, **options):
    if not options.get("use_cache", True) or options["max_new_tokens"] == 0:
        return original(model, ids, **options)
    with torch.no_grad():
        return run_generate(model, ids, options, mask_in_decode=False, feed_last=False)


@misconception(
    "feeds_last_token",
    replaces="generate",
    caught_by="test_greedy_parity",
    feedback="You run the model once more after the last token: tokens_forwarded must be prompt + new - 1.",
)
def generate(model, ids, **options):
    if not options.get("use_cache", True) or options["max_new_tokens"] == 0:
        return original(model, ids, **options)
    with torch.no_grad():
        return run_generate(model, ids, options, mask_in_decode=True, feed_last=True)


@misconception(
    "full_hit_reuses_all",
    replaces="PrefixStore.prefill",
    caught_by="test_prefix_store",
    feedback="A cache holds keys and values, not logits: recompute at least the last token.",
)
def prefill_reusing_all(self, ids, *, extra_capacity=64):
    wanted = tuple(ids)
    best = max(self._entries, key=lambda entry: _shared_prefix(entry, wanted), default=())
    if not wanted or _shared_prefix(best, wanted) < len(wanted):
        hit = original(self, ids, extra_capacity=extra_capacity)
        self.last_logits = hit.logits
        return hit
    cache = self._entries[best].fork(len(wanted), capacity=len(wanted) + extra_capacity)
    return PrefixHit(cache, self.last_logits, len(wanted), 0)


# --- right answers at the wrong price ---------------------------------------------------------------------------------


@misconception(
    "grows_by_one",
    replaces="KVCache.append",
    caught_by="test_growth_is_amortised",
    matches="bytes_moved",
    feedback="Your buffer grows by exactly what is needed, so every append past the capacity copies all tokens before "
    "it: n appends move n²/2 tokens. Double it instead.",
)
def append(self, layer, k, v):
    self.check_append(k, v)
    start, end = self._seen[layer], self._seen[layer] + k.shape[2]
    if end > self._keys[layer].shape[2]:
        self._keys[layer] = _resized(self._keys[layer], start, end)
        self._values[layer] = _resized(self._values[layer], start, end)
    return original(self, layer, k, v)


@misconception(
    "attends_whole_buffer",
    replaces="CachedAttention.forward",
    caught_by="test_flops_per_decoded_token",
    matches="flops",
    feedback="You multiply with the whole buffer, empty slots included, and mask them afterwards: slice it to the "
    "slots that are filled.",
)
def forward(self, x, positions, key_mask, cache, layer):
    if cache is None or type(cache) is not KVCache:
        return original(self, x, positions, key_mask, cache, layer)
    cfg, (batch, new, _) = self.cfg, x.shape
    q = self.q_proj(x).view(batch, new, cfg.n_heads, cfg.head_dim).transpose(1, 2)
    k = self.k_proj(x).view(batch, new, cfg.n_kv_heads, cfg.head_dim).transpose(1, 2)
    v = self.v_proj(x).view(batch, new, cfg.n_kv_heads, cfg.head_dim).transpose(1, 2)
    if cfg.positions == "rope":
        q, k = apply_rope(q, positions, self.inv_freq), apply_rope(k, positions, self.inv_freq)
    cache.append(layer, k, v)
    keys, values, used = cache._keys[layer], cache._values[layer], cache._seen[layer]
    keys[:, :, used:], values[:, :, used:] = 0.0, 0.0
    slots, past = torch.arange(keys.shape[2]), used - new
    if key_mask is not None:
        key_mask = F.pad(key_mask, (0, keys.shape[2] - used))
    queries = torch.arange(past, used)[:, None]
    oldest = None if cfg.sliding_window is None else queries - cfg.sliding_window + 1
    visible = visible_from(queries, slots, key_mask, oldest)[:, 0]
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, enable_gqa=True)
    return self.o_proj(out.transpose(1, 2).reshape(batch, new, -1))


@misconception(
    "recomputes_and_reports",
    replaces="generate",
    caught_by="test_generation_scaling",
    matches="flops",
    feedback="Every step still feeds the whole sequence, whatever the stats say: once the prompt is in the cache, feed "
    "the newest token alone.",
)
def generate(model, ids, **options):
    new = options["max_new_tokens"]
    if new == 0 or options.get("cache") is not None or not options.get("use_cache", True):
        return original(model, ids, **options)
    done = original(model, ids, **{**options, "use_cache": False})
    prompt, new = ids.shape[1], done.stats.new_tokens
    held = kv_bytes_per_token(model.cfg, model.lm_head.weight.element_size()) * (prompt + options["max_new_tokens"] - 1)
    return Generation(done.tokens, GenerationStats(prompt, new, prompt + new - 1, 0, held))


@misconception(
    "projects_every_token",
    replaces="Decoder.forward",
    caught_by="test_prefill_cost",
    matches="flops",
    feedback="You compute the logits of the whole prompt and throw all but the last away: cut the hidden states to the "
    "tokens asked for before lm_head.",
)
def forward(self, ids, *, attention_mask=None, cache=None, logits_to_keep=0):
    return original(self, ids, attention_mask=attention_mask, cache=cache)[:, -logits_to_keep:]


@misconception(
    "window_by_mask_only",
    replaces=("SlidingKVCache.append", "SlidingKVCache.key_slots"),
    caught_by="test_sliding_is_constant",
    matches="flops",
    feedback="You keep and multiply every key ever seen and hide the old ones with the window mask: the ring must hold "
    "the last W only, so that a step costs the same at any length.",
)
class WindowByMaskOnly:
    def append(self, layer, k, v):
        if not hasattr(self, "_all"):
            self._all = KVCache(self.cfg, self.batch, 1, dtype=self.dtype)
        self._seen[layer] += k.shape[2]
        return self._all.append(layer, k, v)

    def key_slots(self, layer):
        return self._all.key_slots(layer)


@misconception(
    "prefix_not_reused",
    replaces="PrefixStore.prefill",
    caught_by="test_prefix_reuse",
    matches="flops",
    feedback="You find the shared prefix and report it, and then run the whole prompt through the model: prefill only "
    "the tokens behind the forked cache.",
)
def prefill_whole(self, ids, *, extra_capacity=64):
    known = dict(self._entries)
    wanted = tuple(ids)
    best = max(known, key=lambda entry: _shared_prefix(entry, wanted), default=())
    reused = min(_shared_prefix(best, wanted), len(wanted) - 1)
    self._entries.clear()
    hit = original(self, ids, extra_capacity=extra_capacity)
    new = self._entries.pop(wanted)
    if reused:
        known[best] = known.pop(best)
    known.pop(wanted, None)
    self._entries.update(known)
    self._entries[wanted] = new
    while len(self._entries) > self.max_entries:
        del self._entries[next(iter(self._entries))]
    return PrefixHit(hit.cache, hit.logits, reused, len(wanted) - reused)
