"""Exercise 6.2: 4-bit quantization, GPTQ against AWQ.

Weights of a linear layer, W (O, I), become 4-bit codes on a grid of its own for every group of g neighbouring inputs of
every output:  W_hat = (q - zero) * scale.  Both algorithms minimise the error of the layer's output over calibration
inputs x,  E |(W - W_hat) x|^2 = tr((W - W_hat) H (W - W_hat)^T) / 2  with  H = 2 E x x^T.

Shapes everywhere below: O outputs, I inputs, g = group_size, N tokens.
A *quantised matrix* is a dict with q uint8 (O, I), scale (O, I/g) in the dtype of W, zero uint8 (O, I/g), and more.
Arithmetic is done in the dtype of W, float32 or float64. Nothing here needs autograd.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The order in which AWQ checkpoints lay eight codes into the nibbles of a word, lowest nibble first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

# ---------------------------------------------------------------------------------------------------------------------
# Given: checks of arguments
# ---------------------------------------------------------------------------------------------------------------------


def check_weight(W: Tensor, group_size: int) -> None:
    """ValueError unless W is a finite matrix whose inputs divide into groups."""
    if W.ndim != 2:
        raise ValueError(f"W must be a matrix (O, I), got shape {tuple(W.shape)}")
    if group_size < 1 or W.shape[1] % group_size:
        raise ValueError(f"group_size = {group_size} does not divide I = {W.shape[1]} (I % g must be 0)")
    if not bool(torch.isfinite(W).all()):
        raise ValueError("W has non-finite values")


def check_hessian(W: Tensor, H: Tensor) -> None:
    """ValueError unless H is (I, I)."""
    if tuple(H.shape) != (W.shape[1], W.shape[1]):
        raise ValueError(f"H must be (I, I) = {(W.shape[1], W.shape[1])}, got shape {tuple(H.shape)}")


def check_eights(name: str, size: int) -> None:
    """ValueError unless eight codes fill a word along this dimension ("I" or "O")."""
    if size % 8:
        raise ValueError(f"{name} % 8 must be 0 to pack eight codes into a word, got {name} = {size}")


# ---------------------------------------------------------------------------------------------------------------------
# Task 1: the grid
# ---------------------------------------------------------------------------------------------------------------------


def quant_params(w: Tensor, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """One grid for each row of w (R, g): scale (R,) in the dtype of w, zero (R,) uint8.

    Asymmetric: lo = min(w, 0), hi = max(w, 0) of the row; scale = (hi - lo) / 15, 1 where that is 0;
    zero = round(-lo / scale), clamped to 0..15.
    Symmetric: scale = 2 max|w| / 15, 1 where that is 0; zero = 8.
    Rounding is half to even throughout (torch.round).
    """
    # BEGIN SOLUTION task 1: scale and zero of every row
    if symmetric:
        scale = 2 * w.abs().amax(dim=1) / 15
    else:
        # 0 is always within the range: it is represented exactly, and a group of zeros stays zero.
        lo, hi = w.amin(dim=1).clamp(max=0), w.amax(dim=1).clamp(min=0)
        scale = (hi - lo) / 15
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.full_like(scale, 8) if symmetric else (-lo / scale).round().clamp(0, 15)
    return scale, zero.to(torch.uint8)
    # END SOLUTION


# BEGIN HIDDEN
def _codes(w: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest grid points, as floating numbers 0..15; scale and zero are broadcast."""
    return ((w / scale).round() + zero).clamp(0, 15)


# END HIDDEN
def quantize_rtn(W: Tensor, group_size: int, *, symmetric: bool = False) -> dict[str, Any]:
    """Round to nearest: {"q", "scale", "zero"} of W (O, I). Every group of group_size inputs has its own grid.

    q = clamp(round(w / scale) + zero, 0, 15). The rounding is of w / scale alone: zero is added afterwards.
    Errors: I % group_size != 0 -> ValueError containing "group_size"; NaN or inf in W -> "non-finite".
    """
    check_weight(W, group_size)
    # BEGIN SOLUTION task 1: round every weight on the grid of its group
    outputs, inputs = W.shape
    groups = W.reshape(-1, group_size)
    scale, zero = quant_params(groups, symmetric=symmetric)
    q = _codes(groups, scale[:, None], zero[:, None]).to(torch.uint8)
    shape = (outputs, inputs // group_size)
    return {"q": q.view(outputs, inputs), "scale": scale.view(shape), "zero": zero.view(shape)}
    # END SOLUTION


def dequantize(q: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """(q - zero) * scale: q (O, I) uint8, scale and zero (O, I/g) -> (O, I) in the dtype of scale.

    q and zero are unsigned: convert before you subtract.
    """
    # BEGIN SOLUTION task 1: back to weights
    outputs, inputs = q.shape
    steps = q.view(outputs, inputs // group_size, group_size).to(scale.dtype) - zero[..., None].to(scale.dtype)
    return (steps * scale[..., None]).view(outputs, inputs)
    # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Task 2: what is to be minimised
# ---------------------------------------------------------------------------------------------------------------------


def accumulate_hessian(batches: Iterable[Tensor]) -> Tensor:
    """H = (2/N) * sum of x x^T over all N tokens of all batches; every batch is (..., I), some may be empty.

    The result has the dtype of the batches; half precision is accumulated, and returned, in float32. Batches come one
    at a time and are not kept.
    Errors: no token at all -> ValueError containing "batches".
    """
    # BEGIN SOLUTION task 2: a running sum of outer products
    total, tokens = None, 0
    for batch in batches:
        x = batch.reshape(-1, batch.shape[-1])
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        total = x.T @ x if total is None else total.addmm_(x.T, x)
        tokens += len(x)
    if not tokens:
        raise ValueError("batches hold no token")
    return total * (2 / tokens)
    # END SOLUTION


def layer_loss(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """tr((W - W_hat) H (W - W_hat)^T): with H = 2/N X^T X, twice the mean squared error of the layer's output."""
    check_hessian(W, H)
    # BEGIN SOLUTION task 2: the quadratic form, summed over outputs
    error = W - W_hat
    return float(((error @ H) * error).sum())
    # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Task 3: GPTQ; task 6 (stretch): act_order and symmetric
# ---------------------------------------------------------------------------------------------------------------------


def gptq_quantize(
    W: Tensor,
    H: Tensor,
    group_size: int,
    *,
    block_size: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    symmetric: bool = False,
) -> dict[str, Any]:
    """GPTQ: {"q", "scale", "zero", "loss"} of W (O, I) for the Hessian H (I, I) of its inputs.

    1. Dead inputs, diag(H) == 0: H_dd = 1 and W[:, d] = 0. Before everything else.
    2. Damping: percdamp * mean(diag H), of the H of step 1, is added to the diagonal.
    3. U upper triangular with U^T U = H^-1.
    4. Column by column: w_hat = the nearest grid point, err = (w - w_hat) / U_jj,
       W[:, j+1:] -= err U[j, j+1:].
    Without act_order, the grid of a group comes from its columns as they are (compensated) when its first column is
    reached. With act_order (task 6), columns are taken by descending diag(H), ties in their order (stable), and grids
    are static: from the W of step 1, groups in the original order of columns. q, scale and zero are always returned in
    the original order. Rounding as in `quantize_rtn`.
    block_size says how many columns are finished before the rest of W is updated (the last block may be shorter). It is
    about cost alone and must not change the result.
    loss: `layer_loss` of the caller's W, the dequantised result and the caller's H, none of which is modified.
    Errors: those of `quantize_rtn`; H not (I, I) -> ValueError containing "H"; block_size neither a divisor nor a
    multiple of group_size -> ValueError containing "block_size".
    """
    check_weight(W, group_size)
    check_hessian(W, H)
    if block_size < 1 or (block_size % group_size and group_size % block_size):
        raise ValueError(f"block_size = {block_size} must divide group_size = {group_size} or be a multiple of it")
    # BEGIN SOLUTION task 3: dead inputs, damping, inverse Cholesky factor, columns in lazy blocks (task 6: act_order)
    (outputs, inputs), work, hessian = W.shape, W.clone(), H.clone()
    diagonal = hessian.diagonal()  # a view
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1.0)
    work.masked_fill_(dead, 0.0)

    columns = torch.arange(inputs, device=W.device)  # columns[j]: the original place of the j-th column
    static = quantize_rtn(work, group_size, symmetric=symmetric) if act_order else None
    if act_order:
        columns = torch.argsort(H.diagonal(), descending=True, stable=True)
        work, hessian = work[:, columns], hessian[columns][:, columns]
    hessian.diagonal().add_(percdamp * diagonal.mean())
    U = _inverse_factor(hessian)

    q = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    scales = torch.empty((outputs, inputs // group_size), dtype=W.dtype, device=W.device)
    zeros = torch.empty(scales.shape, dtype=torch.uint8, device=W.device)
    if static is not None:
        scales, zeros = static["scale"], static["zero"]
    for start in range(0, inputs, block_size):
        end = min(start + block_size, inputs)
        errors = work.new_zeros(outputs, end - start)
        for j, column in zip(range(start, end), columns[start:end].tolist()):
            group = column // group_size
            if static is None and j % group_size == 0:
                scales[:, group], zeros[:, group] = quant_params(work[:, j : j + group_size], symmetric=symmetric)
            scale, zero, w = scales[:, group], zeros[:, group], work[:, j]
            code = _codes(w, scale, zero)
            q[:, column] = code.to(torch.uint8)
            error = (w - (code - zero) * scale) / U[j, j]
            errors[:, j - start] = error
            # Only the block sees this error now; one product brings the block's errors to all columns behind it.
            work[:, j + 1 : end] -= error[:, None] * U[j, j + 1 : end]
        work[:, end:] -= errors @ U[start:end, end:]
    loss = layer_loss(W, dequantize(q, scales, zeros, group_size), H)
    return {"q": q, "scale": scales, "zero": zeros, "loss": loss}
    # END SOLUTION


# BEGIN HIDDEN
def _inverse_factor(hessian: Tensor) -> Tensor:
    """U upper triangular with U^T U = H^-1: three factorisations, whatever the number of columns."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


# END HIDDEN
# ---------------------------------------------------------------------------------------------------------------------
# Task 4: AWQ
# ---------------------------------------------------------------------------------------------------------------------


def awq_search(W: Tensor, X: Tensor, group_size: int, *, n_grid: int = 20, symmetric: bool = False) -> dict[str, Any]:
    """AWQ's search for channel scales: W (O, I), calibration inputs X (..., I) of the same dtype.

    a = mean |x| over all tokens, channel by channel. For k = 0 .. n_grid-1:
        s = clamp(a^(k / n_grid), min 1e-4);  s = s / sqrt(max(s) min(s));
        candidate Q(W * s) / s, Q = quantise (`quantize_rtn`) and dequantise;
        losses[k] = `layer_loss` of the candidate with H = X^T X / N  (no factor 2).
    The first strict minimum wins. k = 0 gives s = 1, which is round to nearest.
    Returns {"q", "scale", "zero"} of W * s for the best s (the weights to use once s is folded into what comes before),
    "channel_scale" s (I,), "ratio" k / n_grid, "losses" (list of n_grid floats).
    Errors: those of `quantize_rtn`; X without tokens or not (..., I) -> ValueError containing "X".
    """
    check_weight(W, group_size)
    if X.shape[-1] != W.shape[1] or X.numel() == 0:
        raise ValueError(f"X must be (..., I) with I = {W.shape[1]} and at least one token, got {tuple(X.shape)}")
    # BEGIN SOLUTION task 4: a grid of scales, each judged through the Gram matrix
    x = X.reshape(-1, X.shape[-1])
    importance = x.abs().mean(dim=0)
    # tr(D X^T X D^T) = |X D^T|^2: with the Gram matrix a candidate costs O I^2, whatever the number of tokens.
    gram = x.T @ x / len(x)
    losses, best = [], None
    for k in range(n_grid):
        s = importance.pow(k / n_grid).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        candidate = quantize_rtn(W * s, group_size, symmetric=symmetric)
        W_hat = dequantize(candidate["q"], candidate["scale"], candidate["zero"], group_size) / s
        losses.append(layer_loss(W, W_hat, gram))
        if best is None or losses[-1] < losses[best[0]]:
            best = (k, candidate, s)
    k, candidate, s = best
    return {**candidate, "channel_scale": s, "ratio": k / n_grid, "losses": losses}
    # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Task 5: folding a scale into the operation before
# ---------------------------------------------------------------------------------------------------------------------


def fold_scale(prev: nn.Module, linears: list[nn.Linear], s: Tensor) -> None:
    """Multiply the input columns of every linear by s (I,), and divide what `prev` puts out by s. In place.

    The function of prev followed by the linears stays the same. prev: a norm with weight (I,), with or without a bias,
    or a linear with I outputs, with or without a bias. Its parameters, and those of the linears, stay the same objects.
    Errors: prev does not have I outputs -> ValueError containing "prev"; an s that is not positive -> "s must".
    """
    if prev.weight.shape[0] != len(s):
        raise ValueError(f"prev has {prev.weight.shape[0]} outputs, the scale {len(s)} channels")
    if not bool((s > 0).all()):
        raise ValueError("s must be positive")
    # BEGIN SOLUTION task 5: divide the outputs of prev, multiply the inputs of the linears
    with torch.no_grad():
        prev.weight /= s if prev.weight.ndim == 1 else s[:, None]
        if getattr(prev, "bias", None) is not None:
            prev.bias /= s
        for linear in linears:
            linear.weight *= s
    # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Task 7 (stretch): real nibbles
# ---------------------------------------------------------------------------------------------------------------------


def pack_gptq(q: Tensor) -> Tensor:
    """uint8 (O, I) -> int32 (I/8, O): bits 4j .. 4j+3 of word (r, c) are q[c, 8r + j], j = 0 .. 7.

    Errors: I % 8 != 0 -> ValueError containing "I % 8".
    """
    check_eights("I", q.shape[1])
    # BEGIN SOLUTION task 7: eight inputs into one word
    nibbles = q.T.reshape(-1, 8, q.shape[0])
    return _words(nibbles, dim=1)
    # END SOLUTION


def unpack_gptq(words: Tensor) -> Tensor:
    """The inverse of `pack_gptq`: int32 (I/8, O) -> uint8 (O, I)."""
    # BEGIN SOLUTION task 7: eight inputs out of one word
    return _nibbles(words, dim=1).reshape(-1, words.shape[1]).T.to(torch.uint8)
    # END SOLUTION


# BEGIN HIDDEN
def _words(nibbles: Tensor, dim: int) -> Tensor:
    """Sum of nibble_j 16^j along `dim` (of size 8), as int32: in int64 nothing overflows, the cast keeps the bits."""
    shape = [1] * nibbles.ndim
    shape[dim] = 8
    shifts = torch.arange(0, 32, 4, device=nibbles.device).view(shape)
    return (nibbles.to(torch.int64) << shifts).sum(dim).to(torch.int32)


def _nibbles(words: Tensor, dim: int) -> Tensor:
    """int32 codes with a new axis of size 8 at `dim`. >> drags the sign along; the mask cuts it off."""
    shape = [1] * (words.ndim + 1)
    shape[dim] = 8
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device).view(shape)
    return (words.unsqueeze(dim) >> shifts).bitwise_and_(15)


# END HIDDEN
def int4_matmul(x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """x (N, I) @ W_hat^T -> (N, O) in the dtype of x, from packed weights, never holding all of W_hat.

    qweight int32 (I/8, O) as `pack_gptq` makes it; scales (I/g, O) floating, zeros (I/g, O) of any integer dtype.
    Weights are dequantised in the dtype of x, float32 for half precision; sums are float32 or wider.
    Errors: group_size not a multiple of 8 -> ValueError containing "group_size".
    """
    if group_size % 8:
        raise ValueError(f"group_size = {group_size} must be a multiple of 8: words must not straddle groups")
    # BEGIN SOLUTION task 7: dequantise a group, multiply, add up
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    out = torch.zeros((x.shape[0], qweight.shape[1]), dtype=wide, device=x.device)
    words = group_size // 8
    for group in range(scales.shape[0]):
        codes = _nibbles(qweight[group * words : (group + 1) * words], dim=1).view(group_size, -1)
        weight = codes.to(wide).sub_(zeros[group]).mul_(scales[group].to(wide))  # (g, O)
        out.addmm_(x[:, group * group_size : (group + 1) * group_size].to(wide), weight)
    return out.to(x.dtype)
    # END SOLUTION


class QuantLinear(nn.Module):
    """A linear layer whose weights are 4-bit codes.

    Buffers: qweight int32 (I/8, O) as `pack_gptq` makes it; scales float16 (I/g, O); qzeros int32 (I/g, O/8), whose word
    (r, c) holds zero[8c + j, r] in bits 4j .. 4j+3 (in order, and zero itself, not zero - 1); bias (O,) or None.
    """

    def __init__(self, in_features: int, out_features: int, group_size: int) -> None:
        super().__init__()
        check_eights("I", in_features)
        check_eights("O", out_features)
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        groups = in_features // group_size
        self.register_buffer("qweight", torch.zeros((in_features // 8, out_features), dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros((groups, out_features // 8), dtype=torch.int32))
        self.register_buffer("scales", torch.zeros((groups, out_features), dtype=torch.float16))
        self.register_buffer("bias", None)

    @classmethod
    def from_quantized(cls, r: dict[str, Any], group_size: int, bias: Tensor | None = None) -> QuantLinear:
        """Pack a quantised matrix: r["q"] (O, I), r["scale"] and r["zero"] (O, I/g). Other entries are ignored: fold a
        channel scale before you quantise.

        Errors: I % 8 or O % 8 != 0 -> ValueError naming it; a scale beyond float16 -> ValueError containing "float16".
        """
        outputs, inputs = r["q"].shape
        layer = cls(inputs, outputs, group_size)
        if bool(r["scale"].abs().max() > torch.finfo(torch.float16).max):
            raise ValueError("a scale is too large for float16")
        # BEGIN SOLUTION task 7: fill the buffers
        layer.qweight = pack_gptq(r["q"])
        layer.qzeros = pack_gptq(r["zero"].T).T.contiguous()
        layer.scales = r["scale"].T.to(torch.float16).contiguous()
        layer.bias = None if bias is None else bias.detach().clone()
        return layer
        # END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O) in the dtype of x."""
        # BEGIN SOLUTION task 7: unpack the zeros, multiply, add the bias
        zeros = unpack_gptq(self.qzeros.T)
        flat = x.reshape(-1, self.in_features)
        out = int4_matmul(flat, self.qweight, self.scales, zeros, self.group_size)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.view(*x.shape[:-1], self.out_features)
        # END SOLUTION

    def bits_per_weight(self) -> float:
        """8 * bytes of all buffers except the bias / (O * I)."""
        # BEGIN SOLUTION task 7: count what is stored
        stored = sum(b.numel() * b.element_size() for name, b in self.named_buffers() if name != "bias")
        return 8 * stored / (self.in_features * self.out_features)
        # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Task 8 (stretch): a whole model
# ---------------------------------------------------------------------------------------------------------------------

METHODS = ("rtn", "gptq", "awq", "awq+gptq")


def llama_groups(model: nn.Module) -> list[list[tuple[nn.Module, list[nn.Linear]]]]:
    """Given: for each block of a Llama-family model its four groups (prev, linears), in the order of execution.

    Linears of a group have one input, and prev is what it is scaled by: input_layernorm -> q, k, v; v -> o;
    post_attention_layernorm -> gate, up; up -> down. Embeddings and lm_head belong to no group.
    """
    blocks = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        blocks.append(
            [
                (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
                (attention.v_proj, [attention.o_proj]),
                (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
                (mlp.up_proj, [mlp.down_proj]),
            ]
        )
    return blocks


@torch.no_grad()
def capture_inputs(model: nn.Module, linear: nn.Module, ids: Tensor) -> Tensor:
    """Given: what `linear`, a module of `model`, receives when the model reads ids (B, T) -> (B * T, I)."""
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        model(input_ids=ids)
    finally:
        hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def module_name(model: nn.Module, module: nn.Module) -> str:
    """Given: the path of a module in the model, "model.layers.0.self_attn.q_proj"."""
    return next(name for name, m in model.named_modules() if m is module)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Given: put `new` where `old` is."""
    parent, _, child = module_name(model, old).rpartition(".")
    setattr(model.get_submodule(parent), child, new)


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Given: ids (B, T) -> logits (B, T, V)."""
    return model(input_ids=ids).logits


@torch.no_grad()
def quantize_model(model: nn.Module, calib_ids: Tensor, method: str, group_size: int, **kw: Any) -> nn.Module:
    """A copy of a Llama-family model whose blocks' linears are `QuantLinear`s. calib_ids (B, T). `model` is untouched.

    method: "rtn", "gptq", "awq" or "awq+gptq". kw: block_size, percdamp, act_order, symmetric, n_grid (others ->
    TypeError); each method takes what it understands and ignores the rest.
    Blocks are walked in order. Within a block:
      1. With "awq..." for each group in order: `awq_search` on the group's stacked weights and the inputs it receives
         now (blocks before are quantised, this one is not), then `fold_scale`. A group whose prev does not have I
         outputs (o_proj behind grouped-query attention) is skipped.
      2. For each group in order: capture the inputs that it receives now (everything before it is quantised, its
         `QuantLinear`s in place), quantise the stacked weights with GPTQ or RTN, put `QuantLinear`s in place.
         H = `accumulate_hessian` of those inputs.
    The result has an attribute `layer_losses`: a dict {path of the linear: `layer_loss` with the inputs' H = 2/N sum
    x x^T and the weights (folded, where they were) before and after}.
    Errors: an unknown method -> ValueError containing "method".
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, known are {', '.join(METHODS)}")
    unknown = set(kw) - {"block_size", "percdamp", "act_order", "symmetric", "n_grid"}
    if unknown:
        raise TypeError(f"quantize_model got unexpected arguments {sorted(unknown)}")
    # BEGIN SOLUTION task 8: walk the blocks: search and fold, then quantise what really arrives
    common = {"symmetric": kw.get("symmetric", False)}
    search = common | {name: kw[name] for name in ("n_grid",) if name in kw}
    second = common | {name: kw[name] for name in ("block_size", "percdamp", "act_order") if name in kw}
    model = copy.deepcopy(model)
    losses: dict[str, float] = {}
    for groups in llama_groups(model):
        if method.startswith("awq"):
            for prev, linears in groups:
                weight = torch.cat([linear.weight for linear in linears])
                if prev.weight.shape[0] == weight.shape[1]:
                    found = awq_search(weight, capture_inputs(model, linears[0], calib_ids), group_size, **search)
                    fold_scale(prev, linears, found["channel_scale"])
        for _, linears in groups:
            weight = torch.cat([linear.weight for linear in linears])
            hessian = accumulate_hessian([capture_inputs(model, linears[0], calib_ids)])
            if method.endswith("gptq"):
                r = gptq_quantize(weight, hessian, group_size, **second)
            else:
                r = quantize_rtn(weight, group_size, **common)
            W_hat = dequantize(r["q"], r["scale"], r["zero"], group_size)
            start = 0
            for linear in linears:
                rows = slice(start, start := start + linear.out_features)
                losses[module_name(model, linear)] = layer_loss(weight[rows], W_hat[rows], hessian)
                part = {name: r[name][rows] for name in ("q", "scale", "zero")}
                replace_module(model, linear, QuantLinear.from_quantized(part, group_size, linear.bias))
    model.layer_losses = losses
    return model
    # END SOLUTION


def compare(
    model: nn.Module,
    calib_ids: Tensor,
    eval_ids: Tensor,
    methods: Sequence[str],
    group_sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """The table: a row for each method and group size, methods outermost; also saved by `save_pareto` in the current
    directory.

    A row is {"method", "group_size", "bits_per_weight", "kl", "ppl", "ppl_fp", "layer_losses"}.
    bits_per_weight: 8 * bytes of all QuantLinears' buffers except biases / number of their weights.
    kl: mean over all B * T positions of KL(p_fp || p_q) in nats. ppl: exp of the mean negative log-likelihood of
    eval_ids[:, 1:] given what stands before; ppl_fp: that of `model` itself.
    """
    # BEGIN SOLUTION task 8: quantise with every method, measure on eval_ids
    original = logits_of(model, eval_ids).log_softmax(-1)
    rows = []
    for method in methods:
        for group_size in group_sizes:
            quantised = quantize_model(model, calib_ids, method, group_size)
            logp = logits_of(quantised, eval_ids).log_softmax(-1)
            layers = [m for m in quantised.modules() if isinstance(m, QuantLinear)]
            weights = [m.in_features * m.out_features for m in layers]
            bits = sum(m.bits_per_weight() * n for m, n in zip(layers, weights)) / sum(weights)
            rows.append(
                {
                    "method": method,
                    "group_size": group_size,
                    "bits_per_weight": bits,
                    "kl": float((original.exp() * (original - logp)).sum(-1).mean()),
                    "ppl": _perplexity(logp, eval_ids),
                    "ppl_fp": _perplexity(original, eval_ids),
                    "layer_losses": quantised.layer_losses,
                }
            )
    save_pareto(rows)
    return rows
    # END SOLUTION


# BEGIN HIDDEN
def _perplexity(logp: Tensor, ids: Tensor) -> float:
    """logp (B, T, V): logp[:, t] predicts ids[:, t + 1]."""
    return math.exp(F.nll_loss(logp[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item())


# END HIDDEN
def save_pareto(rows: list[dict[str, Any]], directory: str | Path = ".") -> None:
    """Given: pareto.json, the rows, and pareto.png, KL against bits per weight, a line for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    Path(directory, "pareto.json").write_text(json.dumps(rows, indent=1))
    figure = Figure(figsize=(5, 4), dpi=100)
    axes = figure.add_subplot()
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row["bits_per_weight"], row["kl"]) for row in rows if row["method"] == method)
        axes.plot(*zip(*points), marker="o", label=method)
    axes.set(xlabel="bits per weight", ylabel="KL to the original (nats)", yscale="log")
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(Path(directory, "pareto.png")))


# ---------------------------------------------------------------------------------------------------------------------
# Task 9 (stretch): the other layout, and checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def pack_awq(q: Tensor) -> Tensor:
    """uint8 (O, I) -> int32 (I, O/8): bits 4i .. 4i+3 of word (r, c) are q[8c + AWQ_ORDER[i], r], i = 0 .. 7.

    Errors: O % 8 != 0 -> ValueError containing "O % 8".
    """
    check_eights("O", q.shape[0])
    # BEGIN SOLUTION task 9: eight outputs into one word, interleaved
    nibbles = q.T.reshape(q.shape[1], -1, 8)[..., list(AWQ_ORDER)]
    return _words(nibbles, dim=2)
    # END SOLUTION


def unpack_awq(words: Tensor) -> Tensor:
    """The inverse of `pack_awq`: int32 (I, O/8) -> uint8 (O, I)."""
    # BEGIN SOLUTION task 9: eight outputs out of one word
    nibbles = _nibbles(words, dim=2).to(torch.uint8)
    codes = torch.empty_like(nibbles)
    codes[..., list(AWQ_ORDER)] = nibbles
    return codes.reshape(words.shape[0], -1).T
    # END SOLUTION


def export_checkpoint(model: nn.Module, path: str | Path, *, fmt: str = "gptq_v2") -> None:
    """Write a quantised model as a checkpoint directory that GPTQ loaders read: `write_checkpoint` does the writing.

    For each QuantLinear "name": name.qweight, name.scales and name.bias as they are, name.g_idx int32 (I,), the group of
    every input, and name.qzeros. fmt "gptq_v2" stores zero in the nibbles of qzeros; "gptq" (version 1) stores
    (zero - 1) mod 16. All other parameters under their own names.
    Errors: another fmt -> ValueError containing "fmt".
    """
    if fmt not in ("gptq", "gptq_v2"):
        raise ValueError(f"fmt must be 'gptq' or 'gptq_v2', got {fmt!r}")
    # BEGIN SOLUTION task 9: g_idx, and zeros as the format wants them
    tensors = dict(model.state_dict())
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            inputs = torch.arange(layer.in_features, device=layer.qweight.device)
            tensors[f"{name}.g_idx"] = (inputs // layer.group_size).to(torch.int32)
            if fmt == "gptq":
                minus_one = (unpack_gptq(layer.qzeros.T).to(torch.int32) - 1) % 16
                tensors[f"{name}.qzeros"] = pack_gptq(minus_one).T.contiguous()
    write_checkpoint(model, path, tensors, fmt)
    # END SOLUTION


def write_checkpoint(model: nn.Module, path: str | Path, tensors: dict[str, Tensor], fmt: str) -> None:
    """Given: model.safetensors, and config.json with its "quantization_config", into the directory `path`."""
    from safetensors.torch import save_file

    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    config = {} if getattr(model, "config", None) is None else model.config.to_dict()
    tied = config.get("tie_word_embeddings", False)
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": layers[0].group_size,
        "desc_act": False,  # codes are stored in the original order, whatever order they were found in
        "sym": all(bool((layer.qzeros == -2004318072).all()) for layer in layers),  # 0x88888888: every zero is 8
        "checkpoint_format": fmt,
    }
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    kept = {name: t for name, t in tensors.items() if not (tied and name == "lm_head.weight")}
    save_file(
        {name: t.detach().cpu().contiguous().clone() for name, t in kept.items()},
        str(path / "model.safetensors"),
        metadata={"format": "pt"},
    )
    (path / "config.json").write_text(json.dumps(config, indent=2, default=str))


def quantize_directory(
    source: str | Path,
    text: str,
    target: str | Path,
    *,
    method: str = "gptq",
    group_size: int = 128,
    fmt: str = "gptq_v2",
    length: int = 512,
) -> None:
    """Given: a Llama-family model directory in the hub's layout -> a checkpoint in `target`, tokenizer included.

    Calibrated on the first 32 pieces of `length` tokens of the text (fewer, or one shorter piece, where it has no more),
    in float32, on CUDA where there is one.
    Errors: a text without tokens -> ValueError containing "text".
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    if not len(ids):
        raise ValueError("the text holds no token")
    length = min(length, len(ids))
    ids = ids[: min(len(ids) // length, 32) * length].view(-1, length).to(device)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(device).eval()
    export_checkpoint(quantize_model(model, ids, method, group_size), target, fmt=fmt)
    tokenizer.save_pretrained(target)


def main() -> None:
    """Given: python four_bit_quantization.py MODEL_DIR TEXT_FILE OUT_DIR [--method M] [--group-size G] [--format F]"""
    import argparse

    parser = argparse.ArgumentParser(description="Quantize a Llama-family model directory to 4 bits.")
    parser.add_argument("model", help="directory with config.json, safetensors and tokenizer")
    parser.add_argument("text", type=Path, help="file to calibrate on")
    parser.add_argument("target", help="directory to write")
    parser.add_argument("--method", choices=METHODS, default="gptq")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--format", choices=("gptq", "gptq_v2"), default="gptq_v2")
    args = parser.parse_args()
    options = {"method": args.method, "group_size": args.group_size, "fmt": args.format}
    quantize_directory(args.model, args.text.read_text(encoding="utf-8"), args.target, **options)


if __name__ == "__main__":
    main()
