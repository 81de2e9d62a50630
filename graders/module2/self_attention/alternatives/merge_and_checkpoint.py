"""A correct solution in a functional style: every block of keys gives a partial result, results are merged.

Nothing is differentiated by hand: each block of queries is a checkpoint, so autograd recomputes it in the backward
pass. Logarithms of sums use the double-where trick (no NaN in value or gradient).
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.checkpoint import checkpoint


def _validate(q, k, v, *masks):
    if q.size(-1) != k.size(-1):
        raise ValueError(f"head dimensions differ: {q.shape} and {k.shape}")
    if k.size(-2) != v.size(-2):
        raise ValueError(f"numbers of keys differ: {k.shape} and {v.shape}")
    for name, mask in masks:
        if mask is not None and mask.dtype is not torch.bool:
            raise TypeError(f"{name} must be boolean")


def _wide(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _masked_lse(scores, visible):
    """Log-sum-exp over visible keys, -inf (with a zero gradient) where none is visible."""
    peak = torch.where(visible, scores, -torch.inf).amax(-1, keepdim=True).detach()
    peak = torch.where(torch.isinf(peak), 0.0, peak)
    mass = torch.where(visible, torch.exp(torch.where(visible, scores - peak, 0.0)), 0.0).sum(-1, keepdim=True)
    some = mass > 0
    return torch.where(some, torch.log(torch.where(some, mass, 1.0)) + peak, -torch.inf)


def _share(log_part, log_whole):
    """exp(log_part - log_whole), 0 where the part is empty."""
    some = log_part > -torch.inf
    return torch.where(some, torch.exp(torch.where(some, log_part - log_whole, 0.0)), 0.0)


def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    _validate(q, k, v, ("mask", mask))
    queries, keys, values = map(_wide, (q, k, v))
    scores = torch.einsum("...id,...jd->...ij", queries, keys) * (q.size(-1) ** -0.5 if scale is None else scale)
    tq, tk = scores.shape[-2:]
    visible = torch.ones(1, 1, dtype=torch.bool, device=q.device) if mask is None else mask
    if is_causal:
        i = torch.arange(tq, device=q.device).unsqueeze(1)
        visible = visible & (torch.arange(tk, device=q.device) <= i + tk - tq)
    top = torch.where(visible, scores.detach(), -torch.inf).amax(-1, keepdim=True)
    e = torch.where(visible, scores - torch.where(top.isinf(), 0.0, top), -torch.inf).exp()
    total = e.sum(-1, keepdim=True)
    weights = e / torch.where(total > 0, total, 1.0)
    return torch.einsum("...ij,...jd->...id", weights, values).to(q.dtype), weights.to(q.dtype)


def merge_attention(out_a, lse_a, out_b, lse_b):
    lse = _masked_lse(torch.stack([lse_a, lse_b], -1), torch.stack([lse_a, lse_b], -1) > -torch.inf)
    wa, wb = _share(lse_a.unsqueeze(-1), lse), _share(lse_b.unsqueeze(-1), lse)
    return (wa * out_a + wb * out_b).to(out_a.dtype), lse.squeeze(-1)


def _partial(q, k, v, visible):
    scores = q @ k.transpose(-1, -2)
    lse = _masked_lse(scores, visible)
    weights = torch.where(visible, torch.exp(torch.where(visible, scores - torch.where(lse.isinf(), 0, lse), 0.0)), 0.0)
    return weights @ v, lse.squeeze(-1)


def _query_block(q, k, v, key_padding_mask, first, offset, causal, block_k):
    """Output and lse of the queries first, first + 1, ... of one block; k and v end at the block's horizon."""
    position = first + offset + torch.arange(q.size(-2), device=q.device).unsqueeze(1)
    empty = torch.zeros(*q.shape[:-1], v.size(-1), dtype=q.dtype, device=q.device), q.new_full(q.shape[:-1], -torch.inf)

    def parts():
        for start in range(0, k.size(-2), block_k):
            j = torch.arange(start, min(start + block_k, k.size(-2)), device=q.device)
            visible = (j <= position) if causal else torch.ones(1, j.numel(), dtype=torch.bool, device=q.device)
            if key_padding_mask is not None:
                visible = visible & key_padding_mask[..., start : start + block_k].unsqueeze(-2)
            yield _partial(q, k[..., start : start + block_k, :], v[..., start : start + block_k, :], visible)

    return functools.reduce(lambda a, b: merge_attention(*a, *b), parts(), empty)


def streaming_attention(
    q, k, v, *, is_causal=False, key_padding_mask=None, scale=None, block_q=64, block_k=64
):
    _validate(q, k, v, ("key_padding_mask", key_padding_mask))
    if min(block_q, block_k) < 1:
        raise ValueError("block sizes must be positive")
    offset = k.size(-2) - q.size(-2)
    queries = _wide(q) * (q.size(-1) ** -0.5 if scale is None else scale)
    keys, values = _wide(k), _wide(v)
    results = []
    for first, block in zip(range(0, q.size(-2), block_q), queries.split(block_q, dim=-2), strict=True):
        horizon = max(0, min(k.size(-2), first + block.size(-2) + offset)) if is_causal else k.size(-2)
        padding = None if key_padding_mask is None else key_padding_mask[..., :horizon]
        args = (block, keys[..., :horizon, :], values[..., :horizon, :], padding, first, offset, is_causal)
        results.append(checkpoint(_query_block, *args, block_k, use_reentrant=False, preserve_rng_state=False))
    outputs, lses = zip(*results, strict=True)
    return torch.cat(outputs, dim=-2).to(q.dtype), torch.cat(lses, dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, d_model, d_head=None, *, causal=False, bias=False, block_size=64):
        super().__init__()
        d_head = d_head or d_model
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, nn.Linear(d_model, d_head, bias))
        self.out_proj = nn.Linear(d_head, d_model, bias)
        self.options = {"is_causal": causal}
        self.blocks = {"block_q": block_size, "block_k": block_size}

    def forward(self, x, key_padding_mask=None, *, return_weights=False):
        qkv = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if not return_weights:
            return self.out_proj(
                streaming_attention(*qkv, key_padding_mask=key_padding_mask, **self.options, **self.blocks)[0]
            )
        mask = key_padding_mask.unsqueeze(1) if key_padding_mask is not None else None
        mixed, weights = attention(*qkv, mask=mask, **self.options)
        return self.out_proj(mixed), weights


@dataclass(frozen=True)
class AttentionSummary:
    entropy: np.ndarray
    effective_keys: np.ndarray
    argmax_key: np.ndarray
    mean_distance: np.ndarray
    received: np.ndarray
    sink_mass: np.ndarray


def summarise_attention(weights, query_mask=None):
    w = weights.detach().to("cpu", torch.float64)
    tq, tk = w.shape[-2:]
    valid = torch.ones(w.shape[:-1], dtype=torch.bool) if query_mask is None else query_mask.cpu().expand(w.shape[:-1])
    w = w.masked_fill(~valid[..., None], torch.nan)
    distance = (torch.arange(tq).unsqueeze(1) + tk - tq - torch.arange(tk)).abs()
    entropy = torch.special.entr(w).sum(-1)
    nothing = ~valid | (w == 0).all(-1)
    received = w.nanmean(-2)
    return AttentionSummary(
        entropy=entropy.numpy(),
        effective_keys=entropy.exp().numpy(),
        argmax_key=torch.where(nothing, -1, (w == w.amax(-1, keepdim=True)).int().argmax(-1)).numpy(),
        mean_distance=(w * distance).sum(-1).numpy(),
        received=received.numpy(),
        sink_mass=received[..., 0].numpy(),
    )


def plot_attention(weights, query_tokens, key_tokens, *, title="", path=None):
    if (len(query_tokens), len(key_tokens)) != tuple(weights.shape[-2:]):
        raise ValueError("number of labels")
    heads = weights.detach().cpu().float()
    titles = [f"head {h}" for h in range(len(heads))] if heads.dim() == 3 else [""]
    fig, axes = plt.subplots(1, len(titles), figsize=(4 * len(titles), 4), squeeze=False)
    for ax, head, name in zip(axes.flat, heads.reshape(len(titles), *heads.shape[-2:]), titles, strict=True):
        mappable = ax.imshow(head.numpy(), cmap="magma", clim=(0, 1), aspect="auto")
        for axis, tokens in ((ax.xaxis, key_tokens), (ax.yaxis, query_tokens)):
            axis.set_ticks(np.arange(len(tokens)))
            for text in axis.set_ticklabels(tokens):
                text.set_parse_math(False)
        ax.set_xlabel("key")
        ax.set_ylabel("query")
        ax.set_title(name)
    fig.colorbar(mappable, ax=axes.ravel().tolist())
    fig.suptitle(title).set_parse_math(False)
    if path is not None:
        fig.savefig(path, dpi=100, format="png")
    plt.close(fig)
    return fig
