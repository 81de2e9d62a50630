"""Alternative: GPTQ by recursive halving with an explicit inverse; packing by powers of 16 in int64; the product nibble by
nibble; channel scales through logarithms.
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


class _State:
    """GPTQ by halving: quantise the left half of a range, push its errors into the right half, go on there."""

    def __init__(self, weight: Tensor, group_size: int, symmetric: bool) -> None:
        outputs, inputs = weight.shape
        self.weight, self.group_size, self.symmetric = weight, group_size, symmetric
        self.order, self.fixed = list(range(inputs)), False
        self.q = torch.zeros((outputs, inputs), dtype=torch.uint8, device=weight.device)
        self.scale = weight.new_zeros(outputs, inputs // group_size)
        self.zero = torch.zeros(self.scale.shape, dtype=torch.uint8, device=weight.device)

    def fix_grids(self) -> None:
        self.fixed = True
        for group in range(self.scale.shape[1]):
            self.set_grid(group, group * self.group_size)

    def set_grid(self, group: int, start: int) -> None:
        columns = self.weight[:, start : start + self.group_size]
        self.scale[:, group], self.zero[:, group] = quant_params(columns, symmetric=self.symmetric)

    def solve(self, start: int, end: int) -> Tensor:
        """Quantise the columns start .. end-1, which know of all errors before them; -> their errors."""
        if end - start == 1:
            return self.column(start)
        middle = (start + end) // 2
        if end - start > self.group_size:
            # A group must be up to date as a whole when its first column is reached: never cut through one.
            middle = start + max(1, (middle - start) // self.group_size) * self.group_size
        left = self.solve(start, middle)
        self.weight[:, middle:end] -= left @ self.U[start:middle, middle:end]
        return torch.cat((left, self.solve(middle, end)), dim=1)

    def column(self, j: int) -> Tensor:
        place = self.order[j]
        group = place // self.group_size
        if not self.fixed and j % self.group_size == 0:
            self.set_grid(group, j)
        w, scale, zero = self.weight[:, j], self.scale[:, group], self.zero[:, group]
        code = (torch.round(w / scale) + zero).clamp(0, 15)
        self.q[:, place] = code.to(torch.uint8)
        return ((w - scale * (code - zero)) / self.U[j, j])[:, None]


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
    lo, hi = w.min(dim=-1).values, w.max(dim=-1).values
    none = torch.zeros_like(lo)
    if symmetric:
        width = 2 * torch.max(hi.abs(), lo.abs())
        zero = none + 8
    else:
        lo, hi = torch.min(lo, none), torch.max(hi, none)
        width = hi - lo
    scale = torch.where(width / 15 > 0, width / 15, none + 1)
    if not symmetric:
        zero = torch.round(none - lo / scale).clamp_(0, 15)
    return scale, zero.to(torch.uint8)


def quantize_rtn(W: Tensor, group_size: int, *, symmetric: bool = False) -> dict[str, Any]:
    """Round to nearest: {"q", "scale", "zero"} of W (O, I). Every group of group_size inputs has its own grid.

    q = clamp(round(w / scale) + zero, 0, 15). The rounding is of w / scale alone: zero is added afterwards.
    Errors: I % group_size != 0 -> ValueError containing "group_size"; NaN or inf in W -> "non-finite".
    """
    check_weight(W, group_size)
    grouped = W.unflatten(1, (-1, group_size))
    scale, zero = quant_params(grouped.flatten(0, 1), symmetric=symmetric)
    scale, zero = scale.view(grouped.shape[:2]), zero.view(grouped.shape[:2])
    q = (torch.round(grouped / scale.unsqueeze(-1)) + zero.unsqueeze(-1)).clamp(0, 15)
    return {"q": q.flatten(1).to(torch.uint8), "scale": scale, "zero": zero}


def dequantize(q: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """(q - zero) * scale: q (O, I) uint8, scale and zero (O, I/g) -> (O, I) in the dtype of scale.

    q and zero are unsigned: convert before you subtract.
    """
    full_scale = scale.repeat_interleave(group_size, dim=1)
    full_zero = zero.repeat_interleave(group_size, dim=1)
    return full_scale * q - full_scale * full_zero


# ---------------------------------------------------------------------------------------------------------------------
# Task 2: what is to be minimised
# ---------------------------------------------------------------------------------------------------------------------


def accumulate_hessian(batches: Iterable[Tensor]) -> Tensor:
    """H = (2/N) * sum of x x^T over all N tokens of all batches; every batch is (..., I), some may be empty.

    The result has the dtype of the batches; half precision is accumulated, and returned, in float32. Batches come one
    at a time and are not kept.
    Errors: no token at all -> ValueError containing "batches".
    """
    H, tokens = 0.0, 0
    for batch in batches:
        x = batch.contiguous().view(-1, batch.shape[-1])
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # A running mean: what was there is weighed down, what comes is weighed in.
        if len(x):
            tokens += len(x)
            H = H * ((tokens - len(x)) / tokens) + (x.mT @ x) * (2 / tokens)
    if tokens == 0:
        raise ValueError("batches contain nothing")
    return H


def layer_loss(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """tr((W - W_hat) H (W - W_hat)^T): with H = 2/N X^T X, twice the mean squared error of the layer's output."""
    check_hessian(W, H)
    error = (W - W_hat).unsqueeze(1)
    return float((error @ H @ error.mT).sum())


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
    n = W.shape[1]
    weight, matrix = W.clone(), H.clone()
    for d in torch.nonzero(H.diagonal() == 0).flatten().tolist():
        matrix[d, d] = 1
        weight[:, d] = 0
    matrix = matrix + torch.eye(n, dtype=H.dtype, device=H.device) * (percdamp * matrix.trace() / n)

    state = _State(weight, group_size, symmetric)
    if act_order:
        state.fix_grids()
        state.order = sorted(range(n), key=H.diagonal().tolist().__getitem__, reverse=True)
    permutation = torch.tensor(state.order, device=W.device)
    state.weight = weight[:, permutation]
    state.U = torch.linalg.cholesky(torch.linalg.inv(matrix[permutation][:, permutation])).mT
    state.solve(0, n)
    W_hat = dequantize(state.q, state.scale, state.zero, group_size)
    return {"q": state.q, "scale": state.scale, "zero": state.zero, "loss": layer_loss(W, W_hat, H)}


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
    X = X.flatten(0, -2) if X.ndim > 1 else X[None]
    H = torch.einsum("ni,nj->ij", X, X) / X.shape[0]
    log_a = X.abs().mean(0).log()
    best, losses, result = math.inf, [], {}
    for k in range(n_grid):
        ratio = k / n_grid
        # exp(0 * log 0) is NaN: the first ratio is 1 everywhere
        s = torch.exp(ratio * log_a).clamp(min=1e-4) if k else torch.ones_like(log_a)
        s = s * (s.amax() * s.amin()).rsqrt()
        q, scale, zero = quantize_rtn(W * s, group_size, symmetric=symmetric).values()
        loss = layer_loss(W * s, dequantize(q, scale, zero, group_size), H / torch.outer(s, s))
        losses.append(loss)
        if loss < best:
            best = loss
            result = {"q": q, "scale": scale, "zero": zero, "channel_scale": s, "ratio": ratio}
    result["losses"] = losses
    return result


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
    with torch.no_grad():
        for parameter in prev.parameters(recurse=False):
            # weights and biases alike: the first axis counts the outputs
            parameter.copy_(torch.einsum("o...,o->o...", parameter, s.reciprocal()))
        for linear in linears:
            linear.weight.copy_(torch.einsum("oi,i->oi", linear.weight, s))


# ---------------------------------------------------------------------------------------------------------------------
# Task 7 (stretch): real nibbles
# ---------------------------------------------------------------------------------------------------------------------


def pack_gptq(q: Tensor) -> Tensor:
    """uint8 (O, I) -> int32 (I/8, O): bits 4j .. 4j+3 of word (r, c) are q[c, 8r + j], j = 0 .. 7.

    Errors: I % 8 != 0 -> ValueError containing "I % 8".
    """
    check_eights("I", q.shape[1])
    powers = torch.tensor([16**j for j in range(8)], dtype=torch.int64, device=q.device)
    values = (q.to(torch.int64).unflatten(1, (-1, 8)) * powers).sum(-1).T
    return torch.where(values >= 2**31, values - 2**32, values).to(torch.int32)


def unpack_gptq(words: Tensor) -> Tensor:
    """The inverse of `pack_gptq`: int32 (I/8, O) -> uint8 (O, I)."""
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    nibbles = torch.stack([unsigned // 16**j % 16 for j in range(8)], dim=1)
    return nibbles.flatten(0, 1).T.contiguous().to(torch.uint8)


def int4_matmul(x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """x (N, I) @ W_hat^T -> (N, O) in the dtype of x, from packed weights, never holding all of W_hat.

    qweight int32 (I/8, O) as `pack_gptq` makes it; scales (I/g, O) floating, zeros (I/g, O) of any integer dtype.
    Weights are dequantised in the dtype of x, float32 for half precision; sums are float32 or wider.
    Errors: group_size not a multiple of 8 -> ValueError containing "group_size".
    """
    if group_size % 8:
        raise ValueError(f"group_size = {group_size} must be a multiple of 8: words must not straddle groups")
    wide = torch.promote_types(x.dtype, torch.float32)
    groups = scales.shape[0]
    partial = torch.zeros(x.shape[0], scales.shape[1], dtype=wide, device=x.device)
    for block, rows in zip(x.to(wide).split(group_size, dim=1), range(groups)):
        words = qweight[rows * group_size // 8 : (rows + 1) * group_size // 8]
        scale = scales[rows].to(wide)
        for j in range(8):
            # The j-th nibble of every word belongs to the inputs j, j+8, j+16, ... of the group.
            steps = (words.bitwise_right_shift(4 * j) & 15).to(wide) - zeros[rows].to(wide)
            partial += (block[:, j::8] @ steps) * scale
    return partial.to(x.dtype)


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
        packed_zero = pack_gptq(r["zero"].T.contiguous())
        state = {"qweight": pack_gptq(r["q"]), "qzeros": packed_zero.T, "scales": r["scale"].T.half()}
        for name, value in state.items():
            layer.register_buffer(name, value.contiguous())
        if bias is not None:
            layer.register_buffer("bias", bias.detach().clone())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O) in the dtype of x."""
        shape = x.shape[:-1]
        y = int4_matmul(
            x.reshape(-1, x.shape[-1]), self.qweight, self.scales, unpack_gptq(self.qzeros.mT.contiguous()), self.group_size
        )
        if self.bias is not None:
            y += self.bias
        return y.reshape(*shape, self.out_features)

    def bits_per_weight(self) -> float:
        """8 * bytes of all buffers except the bias / (O * I)."""
        state = {name: t for name, t in self.state_dict().items() if name != "bias"}
        return sum(t.numel() * t.element_size() * 8 for t in state.values()) / self.in_features / self.out_features


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
    result = copy.deepcopy(model)
    result.layer_losses = {}
    symmetric = kw.get("symmetric", False)

    def quantise(W: Tensor, H: Tensor) -> dict[str, Any]:
        if method in ("rtn", "awq"):
            return quantize_rtn(W, group_size, symmetric=symmetric)
        chosen = {k: kw[k] for k in ("block_size", "percdamp", "act_order") if k in kw}
        return gptq_quantize(W, H, group_size, symmetric=symmetric, **chosen)

    def search(prev: nn.Module, linears: list[nn.Linear]) -> None:
        W = torch.cat([linear.weight.detach() for linear in linears])
        if len(prev.weight) == W.shape[1]:
            X = capture_inputs(result, linears[0], calib_ids)
            found = awq_search(W, X, group_size, n_grid=kw.get("n_grid", 20), symmetric=symmetric)
            fold_scale(prev, linears, found["channel_scale"])

    def settle(linears: list[nn.Linear]) -> None:
        H = accumulate_hessian(iter([capture_inputs(result, linears[0], calib_ids)]))
        W = torch.cat([linear.weight.detach() for linear in linears])
        r = quantise(W, H)
        sizes = [linear.out_features for linear in linears]
        pieces = [r[key].split(sizes) for key in ("q", "scale", "zero")]
        for linear, q, scale, zero in zip(linears, *pieces):
            stored = scale.half().to(scale.dtype)
            lost = layer_loss(linear.weight, dequantize(q, stored, zero, group_size), H)
            result.layer_losses[module_name(result, linear)] = lost
            r = {"q": q, "scale": scale, "zero": zero}
            replace_module(result, linear, QuantLinear.from_quantized(r, group_size, linear.bias))

    for block in llama_groups(result):
        if method in ("awq", "awq+gptq"):
            for prev, linears in block:
                search(prev, linears)
        for _, linears in block:
            settle(linears)
    return result


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
    rows = []
    fp = logits_of(model, eval_ids).double()
    vocabulary = fp.shape[-1]

    def perplexity(logits: Tensor) -> float:
        return F.cross_entropy(logits[:, :-1].reshape(-1, vocabulary), eval_ids[:, 1:].reshape(-1)).exp().item()

    for method in methods:
        for group_size in group_sizes:
            quantised = quantize_model(model, calib_ids, method, group_size)
            logits = logits_of(quantised, eval_ids).double()
            kl = F.kl_div(
                logits.log_softmax(-1).view(-1, vocabulary),
                fp.log_softmax(-1).view(-1, vocabulary),
                reduction="batchmean",
                log_target=True,
            )
            layers = [m for m in quantised.modules() if isinstance(m, QuantLinear)]
            weights = sum(8 * m.qweight.numel() for m in layers)
            rows.append(
                {
                    "method": method,
                    "group_size": group_size,
                    "bits_per_weight": sum(m.bits_per_weight() * 8 * m.qweight.numel() for m in layers) / weights,
                    "kl": kl.item(),
                    "ppl": perplexity(logits),
                    "ppl_fp": perplexity(fp),
                    "layer_losses": quantised.layer_losses,
                }
            )
    save_pareto(rows)
    return rows


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
    interleaved = q.T.unflatten(1, (-1, 8))[:, :, torch.tensor(AWQ_ORDER, device=q.device)]
    powers = torch.tensor([16**j for j in range(8)], dtype=torch.int64, device=q.device)
    values = (interleaved * powers).sum(-1)
    return torch.where(values >= 2**31, values - 2**32, values).to(torch.int32)


def unpack_awq(words: Tensor) -> Tensor:
    """The inverse of `pack_awq`: int32 (I, O/8) -> uint8 (O, I)."""
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    nibble_of = torch.tensor(AWQ_ORDER, device=words.device).argsort()
    nibbles = unsigned[..., None] // 16**nibble_of % 16
    return nibbles.flatten(1).T.contiguous().to(torch.uint8)


def export_checkpoint(model: nn.Module, path: str | Path, *, fmt: str = "gptq_v2") -> None:
    """Write a quantised model as a checkpoint directory that GPTQ loaders read: `write_checkpoint` does the writing.

    For each QuantLinear "name": name.qweight, name.scales and name.bias as they are, name.g_idx int32 (I,), the group of
    every input, and name.qzeros. fmt "gptq_v2" stores zero in the nibbles of qzeros; "gptq" (version 1) stores
    (zero - 1) mod 16. All other parameters under their own names.
    Errors: another fmt -> ValueError containing "fmt".
    """
    if fmt not in ("gptq", "gptq_v2"):
        raise ValueError(f"fmt must be 'gptq' or 'gptq_v2', got {fmt!r}")
    tensors = {name: tensor for name, tensor in model.state_dict().items()}
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLinear)]:
        group_of = [i // layer.group_size for i in range(layer.in_features)]
        tensors[name + ".g_idx"] = torch.tensor(group_of, dtype=torch.int32)
        if fmt == "gptq":
            zero = unpack_gptq(layer.qzeros.T.contiguous())
            zero = torch.where(zero == 0, torch.full_like(zero, 15), zero - 1)
            tensors[name + ".qzeros"] = pack_gptq(zero).T
    write_checkpoint(model, path, tensors, fmt)


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
