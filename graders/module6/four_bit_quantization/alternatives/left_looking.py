"""Alternative: left-looking GPTQ, which updates nothing and lets each column ask for the errors before it; packing by
shift-or in int32; the product by strips of outputs; every linear quantised by itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
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


def _panel(w: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero of one group of columns (O, g)."""
    scale, zero = quant_params(w, symmetric=symmetric)
    codes = torch.clamp(torch.round(w / scale[:, None]) + zero[:, None], 0, 15)
    return codes.byte(), scale, zero


def _upper(H: Tensor) -> Tensor:
    """U^T U = H^-1 from one Cholesky factor: turn H by 180 degrees, H' = L L^T; then U is L^-1 turned back."""
    L = torch.linalg.cholesky(H.flip(0, 1))
    unit = torch.eye(len(H), dtype=H.dtype, device=H.device)
    return torch.linalg.solve_triangular(L, unit, upper=False).flip(0, 1)


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
    if symmetric:
        reach = torch.maximum(w.max(1).values, -w.min(1).values)
        scale, zero = 2 * reach / 15, torch.full((len(w),), 8, dtype=torch.uint8, device=w.device)
        return scale.masked_fill(reach == 0, 1.0), zero
    zeros = w.new_zeros(len(w), 1)
    padded = torch.cat((w, zeros), dim=1)
    lo, hi = torch.aminmax(padded, dim=1)
    scale = (hi - lo) / 15
    scale = scale.masked_fill(scale == 0, 1.0)
    return scale, torch.clamp(torch.round(-lo / scale), 0, 15).byte()


def quantize_rtn(W: Tensor, group_size: int, *, symmetric: bool = False) -> dict[str, Any]:
    """Round to nearest: {"q", "scale", "zero"} of W (O, I). Every group of group_size inputs has its own grid.

    q = clamp(round(w / scale) + zero, 0, 15). The rounding is of w / scale alone: zero is added afterwards.
    Errors: I % group_size != 0 -> ValueError containing "group_size"; NaN or inf in W -> "non-finite".
    """
    check_weight(W, group_size)
    panels = [_panel(W[:, a : a + group_size], symmetric) for a in range(0, W.shape[1], group_size)]
    return {
        "q": torch.cat([codes for codes, _, _ in panels], dim=1),
        "scale": torch.stack([scale for _, scale, _ in panels], dim=1),
        "zero": torch.stack([zero for _, _, zero in panels], dim=1),
    }


def dequantize(q: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """(q - zero) * scale: q (O, I) uint8, scale and zero (O, I/g) -> (O, I) in the dtype of scale.

    q and zero are unsigned: convert before you subtract.
    """
    spread = torch.arange(q.shape[1], device=q.device) // group_size
    signed = q.to(torch.int16) - zero.to(torch.int16)[:, spread]
    return signed * scale[:, spread]


# ---------------------------------------------------------------------------------------------------------------------
# Task 2: what is to be minimised
# ---------------------------------------------------------------------------------------------------------------------


def accumulate_hessian(batches: Iterable[Tensor]) -> Tensor:
    """H = (2/N) * sum of x x^T over all N tokens of all batches; every batch is (..., I), some may be empty.

    The result has the dtype of the batches; half precision is accumulated, and returned, in float32. Batches come one
    at a time and are not kept.
    Errors: no token at all -> ValueError containing "batches".
    """
    sums, tokens = [], 0
    for batch in batches:
        flat = batch.flatten(0, -2) if batch.ndim > 1 else batch[None]
        flat = flat if flat.dtype == torch.float64 else flat.float()
        here = torch.einsum("ni,nj->ij", flat, flat)
        sums = [sums[0] + here] if sums else [here]
        tokens += flat.shape[0]
    if tokens == 0:
        raise ValueError("batches are empty")
    return 2.0 / tokens * sums[0]


def layer_loss(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """tr((W - W_hat) H (W - W_hat)^T): with H = 2/N X^T X, twice the mean squared error of the layer's output."""
    check_hessian(W, H)
    error = W - W_hat
    return torch.einsum("oi,ij,oj->", error, H, error).item()


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
    inputs = W.shape[1]
    alive = H.diagonal() != 0
    kept = torch.where(alive, W, torch.zeros_like(W))
    padded = H + torch.diag_embed((~alive).to(H.dtype))
    padded = padded + percdamp * padded.diagonal().mean() * torch.eye(inputs, dtype=H.dtype, device=H.device)

    order = torch.arange(inputs, device=W.device)
    if act_order:
        order = torch.sort(-H.diagonal(), stable=True).indices
    U = _upper(padded[order[:, None], order[None, :]])
    moved = kept[:, order]

    # Left-looking: nothing is updated. E (O, I) holds the errors, and a column asks for its share when its turn comes.
    E = torch.zeros_like(moved)
    if act_order:
        fixed = quantize_rtn(kept, group_size, symmetric=symmetric)
        scales, zeros = fixed["scale"], fixed["zero"]
    else:
        scales = W.new_ones(len(W), inputs // group_size)
        zeros = torch.zeros(scales.shape, dtype=torch.uint8, device=W.device)
    q = torch.zeros(W.shape, dtype=torch.uint8, device=W.device)
    # Whole groups are brought up to date at once; block_size has nothing to say here.
    for a in range(0, inputs, group_size):
        b = a + group_size
        panel = moved[:, a:b] - E[:, :a] @ U[:a, a:b]
        if not act_order:
            scales[:, a // group_size], zeros[:, a // group_size] = quant_params(panel, symmetric=symmetric)
        for j in range(a, b):
            place = int(order[j])
            w = panel[:, j - a] - E[:, a:j] @ U[a:j, j]
            scale, zero = scales[:, place // group_size], zeros[:, place // group_size]
            q[:, place] = torch.clamp(torch.round(w / scale) + zero, 0, 15).byte()
            E[:, j] = (w - (q[:, place].to(w.dtype) - zero) * scale) / U[j, j]
    return {"q": q, "scale": scales, "zero": zeros, "loss": layer_loss(W, dequantize(q, scales, zeros, group_size), H)}


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
    tokens = X.reshape(-1, W.shape[1])
    a = tokens.abs().sum(0) / tokens.shape[0]
    gram = (tokens.T @ tokens).div_(tokens.shape[0])
    trials = []
    for k in range(n_grid):
        s = torch.clamp(a ** (k / n_grid), min=1e-4)
        s = s / torch.sqrt(s.max() * s.min())
        r = quantize_rtn(W * s[None, :], group_size, symmetric=symmetric)
        back = dequantize(r["q"], r["scale"], r["zero"], group_size) / s[None, :]
        trials.append((layer_loss(W, back, gram), k, r, s))
    losses = [trial[0] for trial in trials]
    _, k, r, s = trials[losses.index(min(losses))]
    return dict(r, channel_scale=s, ratio=k / n_grid, losses=losses)


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
    inverse = 1 / s
    prev.weight.data.copy_(prev.weight.data * inverse.view(-1, *[1] * (prev.weight.ndim - 1)))
    if isinstance(getattr(prev, "bias", None), Tensor):
        prev.bias.data.mul_(inverse)
    for linear in linears:
        linear.weight.data.copy_(linear.weight.data * s[None, :])


# ---------------------------------------------------------------------------------------------------------------------
# Task 7 (stretch): real nibbles
# ---------------------------------------------------------------------------------------------------------------------


def pack_gptq(q: Tensor) -> Tensor:
    """uint8 (O, I) -> int32 (I/8, O): bits 4j .. 4j+3 of word (r, c) are q[c, 8r + j], j = 0 .. 7.

    Errors: I % 8 != 0 -> ValueError containing "I % 8".
    """
    check_eights("I", q.shape[1])
    words = torch.zeros(q.shape[1] // 8, q.shape[0], dtype=torch.int32, device=q.device)
    for j in range(8):
        words |= q[:, j::8].T.to(torch.int32) << 4 * j
    return words


def unpack_gptq(words: Tensor) -> Tensor:
    """The inverse of `pack_gptq`: int32 (I/8, O) -> uint8 (O, I)."""
    q = torch.empty(words.shape[1], 8 * words.shape[0], dtype=torch.uint8, device=words.device)
    for j in range(8):
        q[:, j::8] = ((words >> 4 * j) & 15).T
    return q


def int4_matmul(x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """x (N, I) @ W_hat^T -> (N, O) in the dtype of x, from packed weights, never holding all of W_hat.

    qweight int32 (I/8, O) as `pack_gptq` makes it; scales (I/g, O) floating, zeros (I/g, O) of any integer dtype.
    Weights are dequantised in the dtype of x, float32 for half precision; sums are float32 or wider.
    Errors: group_size not a multiple of 8 -> ValueError containing "group_size".
    """
    if group_size % 8:
        raise ValueError(f"group_size = {group_size} must be a multiple of 8: words must not straddle groups")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs, outputs = 8 * qweight.shape[0], qweight.shape[1]
    spread = torch.arange(inputs, device=x.device) // group_size
    strips = []
    for a in range(0, outputs, 32):
        columns = slice(a, min(a + 32, outputs))
        codes = unpack_gptq(qweight[:, columns]).T
        steps = codes.to(wide) - zeros[:, columns].to(wide)[spread]
        steps *= scales[:, columns].to(wide)[spread]
        strips.append(x.to(wide) @ steps)
    return torch.cat(strips, dim=1).to(x.dtype)


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
        layer.qweight.copy_(pack_gptq(r["q"]))
        words = torch.zeros_like(layer.qzeros)
        for j in range(8):
            words |= r["zero"][j::8].T.to(torch.int32) << 4 * j
        layer.qzeros.copy_(words)
        layer.scales.copy_(r["scale"].T)
        if bias is not None:
            layer.bias = bias.detach().clone()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O) in the dtype of x."""
        zeros = torch.stack([(self.qzeros >> 4 * j) & 15 for j in range(8)], dim=-1).flatten(1)
        y = int4_matmul(x.flatten(0, -2) if x.ndim > 1 else x[None], self.qweight, self.scales, zeros, self.group_size)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def bits_per_weight(self) -> float:
        """8 * bytes of all buffers except the bias / (O * I)."""
        nbytes = sum(t.nbytes for t in (self.qweight, self.qzeros, self.scales))
        return nbytes * 8 / (self.in_features * self.out_features)


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
    twin = copy.deepcopy(model)
    twin.layer_losses = {}
    for groups in llama_groups(twin):
        if "awq" in method:
            for prev, linears in groups:
                stacked = torch.vstack([linear.weight for linear in linears])
                if prev.weight.shape[0] != stacked.shape[1]:
                    continue
                X = capture_inputs(twin, linears[0], calib_ids)
                options = {k: v for k, v in kw.items() if k in ("n_grid", "symmetric")}
                fold_scale(prev, linears, awq_search(stacked, X, group_size, **options)["channel_scale"])
        for _, linears in groups:
            H = accumulate_hessian([capture_inputs(twin, linears[0], calib_ids)])
            packed = []
            # Rows of a stacked matrix do not meet in GPTQ: one linear after the other gives the same codes.
            for linear in linears:
                if "gptq" in method:
                    options = {k: v for k, v in kw.items() if k != "n_grid"}
                    r = gptq_quantize(linear.weight.detach(), H, group_size, **options)
                else:
                    r = quantize_rtn(linear.weight.detach(), group_size, symmetric=kw.get("symmetric", False))
                W_hat = dequantize(r["q"], r["scale"], r["zero"], group_size)
                twin.layer_losses[module_name(twin, linear)] = layer_loss(linear.weight, W_hat, H)
                packed.append((linear, QuantLinear.from_quantized(r, group_size, bias=linear.bias)))
            for linear, layer in packed:
                replace_module(twin, linear, layer)
    return twin


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
    table = []
    reference = logits_of(model, eval_ids)
    p = reference.softmax(-1)
    targets = eval_ids[:, 1:]

    def ppl(logits: Tensor) -> float:
        picked = logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None])
        return picked.mean().neg().exp().item()

    for method, size in ((m, g) for m in methods for g in group_sizes):
        small = quantize_model(model, calib_ids, method, size)
        logits = logits_of(small, eval_ids)
        stored = weights = 0
        for layer in small.modules():
            if isinstance(layer, QuantLinear):
                stored += 8 * sum(t.nbytes for t in (layer.qweight, layer.qzeros, layer.scales))
                weights += layer.in_features * layer.out_features
        divergence = (p * (reference.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
        row = {"method": method, "group_size": size, "bits_per_weight": stored / weights}
        row |= {"kl": divergence.mean().item(), "ppl": ppl(logits), "ppl_fp": ppl(reference)}
        table.append(row | {"layer_losses": small.layer_losses})
    save_pareto(table)
    return table


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
    words = torch.zeros(q.shape[1], q.shape[0] // 8, dtype=torch.int32, device=q.device)
    for place, output in enumerate(AWQ_ORDER):
        words |= q[output::8].T.to(torch.int32) << 4 * place
    return words


def unpack_awq(words: Tensor) -> Tensor:
    """The inverse of `pack_awq`: int32 (I, O/8) -> uint8 (O, I)."""
    q = torch.empty(8 * words.shape[1], words.shape[0], dtype=torch.uint8, device=words.device)
    for place, output in enumerate(AWQ_ORDER):
        q[output::8] = ((words >> 4 * place) & 15).T
    return q


def export_checkpoint(model: nn.Module, path: str | Path, *, fmt: str = "gptq_v2") -> None:
    """Write a quantised model as a checkpoint directory that GPTQ loaders read: `write_checkpoint` does the writing.

    For each QuantLinear "name": name.qweight, name.scales and name.bias as they are, name.g_idx int32 (I,), the group of
    every input, and name.qzeros. fmt "gptq_v2" stores zero in the nibbles of qzeros; "gptq" (version 1) stores
    (zero - 1) mod 16. All other parameters under their own names.
    Errors: another fmt -> ValueError containing "fmt".
    """
    if fmt not in ("gptq", "gptq_v2"):
        raise ValueError(f"fmt must be 'gptq' or 'gptq_v2', got {fmt!r}")
    tensors = {}
    for name, module in model.named_modules():
        for key, tensor in list(module.named_parameters(recurse=False)) + list(module.named_buffers(recurse=False)):
            if isinstance(module, QuantLinear) or key in module.state_dict():
                tensors[f"{name}.{key}" if name else key] = tensor
        if isinstance(module, QuantLinear):
            groups = module.in_features // module.group_size
            g_idx = torch.arange(groups, dtype=torch.int32).repeat_interleave(module.group_size)
            tensors[name + ".g_idx"] = g_idx
            if fmt == "gptq":
                words = torch.zeros_like(module.qzeros)
                for j in range(8):
                    words |= ((((module.qzeros >> 4 * j) & 15) + 15) & 15) << 4 * j
                tensors[name + ".qzeros"] = words
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
