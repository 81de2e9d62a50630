"""6.1 KV-cache. L. Brandt.

Every layer has its own buffer object; attention runs over blocks of queries, one key/value head at a time.
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


BLOCK = 128


class LayerBuffer:
    """Keys and values of one layer: (B, K, room, D) each, the first `used` of them filled."""

    def __init__(self, batch: int, heads: int, room: int, dim: int, dtype: torch.dtype, device: Any) -> None:
        self.k = torch.empty(batch, heads, room, dim, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)
        self.used = 0
        self.returned = torch.empty(0, dtype=torch.int64, device=device)

    def room(self) -> int:
        return self.k.shape[-2]

    def enlarge(self, room: int) -> None:
        for name in ("k", "v"):
            old = getattr(self, name)
            new = torch.empty(old.shape[0], old.shape[1], room, old.shape[3], dtype=old.dtype, device=old.device)
            new[..., : self.used, :] = old[..., : self.used, :]
            setattr(self, name, new)

    def copy(self, used: int, room: int) -> LayerBuffer:
        batch, heads, _, dim = self.k.shape
        other = LayerBuffer(batch, heads, room, dim, self.k.dtype, self.k.device)
        there = min(used, room)
        other.k[..., :there, :] = self.k[..., :there, :]
        other.v[..., :there, :] = self.v[..., :there, :]
        other.used, other.returned = used, self.returned
        return other


def attend_group(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """q (B, G, t, D) over k, v (B, n, D) of the key/value head they share; allowed (B or 1, t, n) -> (B, G, t, D)."""
    batch, group, t, dim = q.shape
    scores = torch.bmm(q.reshape(batch, group * t, dim), k.transpose(1, 2)).div_(dim**0.5)
    if allowed is not None:
        scores = scores.view(batch, group, t, -1).masked_fill_(allowed.logical_not()[:, None], -torch.inf)
        scores = scores.view(batch, group * t, -1)
    top = scores.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(top).exp_()
    mixed = torch.bmm(weights, v) / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    return mixed.view(batch, group, t, dim)


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
        self.buffers = [
            LayerBuffer(batch, cfg.n_kv_heads, capacity, cfg.head_dim, dtype, device) for _ in range(cfg.n_layers)
        ]

    def check_append(self, k: Tensor, v: Tensor) -> None:
        """Given: ValueError naming both shapes unless k and v are (batch, n_kv_heads, t, head_dim) with one t."""
        want = (self.batch, self.cfg.n_kv_heads, k.shape[2] if k.ndim == 4 else -1, self.cfg.head_dim)
        for name, tensor in (("k", k), ("v", v)):
            if tuple(tensor.shape) != want:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, the cache takes {want} (batch, n_kv_heads, t, dim)")

    @property
    def length(self) -> int:
        """Number of slots that layer 0 has seen (in a sliding cache too: seen, not retained)."""
        return self.buffers[0].used

    @property
    def capacity(self) -> int:
        """Number of slots that the buffers hold before they must grow."""
        return self.buffers[0].room()

    @property
    def nbytes(self) -> int:
        """Bytes of all key and value buffers = kv_bytes_per_token * batch * capacity; bookkeeping does not count."""
        return sum(buf.k.nbytes + buf.v.nbytes for buf in self.buffers)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, t, D) behind the layer's slots; return all its keys and values, (B, K, length, D) each.

        Written in place, without autograd. What is returned are views of the buffers, not copies. A full buffer at
        least doubles, so that single-token appends copy O(1) tokens on average.
        Errors: a shape that does not fit -> ValueError naming both shapes.
        """
        self.check_append(k, v)
        buf = self.buffers[layer]
        new = slice(buf.used, buf.used + k.shape[-2])
        if new.stop > buf.room():
            buf.enlarge(new.stop + buf.room())
        buf.k.data[..., new, :] = k.data
        buf.v.data[..., new, :] = v.data
        buf.used = new.stop
        return buf.k[..., : new.stop, :], buf.v[..., : new.stop, :]

    def key_slots(self, layer: int) -> Tensor:
        """int64 (n,): the slot of every key that the last append to `layer` returned, in the order returned."""
        return torch.arange(0, self.buffers[layer].used, dtype=torch.int64, device=self.device)

    def truncate(self, length: int) -> None:
        """Forget every slot from `length` on, in all layers. Frees nothing, moves nothing.

        Errors: length negative or beyond `self.length` -> ValueError containing "truncate".
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate: {length} is not between 0 and the present length {self.length}")
        for buf in self.buffers:
            buf.used = length

    def reorder(self, indices: Tensor) -> None:
        """New row b is old row indices[b]; indices (B',) int64. Rows may be dropped, repeated, permuted; B' may differ.

        Beam search calls it when hypotheses are replaced. Keeps the capacity.
        """
        for buf in self.buffers:
            buf.k, buf.v = buf.k[indices], buf.v[indices]
        self.batch = int(indices.shape[0])

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
        capacity = max(capacity, length)
        other = KVCache(self.cfg, self.batch, max(capacity, 1), dtype=self.dtype, device=self.device)
        other.buffers = [buf.copy(length, max(capacity, 1)) for buf in self.buffers]
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
        rows, t = x.shape[0], x.shape[1]
        dim, kv_heads = self.cfg.head_dim, self.cfg.n_kv_heads
        q = torch.stack(self.q_proj(x).split(dim, dim=-1), dim=1)  # (B, H, T, D)
        k = torch.stack(self.k_proj(x).split(dim, dim=-1), dim=1)
        v = torch.stack(self.v_proj(x).split(dim, dim=-1), dim=1)
        if self.cfg.positions == "rope":
            q, k = (apply_rope(tensor, positions, self.inv_freq) for tensor in (q, k))
        ordered = type(cache) is not SlidingKVCache
        if cache is None:
            begin, where = 0, torch.arange(t, device=x.device)
        else:
            k, v = cache.append(layer, k, v)
            begin, where = cache.buffers[layer].used - t, cache.key_slots(layer)

        heads = [[] for _ in range(kv_heads)]
        for start in range(0, t, BLOCK):
            stop = min(start + BLOCK, t)
            reach = begin + stop if ordered else k.shape[2]
            slots = where[:reach]
            asking = torch.arange(begin + start, begin + stop, device=x.device)
            allowed = None
            if stop - start > 1 or key_mask is not None or self.cfg.sliding_window is not None:
                allowed = asking[None, :, None] >= slots[None, None, :]
                if self.cfg.sliding_window is not None:
                    allowed = allowed & (asking[None, :, None] - self.cfg.sliding_window < slots[None, None, :])
                if key_mask is not None:
                    allowed = allowed & key_mask[:, slots][:, None, :]
            for head in range(kv_heads):
                mine = q.chunk(kv_heads, dim=1)[head][:, :, start:stop]
                heads[head].append(attend_group(mine, k[:, head, :reach], v[:, head, :reach], allowed))
        mixed = torch.cat([torch.cat(parts, dim=2) for parts in heads], dim=1) if t else q
        return self.o_proj(mixed.permute(0, 2, 1, 3).reshape(rows, t, -1))


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
        rows, t = ids.shape
        if attention_mask is None:
            positions = torch.arange(past + t, device=ids.device)[past:].expand(rows, t)
        else:
            positions = attention_mask.cumsum(dim=1, dtype=torch.int64)[:, past:].sub(1).clamp_(min=0)
        stream = self.embed_tokens(ids)
        if self.cfg.positions == "learned":
            stream = stream + F.embedding(positions, self.embed_positions.weight)
        for depth, block in enumerate(self.layers):
            stream = block(stream, positions, attention_mask, cache, depth)
        if logits_to_keep:
            stream = stream[:, max(0, t - logits_to_keep) :]
        return self.lm_head(self.norm(stream))


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
    total, at = ids.shape[1], cache.length
    end = min(total, chunk_size or total)
    head = ids[:, :end]
    mask = None if attention_mask is None else attention_mask[:, : at + end]
    logits = model(head, attention_mask=mask, cache=cache, logits_to_keep=1)
    if end < total:
        return prefill(model, ids[:, end:], cache, attention_mask=attention_mask, chunk_size=chunk_size)
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

    weights = model.embed_tokens.weight
    if use_cache and cache is None:
        cache = KVCache(model.cfg, batch, prompt + max_new_tokens - 1, dtype=weights.dtype, device=weights.device)
    reused = cache.length if cache is not None else 0
    columns = list(ids.unbind(dim=1))
    real = None if attention_mask is None else list(attention_mask.unbind(dim=1))
    running = [True] * batch
    forwarded = 0
    while True:
        skip = cache.length if cache is not None else 0
        feed = torch.stack(columns[skip:], dim=1)
        mask = None if real is None else torch.stack(real, dim=1)
        if cache is None:
            logits = model(feed, attention_mask=mask, logits_to_keep=1).squeeze(1)
        else:
            logits = prefill(model, feed, cache, attention_mask=mask, chunk_size=prefill_chunk)
        forwarded += feed.shape[1]
        column = logits.argmax(dim=1)
        if eos_token_id is not None:
            values = [token if on else pad_token_id for token, on in zip(column.tolist(), running)]
            running = [on and token != eos_token_id for token, on in zip(values, running)]
            column = torch.tensor(values, device=ids.device)
        columns.append(column)
        if real is not None:
            real.append(torch.ones_like(real[0]))
        if len(columns) == prompt + max_new_tokens or not any(running):
            break
    cache_bytes = cache.nbytes // batch if cache is not None else 0
    stats = GenerationStats(prompt, len(columns) - prompt, forwarded, reused, cache_bytes)
    return Generation(torch.stack(columns, dim=1), stats)


# ---------------------------------------------------------------------------------------------------------------------
# Task 4: the cost model
# ---------------------------------------------------------------------------------------------------------------------


def kv_bytes_per_token(cfg: DecoderConfig, itemsize: int) -> int:
    """Bytes of cache that one token of one row occupies in all layers, `itemsize` bytes a number."""
    return sum(2 * cfg.n_kv_heads * cfg.head_dim for _ in range(cfg.n_layers)) * itemsize


def decode_flops(cfg: DecoderConfig, context: int) -> int:
    """Matmul FLOPs (2mnk) of one new token of one row that sees `context` keys, itself included (window permitting)."""
    window = cfg.sliding_window or context
    matrices = [
        (cfg.n_heads * cfg.head_dim, cfg.d_model),
        (cfg.n_kv_heads * cfg.head_dim, cfg.d_model),
        (cfg.n_kv_heads * cfg.head_dim, cfg.d_model),
        (cfg.d_model, cfg.n_heads * cfg.head_dim),
        (cfg.d_ff, cfg.d_model),
        (cfg.d_ff, cfg.d_model),
        (cfg.d_model, cfg.d_ff),
    ]
    layer = sum(2 * m * k for m, k in matrices) + 2 * (2 * min(context, window) * cfg.head_dim) * cfg.n_heads
    return layer * cfg.n_layers + 2 * cfg.vocab_size * cfg.d_model


def generation_flops(cfg: DecoderConfig, prompt: int, new: int, *, cached: bool) -> int:
    """Matmul FLOPs of generating `new` tokens from `prompt` tokens, one row; 0 if new = 0.

    A pass over n tokens from scratch: 2 N n + 4 L H D n^2 + 2 d_model V (scores as full squares, window or not; one
    token projected on the vocabulary), N = weights of the layers' matrices. cached: one pass over the prompt, then
    decode steps at contexts prompt+1 .. prompt+new-1. Otherwise: passes over prompt, prompt+1, .., prompt+new-1.
    """

    def from_scratch(n: int) -> int:
        plain = DecoderConfig(**{**vars(cfg), "sliding_window": None})
        linear = decode_flops(plain, 0) - 2 * cfg.d_model * cfg.vocab_size
        return n * linear + 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * n * n + 2 * cfg.d_model * cfg.vocab_size

    lengths = range(prompt, prompt + new)
    if cached:
        return sum(decode_flops(cfg, n) if n > prompt else from_scratch(n) for n in lengths)
    return sum(map(from_scratch, lengths))


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
        self.window = cfg.sliding_window

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return every key and value that one of the t new queries may see, in any order (key_slots tells which).

        t = 1: the key goes into the ring first, for the one it replaces has just left the window; what the ring holds
        is returned as views. t > 1: the retained keys and then all new ones are returned, so that the first query of
        the chunk still finds its whole window; after that the last W of them are kept.
        """
        self.check_append(k, v)
        buf, new = self.buffers[layer], k.shape[2]
        total = buf.used + new
        everywhere = torch.arange(total, device=self.device)
        if new == 1:
            buf.k.data[:, :, buf.used % self.window] = k.data[:, :, 0]
            buf.v.data[:, :, buf.used % self.window] = v.data[:, :, 0]
            keys, values = buf.k, buf.v
            if total <= self.window:
                buf.returned = everywhere
                keys, values = keys[:, :, :total], values[:, :, :total]
            else:
                held = everywhere[total - self.window :]
                buf.returned = held[(torch.arange(self.window, device=self.device) - total) % self.window]
        else:
            # The first new query looks back over W - 1 older slots, no further.
            buf.returned = everywhere[max(0, buf.used - self.window + 1) :]
            order = buf.returned[: len(buf.returned) - new] % self.window
            keys = torch.cat((buf.k[:, :, order], k.data.to(self.dtype)), dim=2)
            values = torch.cat((buf.v[:, :, order], v.data.to(self.dtype)), dim=2)
            kept = everywhere[-min(new, self.window) :]
            buf.k.data[:, :, kept % self.window] = keys[:, :, -len(kept) :]
            buf.v.data[:, :, kept % self.window] = values[:, :, -len(kept) :]
        buf.used = total
        return keys, values

    def key_slots(self, layer: int) -> Tensor:
        return self.buffers[layer].returned

    def truncate(self, length: int) -> None:
        """As in KVCache; once the ring has wrapped -> ValueError containing "sliding"."""
        if self.length > self.window:
            raise ValueError(
                f"sliding cache: only the last {self.window} of {self.length} slots are left, cannot go back"
            )
        super().truncate(length)

    def fork(self, length: int | None = None, capacity: int | None = None) -> SlidingKVCache:
        """As in KVCache, `capacity` is ignored; a shorter `length` once wrapped -> ValueError containing "sliding"."""
        if length is not None and not 0 <= length <= self.length:
            raise ValueError(f"cannot fork {length} of {self.length} slots")
        if length is not None and length != self.length and self.length > self.window:
            raise ValueError("sliding cache: after wrapping a fork takes the whole ring")
        other = SlidingKVCache(self.cfg, self.batch, dtype=self.dtype, device=self.device)
        other.buffers = [buf.copy(self.length if length is None else length, self.window) for buf in self.buffers]
        return other


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
        self.caches: dict[tuple[int, ...], KVCache] = {}
        self.used_at: dict[tuple[int, ...], int] = {}
        self.clock = 0

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

        def touch(prompt: tuple[int, ...]) -> None:
            self.clock += 1
            self.used_at[prompt] = self.clock

        weight = self.model.embed_tokens.weight
        cache, reused = None, 0
        for common in range(len(wanted) - 1, 0, -1):
            holders = [prompt for prompt in self.caches if prompt[:common] == wanted[:common]]
            if holders:
                source = max(holders, key=self.used_at.__getitem__)
                touch(source)
                cache, reused = self.caches[source].fork(common, len(wanted) + extra_capacity), common
                break
        if cache is None:
            cache = KVCache(self.model.cfg, 1, len(wanted) + extra_capacity, dtype=weight.dtype, device=weight.device)
        row = torch.tensor(wanted[reused:], dtype=torch.int64, device=weight.device).unsqueeze(0)
        logits = self.model(row, cache=cache, logits_to_keep=1)[:, 0]
        self.caches[wanted] = cache.fork(len(wanted), len(wanted))
        touch(wanted)
        if len(self.caches) > self.max_entries:
            oldest = min(self.used_at, key=self.used_at.__getitem__)
            del self.caches[oldest], self.used_at[oldest]
        return PrefixHit(cache, logits, reused, len(wanted) - reused)


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
