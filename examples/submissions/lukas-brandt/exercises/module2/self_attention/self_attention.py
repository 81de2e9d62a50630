"""2.1 Self-attention. L. Brandt.

Loop order as in FlashAttention-1 (keys outside), one flat batch dimension inside.
"""

from dataclasses import dataclass
from math import inf, sqrt

import matplotlib.figure
import numpy as np
import torch
from torch import nn
from torch.autograd import Function


def check_qkv(q, k, v):
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"incompatible shapes: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}")


def check_mask(mask):
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError("mask must be boolean")


def wide(t):
    return torch.promote_types(t.dtype, torch.float32)


def attention(q, k, v, *, mask=None, is_causal=False, scale=None):
    check_qkv(q, k, v)
    check_mask(mask)
    tq, tk = q.shape[-2], k.shape[-2]
    dtype = wide(q)
    factor = scale if scale is not None else 1 / sqrt(q.shape[-1])
    logits = torch.matmul(q.to(dtype), k.to(dtype).transpose(-2, -1)).mul(factor)
    hidden = torch.zeros((tq, tk), dtype=torch.bool, device=q.device)
    if is_causal:
        hidden = ~torch.tril(~hidden, diagonal=tk - tq)
    if mask is not None:
        hidden = hidden | ~mask
    lost = hidden.all(-1, keepdim=True)
    # lost: no key to look at. Let it see all, then multiply the row away (no 0/0, no NaN in backward)
    p = torch.softmax(logits.masked_fill(hidden & ~lost, -inf), -1) * (~lost)
    return torch.matmul(p, v.to(dtype)).to(q.dtype), p.to(q.dtype)


def tiles(tq, tk, causal, bq, bk):
    """(query slice, key slice, needs a causal mask) of every tile that is not entirely hidden, keys outermost."""
    for j0 in range(0, tk, bk):
        j1 = min(j0 + bk, tk)
        for i0 in range(0, tq, bq):
            i1 = min(i0 + bq, tq)
            if causal and j0 > i1 - 1 + tk - tq:
                continue
            yield slice(i0, i1), slice(j0, j1), causal and j1 - 1 > i0 + tk - tq


def tile_logits(qs, k, pad, rows, cols, diagonal, offset):
    """Scores (N, rows, cols) of one tile, -inf at hidden keys; qs is scaled."""
    s = torch.bmm(qs[:, rows], k[:, cols].transpose(1, 2).to(qs.dtype))
    if diagonal:
        i = torch.arange(rows.start, rows.stop, device=qs.device)
        j = torch.arange(cols.start, cols.stop, device=qs.device)
        s.masked_fill_(j[None, :] > i[:, None] + offset, -inf)
    if pad is not None:
        s.masked_fill_(~pad[:, None, cols], -inf)
    return s


class Flash(Function):
    @staticmethod
    def forward(q, k, v, pad, causal, scale, bq, bk):
        n, tq, _ = q.shape
        tk = k.shape[1]
        qs = q.to(wide(q)) * scale
        top = qs.new_full((n, tq, 1), -inf)
        mass = qs.new_zeros((n, tq, 1))
        acc = qs.new_zeros((n, tq, v.shape[2]))
        for rows, cols, diagonal in tiles(tq, tk, causal, bq, bk):
            s = tile_logits(qs, k, pad, rows, cols, diagonal, tk - tq)
            old, new = top[:, rows], torch.maximum(top[:, rows], s.amax(2, keepdim=True))
            pivot = torch.nan_to_num(new, neginf=0.0)
            s.sub_(pivot).exp_()
            decay = (old - pivot).exp_()
            mass[:, rows] = mass[:, rows].mul_(decay).add_(s.sum(2, keepdim=True))
            acc[:, rows] = torch.baddbmm(acc[:, rows] * decay, s, v[:, cols].to(s.dtype))
            top[:, rows] = new
        seen = mass > 0
        acc /= torch.where(seen, mass, 1.0)
        return acc.to(q.dtype), torch.where(seen, top + mass.log(), -inf)[..., 0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, pad, *ctx.rest = inputs
        ctx.save_for_backward(q, k, v, pad, *output)

    @staticmethod
    def backward(ctx, g_out, g_lse):
        q, k, v, pad, out, lse = ctx.saved_tensors
        causal, scale, bq, bk = ctx.rest
        tq, tk = q.shape[1], k.shape[1]
        dtype = wide(q)
        qs, g_out = q.to(dtype) * scale, g_out.to(dtype)
        delta = torch.einsum("ntd,ntd->nt", g_out, out.to(dtype)).sub_(g_lse)[..., None]
        pivot = torch.nan_to_num(lse, neginf=0.0)[..., None]
        gq, gk, gv = torch.zeros_like(qs), torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
        for rows, cols, diagonal in tiles(tq, tk, causal, bq, bk):
            p = tile_logits(qs, k, pad, rows, cols, diagonal, tk - tq).sub_(pivot[:, rows]).exp_()
            gv[:, cols] += torch.bmm(p.transpose(1, 2), g_out[:, rows])
            gp = torch.bmm(g_out[:, rows], v[:, cols].transpose(1, 2).to(dtype))
            gs = gp.sub_(delta[:, rows]).mul_(p)
            gq[:, rows] += torch.bmm(gs, k[:, cols].to(dtype))
            gk[:, cols] += torch.bmm(gs.transpose(1, 2), qs[:, rows])
        return (gq * scale).to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), None, None, None, None, None


def streaming_attention(
    q, k, v, *, is_causal=False, key_padding_mask=None, scale=None, block_q=64, block_k=64
):
    check_qkv(q, k, v)
    check_mask(key_padding_mask)
    if block_q < 1 or block_k < 1:
        raise ValueError("a block holds at least one element")
    lead, (tq, d), (tk, dv) = q.shape[:-2], q.shape[-2:], v.shape[-2:]
    pad = key_padding_mask
    if pad is not None:
        pad = pad.expand(*lead, tk).reshape(-1, tk)
    flat = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    out, lse = Flash.apply(*flat, pad, is_causal, 1 / sqrt(d) if scale is None else scale, block_q, block_k)
    return out.reshape(*lead, tq, dv), lse.reshape(*lead, tq)


def merge_attention(out_a, lse_a, out_b, lse_b):
    lse = torch.logaddexp(lse_a, lse_b)
    # sigmoid(a - b) = e^a / (e^a + e^b); two empty parts (-inf - -inf) may be weighed in any way: both are zero.
    share = torch.sigmoid(torch.nan_to_num(lse_a - lse_b, nan=0.0, posinf=inf, neginf=-inf)).unsqueeze(-1)
    return torch.lerp(out_b.to(lse.dtype), out_a.to(lse.dtype), share).to(out_a.dtype), lse


class SelfAttention(nn.Module):
    def __init__(self, d_model, d_head=None, *, causal=False, bias=False, block_size=64):
        super().__init__()
        self.d_head = d_model if d_head is None else d_head
        self.causal, self.block_size = causal, block_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, self.d_head, bias=bias) for _ in range(3))
        self.out_proj = nn.Linear(self.d_head, d_model, bias=bias)

    def forward(self, x, key_padding_mask=None, *, return_weights=False):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if return_weights:
            mask = None if key_padding_mask is None else key_padding_mask.view(len(x), 1, -1)
            y, weights = attention(q, k, v, mask=mask, is_causal=self.causal)
        else:
            sizes = {"block_q": self.block_size, "block_k": self.block_size}
            y, weights = streaming_attention(
                q, k, v, is_causal=self.causal, key_padding_mask=key_padding_mask, **sizes
            )[0], None
        y = self.out_proj(y)
        return (y, weights) if return_weights else y


@dataclass(frozen=True)
class AttentionSummary:
    entropy: np.ndarray
    effective_keys: np.ndarray
    argmax_key: np.ndarray
    mean_distance: np.ndarray
    received: np.ndarray
    sink_mass: np.ndarray


def summarise_attention(weights, query_mask=None):
    every = weights.detach().to(torch.float64).cpu().numpy()
    *lead, tq, tk = every.shape
    keep = np.broadcast_to(True if query_mask is None else query_mask.cpu().numpy(), (*lead, tq)).reshape(-1, tq)
    columns = np.arange(tk)
    entropy, distance = np.full(keep.shape, np.nan), np.full(keep.shape, np.nan)
    argmax = np.full(keep.shape, -1, dtype=np.int64)
    received = np.full((len(keep), tk), np.nan)
    for n, rows in enumerate(every.reshape(-1, tq, tk)):
        for i in np.flatnonzero(keep[n]):
            positive = rows[i][rows[i] > 0]
            entropy[n, i] = -np.dot(positive, np.log(positive))
            distance[n, i] = np.dot(rows[i], np.abs(columns - (i + tk - tq)))
            if positive.size:
                argmax[n, i] = np.argmax(rows[i])
        if keep[n].any():
            received[n] = rows[keep[n]].mean(axis=0)
    per_query = [a.reshape(*lead, tq) for a in (entropy, np.exp(entropy), argmax, distance)]
    return AttentionSummary(*per_query, received.reshape(*lead, tk), received[:, 0].reshape(lead))


def plot_attention(weights, query_tokens, key_tokens, *, title="", path=None):
    w = weights.detach().cpu().to(torch.float64).numpy()
    has_heads = w.ndim == 3
    maps = w if has_heads else w[np.newaxis]
    if maps.shape[1:] != (len(query_tokens), len(key_tokens)):
        raise ValueError("labels do not fit the weights")
    fig = matplotlib.figure.Figure(figsize=(3 + 3 * len(maps), 4.5))
    grid = fig.add_gridspec(1, len(maps) + 1, width_ratios=[10] * len(maps) + [1], wspace=0.6, bottom=0.25)
    for h, values in enumerate(maps):
        ax = fig.add_subplot(grid[0, h], xlabel="key", ylabel="query", title=f"head {h}" if has_heads else "")
        im = ax.imshow(values)
        im.set_clim(0, 1)
        ax.set_xticks(range(len(key_tokens)), key_tokens, parse_math=False, rotation=60)
        ax.set_yticks(range(len(query_tokens)), query_tokens, parse_math=False)
    fig.colorbar(im, cax=fig.add_subplot(grid[0, len(maps)]))
    fig.suptitle(title, parse_math=False)
    if path:
        fig.savefig(str(path), dpi=100)
    return fig
