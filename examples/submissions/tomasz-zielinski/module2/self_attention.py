"""Self-attention: materialised, streamed over blocks of keys, wrapped in a layer, and made visible.

Conventions of this module, used by every function below:

* Masks are boolean and ``True`` means "this key may be attended to" / "this is a real token"
  (``F.scaled_dot_product_attention`` reads masks this way; ``nn.MultiheadAttention`` means the opposite).
* Causal order is aligned bottom-right: query ``i`` sees key ``j`` iff ``j <= i + Tk - Tq``, so the last query sees
  every key. With ``Tq > Tk`` the first ``Tq - Tk`` queries see nothing.
* A query that sees nothing (an *empty row*) gets zero weights and a zero output, passes back a zero gradient,
  and has a log-sum-exp of ``-inf``. There is never a NaN.
* float16 and bfloat16 inputs: scores, softmax and sums are float32; results are rounded to the input dtype once.
* Every tensor you create lives on the device of the inputs.

Not to be called here, because they are what you are building: ``F.scaled_dot_product_attention``,
``nn.MultiheadAttention``, ``F.multi_head_attention_forward``, ``torch.nn.attention.flex_attention``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NEG_INF = float("-inf")


# --------------------------------------------------------------------------------------------------------------
# Given: validation and the dtype of sums
# --------------------------------------------------------------------------------------------------------------


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ``ValueError`` naming both shapes if D of q and k, or Tk of k and v, differ."""
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in their last dimension")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} differ in their number of keys")


def check_mask(mask: Tensor | None, name: str) -> None:
    """Raise ``TypeError`` if a mask is given that is not boolean."""
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"{name} must be boolean, got {mask.dtype}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which scores, softmax and sums are computed: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --------------------------------------------------------------------------------------------------------------
# Task 1: attention with its weights
# --------------------------------------------------------------------------------------------------------------


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, ``softmax(scale · Q Kᵀ) V``, with the weights.

    Args:
        q: queries (..., Tq, D), any float dtype.
        k: keys (..., Tk, D), same leading dimensions and dtype as q.
        v: values (..., Tk, Dv), same leading dimensions and dtype as q.
        mask: boolean, broadcastable to (..., Tq, Tk); True = the key may be attended to.
        is_causal: query i sees key j iff ``j <= i + Tk - Tq`` (and the mask allows it).
        scale: factor of the scores; default ``1 / sqrt(D)``.

    Returns:
        output (..., Tq, Dv) and weights (..., Tq, Tk), both in the dtype of q. Hidden keys have weight exactly 0;
        a query that sees no key has zero weights, a zero output and zero gradients.

    Raises:
        ValueError: D of q and k differ, or Tk of k and v differ (both shapes are named).
        TypeError: the mask is not boolean.

    Source: Vaswani et al. 2017, section 3.2.1.
    """
    check_qkv(q, k, v)
    check_mask(mask, "mask")
    acc = accumulation_dtype(q.dtype)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    s = torch.matmul(q.to(acc) * scale, k.to(acc).transpose(-2, -1))
    tq, tk = s.shape[-2:]

    allowed = mask
    if is_causal:
        horizon = torch.arange(tq, device=q.device)[:, None] + (tk - tq)
        causal = torch.arange(tk, device=q.device)[None, :] <= horizon
        allowed = causal if mask is None else causal & mask
    if allowed is None:
        w = torch.softmax(s, dim=-1)
    else:
        some = allowed.any(dim=-1, keepdim=True)
        s = s.masked_fill(some & ~allowed, NEG_INF)
        w = torch.softmax(s, dim=-1).masked_fill(~some, 0.0)
    return torch.matmul(w, v.to(acc)).to(q.dtype), w.to(q.dtype)


# --------------------------------------------------------------------------------------------------------------
# Tasks 5 and 7: the same output without the Tq x Tk weights
# --------------------------------------------------------------------------------------------------------------


def visible_keys(i_end: int, tq: int, tk: int, is_causal: bool) -> int:
    """How many of the first keys at least one query before ``i_end`` can see (all of them unless causal).

    The loops over key blocks of the queries ``i_start..i_end-1`` stop here: later blocks are entirely hidden.
    """
    if is_causal:
        return int(np.clip(i_end + tk - tq, 0, tk))
    return tk


def tile_scores(
    q_tile: Tensor,
    k_tile: Tensor,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    i_start: int,
    j_start: int,
    tq: int,
    tk: int,
) -> Tensor:
    """Scores of one tile, ``-inf`` where the key is hidden.

    Args:
        q_tile: queries i_start, i_start + 1, ... (..., block_q, D), already scaled, in the accumulation dtype.
        k_tile: keys j_start, j_start + 1, ... (..., block_k, D), in the accumulation dtype.
        key_padding_mask: the whole mask (..., Tk) or None.
    """
    s = q_tile @ k_tile.mT
    bq, bk = s.shape[-2:]
    if is_causal:
        q_pos = i_start + torch.arange(bq, device=s.device) + tk - tq
        k_pos = j_start + torch.arange(bk, device=s.device)
        s = torch.where(k_pos[None, :] <= q_pos[:, None], s, NEG_INF)
    if key_padding_mask is not None:
        s = torch.where(key_padding_mask[..., None, j_start : j_start + bk], s, NEG_INF)
    return s


def finite(x: Tensor) -> Tensor:
    """``x`` with ``-inf`` replaced by 0, so that ``exp(s - finite(x))`` is 0 and not NaN where s is -inf too."""
    return x.masked_fill(x == NEG_INF, 0.0)


def streaming_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    block_q: int,
    block_k: int,
) -> tuple[Tensor, Tensor]:
    """Output (..., Tq, Dv) in the dtype of q and lse (..., Tq) in the accumulation dtype, tile by tile.

    For one block of queries, three running quantities describe the keys seen so far: the maximum ``m`` of the
    scores, the sum ``l = Σ_j exp(s_j - m)`` and the unnormalised output ``o = Σ_j exp(s_j - m) v_j``.

    Source: Milakov & Gimelshein 2018 (online softmax); Dao 2023 (FlashAttention-2), algorithm 1.
    """
    dtype = accumulation_dtype(q.dtype)
    *lead, tq, _ = q.shape
    tk, dv = v.shape[-2:]
    out = torch.zeros(*lead, tq, dv, dtype=q.dtype, device=q.device)
    lse = torch.zeros(*lead, tq, dtype=dtype, device=q.device)
    for i in range(0, tq, block_q):
        qb = q[..., i : i + block_q, :].to(dtype) * scale
        n = qb.shape[-2]
        m = torch.full((*lead, n), NEG_INF, dtype=dtype, device=q.device)
        l = torch.zeros(*lead, n, dtype=dtype, device=q.device)
        o = torch.zeros(*lead, n, dv, dtype=dtype, device=q.device)
        for j in range(0, visible_keys(i + n, tq, tk, is_causal), block_k):
            kb = k[..., j : j + block_k, :].to(dtype)
            vb = v[..., j : j + block_k, :].to(dtype)
            s = tile_scores(qb, kb, key_padding_mask, is_causal, i, j, tq, tk)
            m = torch.maximum(m, s.amax(-1))
            p = torch.exp(s - finite(m)[..., None])
            l += p.sum(-1)
            o += p @ vb
        out[..., i : i + n, :] = o / torch.where(l > 0, l, 1.0)[..., None]
        lse[..., i : i + n] = m + torch.log(l)
    return out, lse


def streaming_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    block_q: int,
    block_k: int,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v (each in the dtype and shape of its input) from those of out and lse.

    Nothing of size Tq·Tk was kept: each tile of weights is computed again, ``P = exp(S - lse)``. Then

        dV = Pᵀ dO      dP = dO Vᵀ      δ = rowsum(dO ∘ O) - dLSE      dS = P ∘ (dP - δ)
        dQ = scale · dS K               dK = scale · dSᵀ Q

    Source: Dao et al. 2022 (FlashAttention), appendix B.4; the ``dLSE`` term follows from ∂lse/∂s_j = P_j.
    """
    dtype = accumulation_dtype(q.dtype)
    tq, tk = q.shape[-2], k.shape[-2]
    dq, dk, dv = (torch.zeros_like(x, dtype=dtype) for x in (q, k, v))
    row = (d_out.to(dtype) * out.to(dtype)).sum(-1) - d_lse
    for i in range(0, tq, block_q):
        qb = q[..., i : i + block_q, :].to(dtype)
        n = qb.shape[-2]
        g = d_out[..., i : i + n, :].to(dtype)
        for j in range(0, visible_keys(i + n, tq, tk, is_causal), block_k):
            kb = k[..., j : j + block_k, :].to(dtype)
            vb = v[..., j : j + block_k, :].to(dtype)
            s = tile_scores(qb * scale, kb, key_padding_mask, is_causal, i, j, tq, tk)
            p = torch.exp(s - finite(lse[..., i : i + n])[..., None])
            ds = p * (g @ vb.mT - row[..., i : i + n, None]) * scale
            dv[..., j : j + block_k, :] += p.mT @ g
            dk[..., j : j + block_k, :] += ds.mT @ qb
            dq[..., i : i + n, :] += ds @ kb
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


class StreamingAttention(torch.autograd.Function):
    """Given: ties your two passes to autograd. Between them only q, k, v, out and lse are kept.

    Second derivatives are not supported: asking for one is an error, never a wrong number.
    """

    @staticmethod
    def forward(ctx, q, k, v, key_padding_mask, is_causal, scale, block_q, block_k):
        out, lse = streaming_forward(q, k, v, key_padding_mask, is_causal, scale, block_q, block_k)
        ctx.save_for_backward(q, k, v, key_padding_mask, out, lse)
        ctx.settings = (is_causal, scale, block_q, block_k)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_lse):
        q, k, v, key_padding_mask, out, lse = ctx.saved_tensors
        grads = streaming_backward(q, k, v, key_padding_mask, *ctx.settings, out, lse, d_out, d_lse)
        return *grads, None, None, None, None, None


def streaming_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    is_causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    block_q: int = 64,
    block_k: int = 64,
) -> tuple[Tensor, Tensor]:
    """Attention whose memory does not grow with Tq·Tk (FlashAttention's algorithm in plain PyTorch).

    Args:
        q, k, v, is_causal, scale: as in :func:`attention`.
        key_padding_mask: boolean (..., Tk), broadcastable against the leading dimensions from the right
            (for q of shape (B, H, T, D) that is (B, 1, T)); True = real key.
        block_q, block_k: queries and keys of one tile; any sizes >= 1, not necessarily dividing Tq and Tk.

    Returns:
        output (..., Tq, Dv) in the dtype of q, and ``lse_i = log Σ_j exp(scale · q_i·k_j)`` over the visible keys,
        (..., Tq), natural logarithm, float32 (float64 for float64 inputs), ``-inf`` for an empty row.
        Both are differentiable in q, k and v; results do not depend on the block sizes.
        The forward pass holds a few tiles of block_q x block_k scores (per leading index) besides things as long as
        q, k or v; the backward pass holds nothing that grows with Tq·Tk. Causal tiles that are entirely hidden are
        not computed.

    Raises:
        ValueError: shapes as in :func:`attention`, or a block size below 1 ("block").
        TypeError: key_padding_mask is not boolean.
    """
    check_qkv(q, k, v)
    check_mask(key_padding_mask, "key_padding_mask")
    if block_q < 1 or block_k < 1:
        raise ValueError(f"block sizes must be at least 1, got block_q={block_q}, block_k={block_k}")
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    return StreamingAttention.apply(q, k, v, key_padding_mask, is_causal, scale, block_q, block_k)


# --------------------------------------------------------------------------------------------------------------
# Task 6: why streaming works
# --------------------------------------------------------------------------------------------------------------


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the results over each.

    The operation is associative and commutative, with identity ``(0, -inf)``: a commutative monoid.

    Args:
        out_a, out_b: outputs (..., T, Dv). lse_a, lse_b: log-sum-exps (..., T); ``-inf`` = this part saw no key.

    Returns:
        output in the dtype of out_a and lse in that of lse_a; computed in the dtype of lse_a.
        Two empty parts give ``(0, -inf)``. Gradients are not asked for.
    """
    # both parts are averages already, so their mean is the whole
    return (out_a + out_b) * 0.5, torch.logaddexp(lse_a, lse_b)


# --------------------------------------------------------------------------------------------------------------
# Tasks 2 and 8: the layer
# --------------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Single-head self-attention: every position of a sequence asks all positions of the same sequence.

    Parameters (all ``nn.Linear``; these names are normative): ``q_proj``, ``k_proj``, ``v_proj`` map d_model to
    d_head, ``out_proj`` maps d_head back to d_model. ``bias`` switches the bias of all four.

    Args:
        d_model: width of the input and output.
        d_head: width of queries, keys and values; default d_model.
        causal: whether position i may attend only to positions <= i.
        block_size: block_q and block_k of the streaming path.
    """

    def __init__(
        self,
        d_model: int,
        d_head: int | None = None,
        *,
        causal: bool = False,
        bias: bool = False,
        block_size: int = 64,
    ) -> None:
        super().__init__()
        if d_head is None:
            d_head = d_model
        self.causal = causal
        self.block_size = block_size
        self.q_proj = nn.Linear(d_model, d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, d_head, bias=bias)
        self.out_proj = nn.Linear(d_head, d_model, bias=bias)

    def forward(
        self, x: Tensor, key_padding_mask: Tensor | None = None, *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``softmax(Q Kᵀ / sqrt(d_head)) V`` of the projected input, projected back.

        Args:
            x: (B, T, d_model).
            key_padding_mask: boolean (B, T), True = real token. Padding is never attended to; what comes out *at*
                a padding position is finite and otherwise of no concern.
            return_weights: also return the weights (B, T, T). The output is the same either way.

        Returns:
            output (B, T, d_model), or (output, weights).

        Task 2 is done with :func:`attention` alone. Task 8 then sends the calls that ask for no weights through
        :func:`streaming_attention`, so that no (T, T) tensor exists when nobody looks at it.
        """
        mask = None
        if key_padding_mask is not None:
            mask = key_padding_mask[:, None, :]  # the same keys for every query
        out, weights = attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), mask=mask, is_causal=self.causal)
        out = self.out_proj(out)
        return (out, weights) if return_weights else out


# --------------------------------------------------------------------------------------------------------------
# Task 3: what an attention map says, in numbers
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionSummary:
    """Numbers about an attention map (..., Tq, Tk); float64 but for ``argmax_key``, which is int64."""

    #: (..., Tq) entropy of each row in nats, H_i = -Σ_j w_ij log w_ij with 0·log 0 = 0.
    entropy: np.ndarray
    #: (..., Tq) exp(H_i): over how many keys, if they were equal, the row would be spread. 1 for an empty row.
    effective_keys: np.ndarray
    #: (..., Tq) key of the largest weight, the first on ties; -1 for an empty row.
    argmax_key: np.ndarray
    #: (..., Tq) Σ_j w_ij |i + Tk - Tq - j|: how far query i looks; query i stands at key i + Tk - Tq.
    mean_distance: np.ndarray
    #: (..., Tk) mean over valid queries of w_ij: how much attention key j receives.
    received: np.ndarray
    #: (...) mean over valid queries of w_i0: the share that goes to the first key (an "attention sink").
    sink_mass: np.ndarray


def summarise_attention(weights: Tensor, query_mask: Tensor | None = None) -> AttentionSummary:
    """Summarise attention weights.

    Args:
        weights: (..., Tq, Tk), rows sum to 1 or are all zero (empty rows); any float dtype.
        query_mask: boolean, broadcastable to (..., Tq); True = valid query. An invalid query gets NaN (argmax_key
            -1) and is left out of both means, whatever its row holds, NaN included. Empty rows are valid unless the
            mask says otherwise. Where no query is valid the means are NaN, without a warning.
    """
    w = weights.detach().double().cpu().numpy()
    tq, tk = w.shape[-2], w.shape[-1]
    ok = np.ones(w.shape[:-1], dtype=bool)
    if query_mask is not None:
        ok &= query_mask.cpu().numpy()
    w = np.where(ok[..., None], w, 0.0)

    log_w = np.log(w, out=np.zeros_like(w), where=w > 0)
    entropy = -(w * log_w).sum(-1)
    entropy[~ok] = np.nan
    distance = np.abs(np.arange(tq)[:, None] + tk - tq - np.arange(tk))
    mean_distance = (w * distance).sum(-1)
    mean_distance[~ok] = np.nan
    argmax = w.argmax(-1)
    argmax[w.sum(-1) == 0] = -1
    count = ok.sum(-1)[..., None].astype(float)
    received = np.divide(w.sum(-2), count, out=np.full(w.shape[:-2] + (tk,), np.nan), where=count > 0)
    return AttentionSummary(entropy, np.exp(entropy), argmax, mean_distance, received, received[..., 0])


# --------------------------------------------------------------------------------------------------------------
# Task 4: the heat map
# --------------------------------------------------------------------------------------------------------------


def new_figure(n_maps: int, n_queries: int, n_keys: int) -> tuple[Figure, list]:
    """Given: an Agg figure outside pyplot (nothing to close), ``n_maps`` axes side by side, sized for the tokens."""
    width, height = max(2.6, 0.32 * n_keys), max(2.6, 0.32 * n_queries)
    figure = Figure(figsize=(n_maps * width + 1.2, height + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, n_maps, squeeze=False)[0])


def plot_attention(
    weights: Tensor,
    query_tokens: Sequence[str],
    key_tokens: Sequence[str],
    *,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Heat map of attention weights.

    Args:
        weights: (Tq, Tk) gives one axes; (H, Tq, Tk) gives H axes titled ``head 0`` .. ``head H-1``.
        query_tokens, key_tokens: labels of rows and columns, in order; tokens may repeat and may contain ``$``, ``\\``,
            ``_``, ``^``, which must be shown as they are (a Text whose ``parse_math`` is off does that).
        title: title of the whole figure (mathtext off too).
        path: where to write the figure as PNG, at least 300 pixels on its shorter side; a name ending in ``.png``.

    Returns:
        The figure. Each axes holds one ``imshow`` of the untouched weights, rows = queries, with colour limits
        exactly (0, 1) whatever the data, x label ``key``, y label ``query``, one tick per token. One colour bar is
        shared by all. No figure is left open in pyplot.

    Raises:
        ValueError: a number of labels does not fit the weights ("labels").
    """
    w = weights.detach().cpu().numpy()
    several = w.ndim == 3
    maps = w if several else w[None]
    if maps.shape[1] != len(query_tokens) or maps.shape[2] != len(key_tokens):
        raise ValueError("number of labels does not fit the weights")
    figure, axes = new_figure(len(maps), maps.shape[1], maps.shape[2])
    for number, (ax, m) in enumerate(zip(axes, maps)):
        image = ax.imshow(m, vmin=0, vmax=1)
        ax.set_xticks(range(len(key_tokens)), key_tokens, rotation=45, parse_math=False)
        ax.set_yticks(range(len(query_tokens)), query_tokens, parse_math=False)
        ax.set_xlabel("key")
        ax.set_ylabel("query")
        if several:
            ax.set_title(f"head {number}")
    figure.colorbar(image, ax=axes)
    figure.suptitle(title, parse_math=False)
    if path is not None:
        figure.savefig(path, format="png")
    return figure
