"""Exercise 6.1: KV-cache implementation.

The inference core of a Llama-family decoder. Decoding with a cache computes, for each new token, one query against the
keys and values of all tokens before it, which were computed once and kept.

Words used everywhere below
    slot      column of a token in its sequence, padding included. Causality and window are about slots.
    position  number of real tokens before a token in its row. Rotary and learned positions are about positions.
    past      number of slots that the cache holds already when a call begins.
Shapes: B rows, T new tokens, n keys, H query heads, K key/value heads, G = H/K, D head_dim, V vocabulary, W window.
Masks are boolean, True = real token / may be attended. Nothing here needs autograd.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------------------
# Given: configuration, layers, rotary positions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder. `n_heads` query heads share `n_kv_heads` key/value heads, n_heads/n_kv_heads to each."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_positions: int = 2048
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = 10000.0
    rms_eps: float = 1e-6
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}")
        if self.positions not in ("rope", "learned"):
            raise ValueError(f"positions must be 'rope' or 'learned', got {self.positions!r}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, got {self.sliding_window}")


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; half precision is normalised in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rope_frequencies(head_dim: int, theta: float) -> Tensor:
    """inv_freq_i = theta^(-2i/head_dim), i = 0 .. head_dim/2 - 1, float64."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def apply_rope(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotate x (B, heads, T, D) to its positions (T,) or (B, T): pair (x_i, x_{i+D/2}) turns by position * inv_freq_i.

    The rotate-half layout of Llama checkpoints. Angles are float64, the result has the dtype of x.
    """
    angles = positions[..., None] * inv_freq.to(positions.device)
    cos, sin = angles.cos().to(x.dtype).unsqueeze(-3), angles.sin().to(x.dtype).unsqueeze(-3)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Task 1: the cache
# ---------------------------------------------------------------------------------------------------------------------


class KVCache:
    """Keys (already rotated) and values of all layers, in buffers allocated ahead of the tokens.

    One key and one value buffer a layer, each (B, K, capacity, D) of `dtype` on `device`. Layers advance independently
    while a forward pass runs; between passes all hold the same number of slots.

    Attributes given: `cfg`, `batch` (current number of rows; `reorder` may change it), `dtype`, `device`.
    Errors: batch or capacity below 1 -> ValueError.
    """

    def __init__(
        self,
        cfg: DecoderConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch and capacity must be at least 1, got {batch} and {capacity}")
        self.cfg, self.batch, self.dtype, self.device = cfg, batch, dtype, device
        self.room = capacity
        self.keys = torch.zeros(cfg.n_layers, batch, cfg.n_kv_heads, capacity, cfg.head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = [0] * cfg.n_layers

    def check_append(self, k: Tensor, v: Tensor) -> None:
        """Given: ValueError naming both shapes unless k and v are (batch, n_kv_heads, t, head_dim) with one t."""
        want = (self.batch, self.cfg.n_kv_heads, k.shape[2] if k.ndim == 4 else -1, self.cfg.head_dim)
        for name, tensor in (("k", k), ("v", v)):
            if tuple(tensor.shape) != want:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, the cache takes {want} (batch, n_kv_heads, t, dim)")

    @property
    def length(self) -> int:
        """Number of slots that layer 0 has seen (in a sliding cache too: seen, not retained)."""
        return self.lengths[0]

    @property
    def capacity(self) -> int:
        """Number of slots that the buffers hold before they must grow."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of all key and value buffers = kv_bytes_per_token * batch * capacity; bookkeeping does not count."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, t, D) behind the layer's slots; return all its keys and values, (B, K, length, D) each.

        Written in place, without autograd. What is returned are views of the buffers, not copies. A full buffer at
        least doubles, so that single-token appends copy O(1) tokens on average.
        Errors: a shape that does not fit -> ValueError naming both shapes.
        """
        self.check_append(k, v)
        old = self.lengths[layer]
        new = old + k.shape[2]
        with torch.no_grad():
            while self.room < new:
                # not enough room: twice as much for all layers
                shape = list(self.keys.shape)
                shape[3] *= 2
                keys, values = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
                held = max(self.lengths)
                keys[:, :, :, :held] = self.keys[:, :, :, :held]
                values[:, :, :, :held] = self.values[:, :, :, :held]
                self.keys, self.values = keys, values
            self.keys[layer, :, :, old:new] = k
            self.values[layer, :, :, old:new] = v
        self.lengths[layer] = new
        return self.keys[layer, :, :, :new], self.values[layer, :, :, :new]

    def key_slots(self, layer: int) -> Tensor:
        """int64 (n,): the slot of every key that the last append to `layer` returned, in the order returned."""
        return torch.arange(0, self.lengths[layer], device=self.device)

    def truncate(self, length: int) -> None:
        """Forget every slot from `length` on, in all layers. Frees nothing, moves nothing.

        Errors: length negative or beyond `self.length` -> ValueError containing "truncate".
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate: {length} is not between 0 and the present length {self.length}")
        for layer in range(len(self.lengths)):
            self.lengths[layer] = length

    def reorder(self, indices: Tensor) -> None:
        """New row b is old row indices[b]; indices (B',) int64. Rows may be dropped, repeated, permuted; B' may differ.

        Beam search calls it when hypotheses are replaced. Keeps the capacity.
        """
        self.keys = self.keys[:, indices]
        self.values = self.values[:, indices]
        self.batch = len(indices)

    def fork(self, length: int | None = None, capacity: int | None = None) -> KVCache:
        """An independent cache with the first `length` slots of this one (default: all). It shares no storage.

        capacity: default that of this cache; smaller than `length` counts as `length`.
        Errors: length negative or beyond `self.length` -> ValueError containing "fork".
        """
        length = self.length if length is None else length
        if not 0 <= length <= self.length:
            raise ValueError(f"fork: {length} is not between 0 and the present length {self.length}")
        if capacity is None:
            capacity = self.capacity
        other = KVCache(self.cfg, self.batch, max(capacity, length, 1), dtype=self.dtype, device=self.device)
        for layer in range(self.cfg.n_layers):
            other.append(layer, self.keys[layer][:, :, :length], self.values[layer][:, :, :length])
        return other


# ---------------------------------------------------------------------------------------------------------------------
# Task 2: attention over the cache, the decoder's forward pass
# ---------------------------------------------------------------------------------------------------------------------


class CachedAttention(nn.Module):
    """Grouped-query attention that writes its new keys into a cache and reads all of them from it."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.q_proj = nn.Linear(cfg.d_model, cfg.n_heads * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.d_model, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.d_model, cfg.n_kv_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.d_model, bias=False)
        # Not a buffer: it must stay float64 whatever dtype the model is moved to.
        self.inv_freq = rope_frequencies(cfg.head_dim, cfg.rope_theta)

    def forward(
        self, x: Tensor, positions: Tensor, key_mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """x (B, T, d_model) -> (B, T, d_model).

        positions: (T,) or (B, T), for RoPE (with learned positions they are in x already).
        key_mask: boolean (B, past + T) over slots, True = real token; None = all real.
        cache: the new keys and values go into `layer` of it; None = a sequence that begins here.
        Query i of this call sits in slot past + i. It sees the key in slot j iff j is real, j <= past + i, and, with
        cfg.sliding_window = W, j > past + i - W. Score = q . k / sqrt(head_dim). Query head h reads key/value head
        h // G. A query that sees nothing (padding) may give anything finite.
        """
        b, t, _ = x.shape
        hd = self.cfg.head_dim
        q = self.q_proj(x).reshape(b, t, self.cfg.n_heads, hd).transpose(1, 2)
        k = self.k_proj(x).reshape(b, t, self.cfg.n_kv_heads, hd).transpose(1, 2)
        v = self.v_proj(x).reshape(b, t, self.cfg.n_kv_heads, hd).transpose(1, 2)
        if self.cfg.positions == "rope":
            q, k = apply_rope(q, positions, self.inv_freq), apply_rope(k, positions, self.inv_freq)
        past = 0
        if cache is not None:
            past = cache.lengths[layer]
            k, v = cache.append(layer, k, v)
        query_slot = torch.arange(past, past + t, device=x.device)
        key_slot = torch.arange(k.shape[2], device=x.device)
        visible = query_slot[:, None] >= key_slot
        if self.cfg.sliding_window is not None:
            visible = visible & (query_slot[:, None] - key_slot < self.cfg.sliding_window)
        visible = visible[None, None]
        if key_mask is not None:
            visible = visible & key_mask[:, None, None, :]
            # a padding query may look at itself, it only has to stay finite
            visible = visible | (query_slot[:, None] == key_slot)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.d_model, cfg.rms_eps)
        self.self_attn = CachedAttention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.d_model, cfg.rms_eps)
        self.mlp = SwiGLU(cfg.d_model, cfg.d_ff)

    def forward(
        self, x: Tensor, positions: Tensor, key_mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, key_mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """A decoder with the parameter names of Llama checkpoints (without the leading "model.").

    embed_tokens, embed_positions (positions="learned" only), layers.i.{input_layernorm, self_attn.{q,k,v,o}_proj,
    post_attention_layernorm, mlp.{gate,up,down}_proj}, norm, lm_head.
    """

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.d_model)
        if cfg.positions == "learned":
            self.embed_positions = nn.Embedding(cfg.max_positions, cfg.d_model)
        self.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, cfg.rms_eps)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)

    def forward(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """ids (B, T), the tokens behind those in the cache -> logits (B, T, V), or (B, n, V) of the last n tokens.

        attention_mask: boolean (B, past + T), True = real token. It covers the cached slots too: a caller whose cache
        holds padding must pass it on every call. None = everything is real, cached slots included.
        logits_to_keep: 0 = all; n > 0 = only the last n, and the others must not be projected on the vocabulary.
        A real token's position is the number of real tokens before it in its row, cached ones included.
        Errors: mask not boolean -> TypeError; of another shape -> ValueError naming both shapes.
        """
        past = 0 if cache is None else cache.length
        if attention_mask is not None:
            check_mask(attention_mask, (ids.shape[0], past + ids.shape[1]))
        if attention_mask is not None:
            positions = attention_mask.cumsum(dim=-1) - 1
            positions = positions[:, past:].clamp(min=0)
        else:
            positions = past + torch.arange(ids.shape[1], device=ids.device)
        x = self.embed_tokens(ids)
        if self.cfg.positions == "learned":
            x = x + self.embed_positions(positions)
        for number, block in enumerate(self.layers):
            x = block(x, positions, attention_mask, cache, number)
        x = x[:, -logits_to_keep:] if logits_to_keep else x
        return self.lm_head(self.norm(x))


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Given: TypeError unless the mask is boolean, ValueError naming both shapes unless it has that shape."""
    if mask.dtype != torch.bool:
        raise TypeError(f"attention_mask must be boolean (True = real token), got {mask.dtype}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"attention_mask is {tuple(mask.shape)}, must be (batch, past + new) = {shape}")


# ---------------------------------------------------------------------------------------------------------------------
# Task 3: prefill and generation
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def prefill(
    model: Decoder,
    ids: Tensor,
    cache: KVCache,
    *,
    attention_mask: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Feed ids (B, T), the tokens behind those in the cache; return the logits of the last one, (B, V).

    attention_mask: boolean (B, past + T) as in Decoder.forward. chunk_size: feed at most that many tokens at a time;
    None = all at once. At most one token a chunk is projected on the vocabulary.
    Errors: T = 0 -> ValueError containing "prompt"; chunk_size < 1 -> ValueError containing "chunk_size".
    """
    if ids.shape[1] == 0:
        raise ValueError("empty prompt: there is no token to compute logits from")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    step = ids.shape[1] if chunk_size is None else chunk_size
    for i in range(0, ids.shape[1], step):
        chunk = ids[:, i : i + step]
        mask = attention_mask
        if mask is not None:
            mask = mask[:, : cache.length + chunk.shape[1]]
        logits = model(chunk, attention_mask=mask, cache=cache, logits_to_keep=1)
    return logits.squeeze(1)


@dataclass(frozen=True)
class GenerationStats:
    """What a generation cost, per row.

    prompt_tokens: columns of the prompt, padding included. new_tokens: columns generated. tokens_forwarded: columns
    fed to the model, summed over all its calls. reused_tokens: columns of the prompt that were in the given cache.
    cache_bytes: nbytes / batch of the cache at the end, 0 without one.
    """

    prompt_tokens: int
    new_tokens: int
    tokens_forwarded: int
    reused_tokens: int
    cache_bytes: int


@dataclass(frozen=True)
class Generation:
    """tokens (B, prompt + new) int64, the prompt first."""

    tokens: Tensor
    stats: GenerationStats


@torch.no_grad()
def generate(
    model: Decoder,
    ids: Tensor,
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
    use_cache: bool = True,
    cache: KVCache | None = None,
    prefill_chunk: int | None = None,
) -> Generation:
    """Greedy continuation of ids (B, P), left-padded where attention_mask (B, P) is False.

    Each step takes the token of largest logit (the first of equals). Behind its eos_token_id a row is filled with
    pad_token_id; generation stops when all rows have ended, or at max_new_tokens (0: the prompt comes back, nothing is
    run). The last generated token is never fed, so with a cache tokens_forwarded = P + new - 1 - reused.
    use_cache: False recomputes the whole sequence at every step, and gives the same tokens.
    cache: None makes a KVCache of capacity P + max_new_tokens - 1, in the dtype of the model's parameters. A cache of
    length c > 0 already holds the first c slots of ids, and only the rest is fed. It is extended in place. A cache that
    holds the whole prompt is cut back by one token (given below): it holds no logits, so one token must be computed.
    prefill_chunk: chunk_size of the prefill.
    Errors: P = 0 -> ValueError "prompt"; max_new_tokens < 0 -> ValueError "max_new_tokens"; cache together with
    use_cache=False -> ValueError "use_cache"; cache longer than the prompt -> ValueError "cache"; last column of the
    mask not all real -> ValueError "left"; mask as in Decoder.forward.
    """
    batch, prompt = ids.shape
    if prompt == 0:
        raise ValueError("empty prompt: there is no token to continue from")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
    if cache is not None and not use_cache:
        raise ValueError("use_cache=False contradicts the given cache")
    if cache is not None and cache.length > prompt:
        raise ValueError(f"the cache holds {cache.length} slots, the prompt has {prompt}")
    if attention_mask is not None:
        check_mask(attention_mask, (batch, prompt))
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("prompts must be padded on the left: the last column must be real in every row")
    if max_new_tokens == 0:
        held = 0 if cache is None else cache.nbytes // batch
        return Generation(ids, GenerationStats(prompt, 0, 0, 0 if cache is None else cache.length, held))
    if cache is not None and cache.length == prompt:
        cache.truncate(prompt - 1)

    if cache is None and use_cache:
        dtype = next(model.parameters()).dtype
        cache = KVCache(model.cfg, batch, prompt + max_new_tokens - 1, dtype=dtype, device=ids.device)
    reused = 0 if cache is None else cache.length
    mask = attention_mask
    tokens = ids
    forwarded = 0
    finished = torch.zeros(batch, dtype=torch.bool)
    while tokens.shape[1] < prompt + max_new_tokens and not finished.all():
        if cache is None:
            logits = model(tokens, attention_mask=mask, logits_to_keep=1)[:, -1]
            forwarded += tokens.shape[1]
        elif tokens.shape[1] == prompt:
            logits = prefill(model, ids[:, reused:], cache, attention_mask=mask, chunk_size=prefill_chunk)
            forwarded += prompt - reused
        else:
            logits = model(tokens[:, -1:], attention_mask=mask, cache=cache)[:, -1]
            forwarded += 1
        best = logits.argmax(dim=-1)
        if eos_token_id is not None:
            best[finished] = pad_token_id
            finished |= best == eos_token_id
        tokens = torch.cat((tokens, best[:, None]), dim=1)
        if mask is not None:
            mask = F.pad(mask, (0, 1), value=True)
    stats = GenerationStats(
        prompt_tokens=prompt,
        new_tokens=tokens.shape[1] - prompt,
        tokens_forwarded=forwarded,
        reused_tokens=reused,
        cache_bytes=0 if cache is None else cache.nbytes // batch,
    )
    return Generation(tokens, stats)


# ---------------------------------------------------------------------------------------------------------------------
# Task 4: the cost model
# ---------------------------------------------------------------------------------------------------------------------


def kv_bytes_per_token(cfg: DecoderConfig, itemsize: int) -> int:
    """Bytes of cache that one token of one row occupies in all layers, `itemsize` bytes a number."""
    return 2 * cfg.n_kv_heads * cfg.head_dim * cfg.n_layers * itemsize


def decode_flops(cfg: DecoderConfig, context: int) -> int:
    """Matmul FLOPs (2mnk) of one new token of one row that sees `context` keys, itself included (window permitting)."""
    d, h, kv, hd = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    if cfg.sliding_window is not None:
        context = min(context, cfg.sliding_window)
    per_layer = 2 * d * h * hd * 2  # q, o
    per_layer += 2 * d * kv * hd * 2  # k, v
    per_layer += 3 * 2 * d * cfg.d_ff
    per_layer += 2 * 2 * h * hd * context  # scores and weighted sum
    return cfg.n_layers * per_layer + 2 * d * cfg.vocab_size


def generation_flops(cfg: DecoderConfig, prompt: int, new: int, *, cached: bool) -> int:
    """Matmul FLOPs of generating `new` tokens from `prompt` tokens, one row; 0 if new = 0.

    A pass over n tokens from scratch: 2 N n + 4 L H D n^2 + 2 d_model V (scores as full squares, window or not; one
    token projected on the vocabulary), N = weights of the layers' matrices. cached: one pass over the prompt, then
    decode steps at contexts prompt+1 .. prompt+new-1. Otherwise: passes over prompt, prompt+1, .., prompt+new-1.
    """
    if new == 0:
        return 0
    d, h, kv, hd = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    N = cfg.n_layers * (2 * d * h * hd + 2 * d * kv * hd + 3 * d * cfg.d_ff)

    def full_pass(n):
        return 2 * N * n + 4 * cfg.n_layers * h * hd * n**2 + 2 * d * cfg.vocab_size

    if cached:
        total = full_pass(prompt)
        for n in range(prompt + 1, prompt + new):
            total += decode_flops(cfg, n)
        return total
    return sum(full_pass(n) for n in range(prompt, prompt + new))


# ---------------------------------------------------------------------------------------------------------------------
# Task 5 (stretch): a ring buffer for sliding-window attention
# ---------------------------------------------------------------------------------------------------------------------


class SlidingKVCache(KVCache):
    """The last W = cfg.sliding_window keys a layer, in a ring: slot s lies at index s mod W. Storage never grows.

    `capacity` is W. `length` counts the slots seen. The cache has *wrapped* once length > W: then slots are lost.
    reorder and fork work as in KVCache; fork keeps the capacity W, and once wrapped only the whole ring can be forked.
    Errors: cfg.sliding_window None -> ValueError containing "sliding_window".
    """

    def __init__(
        self, cfg: DecoderConfig, batch: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        if cfg.sliding_window is None:
            raise ValueError("a sliding cache needs cfg.sliding_window")
        super().__init__(cfg, batch, cfg.sliding_window, dtype=dtype, device=device)
        raise NotImplementedError("task 5: remember which slots the last append returned")

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return every key and value that one of the t new queries may see, in any order (key_slots tells which).

        t = 1: the key goes into the ring first, for the one it replaces has just left the window; what the ring holds
        is returned as views. t > 1: the retained keys and then all new ones are returned, so that the first query of
        the chunk still finds its whole window; after that the last W of them are kept.
        """
        self.check_append(k, v)
        raise NotImplementedError("task 5: write into the ring; never before the chunk's early queries have read it")

    def key_slots(self, layer: int) -> Tensor:
        raise NotImplementedError("task 5: slots of the returned keys")

    def truncate(self, length: int) -> None:
        """As in KVCache; once the ring has wrapped -> ValueError containing "sliding"."""
        raise NotImplementedError("task 5: refuse what the ring cannot undo")

    def fork(self, length: int | None = None, capacity: int | None = None) -> SlidingKVCache:
        """As in KVCache, `capacity` is ignored; a shorter `length` once wrapped -> ValueError containing "sliding"."""
        raise NotImplementedError("task 5: copy the ring")


# ---------------------------------------------------------------------------------------------------------------------
# Task 6 (stretch): a prefix store
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrefixHit:
    """A prefilled cache (B = 1) that belongs to the caller, the last token's logits (1, V), and what it took.

    reused + computed = number of tokens asked for.
    """

    cache: KVCache
    logits: Tensor
    reused: int
    computed: int


class PrefixStore:
    """Caches of prompts seen before, so that a prompt that begins like one of them computes only its own end.

    Always full `KVCache`s, in the dtype of the model's parameters, for windowed models too.
    Errors: max_entries < 1 -> ValueError containing "max_entries".
    """

    def __init__(self, model: Decoder, *, max_entries: int = 8) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries}")
        self.model, self.max_entries = model, max_entries
        raise NotImplementedError("task 6: an empty store")

    @torch.no_grad()
    def prefill(self, ids: Sequence[int], *, extra_capacity: int = 64) -> PrefixHit:
        """Prefill one prompt, copying the longest prefix that it shares with a stored one.

        At least the last token is computed: a cache holds keys and values, not logits. The prompt is stored (the same
        prompt once), as the most recently used entry; using an entry's prefix makes it recently used as well (the one
        just stored is the newer). Beyond max_entries the least recently used is dropped. The returned cache has room
        for extra_capacity more tokens and shares no storage with the store.
        Errors: no ids -> ValueError containing "prompt".
        """
        wanted = tuple(int(token) for token in ids)
        if not wanted:
            raise ValueError("empty prompt: there is no token to compute logits from")
        raise NotImplementedError("task 6: copy the shared prefix, compute the rest, store, evict")


# ---------------------------------------------------------------------------------------------------------------------
# Task 7 (stretch): real models. Given; nothing to write, but what you wrote must be able to drive them.
# ---------------------------------------------------------------------------------------------------------------------


class HFCacheLayer:
    """One layer of a `KVCache`, with the methods that transformers expects of a layer of its `Cache`.

    transformers calls reorder_cache and crop once a layer, our cache treats all layers at once: layer 0 does it.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    is_initialized = True

    def __init__(self, cache: KVCache, layer: int) -> None:
        self.cache, self.layer = cache, layer
        self.seen = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.append(self.layer, key_states, value_states)
        self.seen = keys.shape[2]
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(number of keys that the next update returns, slot of the first)."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        """-1: grows without end."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.layer == 0:
            self.cache.reorder(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """-n forgets the last n tokens, as transformers counts."""
        self.seen += tokens_to_remove
        if self.layer == 0 and tokens_to_remove:
            self.cache.truncate(self.seen)


def transformers_cache(cache: KVCache) -> Any:
    """An empty `KVCache` as `past_key_values` of a transformers model with full attention: Llama, Mistral, GPT-2, ...

    batch of the cache: rows times beams. Usage: model.generate(ids, past_key_values=transformers_cache(cache)).
    """
    from transformers.cache_utils import Cache, CacheLayerMixin

    CacheLayerMixin.register(HFCacheLayer)
    return Cache(layers=[HFCacheLayer(cache, layer) for layer in range(cache.cfg.n_layers)])


def load_llama_directory(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Decoder:
    """A `Decoder` from a Llama or Mistral checkpoint directory: config.json and safetensors, single or sharded.

    Tied embeddings and the rope types "default", "linear", "llama3" and "yarn" are read.
    Errors: another architecture, biases, or another rope type -> ValueError naming it.
    """
    path = Path(path)
    raw = json.loads((path / "config.json").read_text())
    if raw.get("model_type") not in ("llama", "mistral"):
        raise ValueError(f"cannot load the architecture {raw.get('model_type')!r}, only 'llama' and 'mistral'")
    if raw.get("attention_bias") or raw.get("mlp_bias") or raw.get("hidden_act", "silu") != "silu":
        raise ValueError("cannot load a model with biases or with another activation than silu")
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta"), **(raw.get("rope_scaling") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "linear", "llama3", "yarn"):
        raise ValueError(f"cannot load the rope type {rope_type!r}")

    heads = raw["num_attention_heads"]
    cfg = DecoderConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        n_layers=raw["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        d_ff=raw["intermediate_size"],
        max_positions=raw.get("max_position_embeddings", 2048),
        rope_theta=float(rope.get("rope_theta") or 10000.0),
        rms_eps=raw.get("rms_norm_eps", 1e-6),
        sliding_window=raw.get("sliding_window") if raw["model_type"] == "mistral" else None,
    )
    weights = _read_safetensors(path)
    if "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    with torch.device("meta"):
        model = Decoder(cfg)
    # assign=True takes the tensors themselves; strict loading names whatever is missing or left over.
    model.load_state_dict({name: w.to(device=device, dtype=dtype) for name, w in weights.items()}, assign=True)

    inv_freq, scaling = rope_frequencies(cfg.head_dim, cfg.rope_theta), 1.0
    if rope_type != "default":
        from transformers import AutoConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rotary = LlamaRotaryEmbedding(AutoConfig.from_pretrained(path))
        inv_freq, scaling = rotary.inv_freq.double(), float(rotary.attention_scaling)
    for layer in model.layers:
        layer.self_attn.inv_freq = inv_freq
        if scaling != 1.0:
            # Rotated queries and keys are scaled; a rotation is linear, so the projections can carry the factor.
            layer.self_attn.q_proj.weight.data *= scaling
            layer.self_attn.k_proj.weight.data *= scaling
    return model.requires_grad_(False)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory, names without the leading "model."."""
    from safetensors.torch import load_file

    index = path / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors.update(load_file(path / name))
    return {name.removeprefix("model."): t for name, t in tensors.items() if "rotary_emb" not in name}
