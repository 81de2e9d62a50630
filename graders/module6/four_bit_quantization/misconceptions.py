"""Wrong readings of 4-bit quantization, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `_codes`, `_nibbles`, `_words` and
`_inverse_factor` are its helpers. The functions without a decorator are shared by the entries below them.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import torch

from llmkata.checks import misconception


def run_gptq(W, H, group_size, options, *, factor=None, push=None, dead_first=True, zero_dead=True, stale=False,
             permuted=False, block=None):
    """GPTQ as in the model answer, with one part of it left out or exchanged."""
    symmetric, act_order = options.get("symmetric", False), options.get("act_order", False)
    percdamp = options.get("percdamp", 0.01)
    check_weight(W, group_size)
    check_hessian(W, H)
    block = block or options.get("block_size", 128)
    if block % group_size and group_size % block:
        raise ValueError(f"block_size = {block} must divide group_size = {group_size} or be a multiple of it")
    inputs, work, hessian = W.shape[1], W.clone(), H.clone()
    dead = H.diagonal() == 0
    mean = hessian.diagonal().mean()
    if zero_dead:
        hessian.diagonal().masked_fill_(dead, 1.0)
        work.masked_fill_(dead, 0.0)
    damp = percdamp * (hessian.diagonal().mean() if dead_first else mean)
    columns = torch.arange(inputs)
    static = quantize_rtn(work, group_size, symmetric=symmetric) if act_order else None
    if act_order:
        columns = torch.argsort(H.diagonal(), descending=True, stable=True)
        work, hessian = work[:, columns], hessian[columns][:, columns]
    hessian.diagonal().add_(damp)
    U = (factor or _inverse_factor)(hessian)
    q = torch.empty(W.shape, dtype=torch.uint8)
    scales = W.new_empty(W.shape[0], inputs // group_size)
    zeros = torch.empty(scales.shape, dtype=torch.uint8)
    if static is not None:
        scales, zeros = static["scale"], static["zero"]
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        errors, before = work.new_zeros(W.shape[0], end - start), work.clone() if stale else work
        for j in range(start, end):
            column = int(columns[j])
            group = column // group_size
            if static is None and j % group_size == 0:
                seen = before if stale else work
                scales[:, group], zeros[:, group] = quant_params(seen[:, j : j + group_size], symmetric=symmetric)
            code = _codes(work[:, j], scales[:, group], zeros[:, group])
            q[:, j if permuted else column] = code.to(torch.uint8)
            off = work[:, j] - (code - zeros[:, group]) * scales[:, group]
            error = off / U[j, j] if push is None else push(off, U[j, j])
            errors[:, j - start] = error
            work[:, j + 1 : end] -= error[:, None] * U[j, j + 1 : end]
        work[:, end:] -= errors @ U[start:end, end:]
    loss = layer_loss(W, dequantize(q, scales, zeros, group_size), H)
    return {"q": q, "scale": scales, "zero": zeros, "loss": loss}


# --- the grid ---------------------------------------------------------------------------------------------------------


@misconception(
    "range_without_zero",
    replaces="quant_params",
    caught_by="test_rtn_grid",
    feedback="Your range goes from the smallest to the largest weight of the group. It must include 0: lo = min(w, 0), "
    "hi = max(w, 0), or a group of one sign cannot be represented with a zero between 0 and 15.",
)
def quant_params(w, *, symmetric=False):
    if symmetric:
        return original(w, symmetric=True)
    lo, hi = w.amin(dim=1), w.amax(dim=1)
    scale = (hi - lo) / 15
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, (-lo / scale).round().clamp(0, 15).to(torch.uint8)


@misconception(
    "rounds_after_zero",
    replaces="_codes",
    caught_by="test_rtn_rules",
    feedback="You round w / scale + zero. Round w / scale alone and add zero afterwards: at a tie with an odd zero, half "
    "to even goes the other way.",
)
def codes(w, scale, zero):
    return (w / scale + zero).round().clamp(0, 15)


@misconception(
    "unsigned_difference",
    replaces="dequantize",
    caught_by="test_rtn_grid",
    feedback="q - zero wraps around in uint8: 3 - 5 is 254. Convert to a signed or floating type first.",
)
def dequantize(q, scale, zero, group_size):
    steps = q.view(*zero.shape, group_size).to(torch.uint8) - zero[..., None].to(torch.uint8)
    return (steps.to(scale.dtype) * scale[..., None]).view(q.shape)


# --- the Hessian ------------------------------------------------------------------------------------------------------


@misconception(
    "mean_of_batches",
    replaces="accumulate_hessian",
    caught_by="test_hessian_streaming",
    feedback="You average the batches, so that a token in a small batch weighs more. Sum x x^T over all tokens and divide "
    "by their number once.",
)
def accumulate_hessian(batches):
    means = []
    for batch in batches:
        if batch.numel():
            means.append(original([batch]))
    return sum(means) / len(means) if means else original([])


# --- GPTQ -------------------------------------------------------------------------------------------------------------


@misconception(
    "no_error_feedback",
    replaces="gptq_quantize",
    caught_by="test_gptq_exact_f64",
    feedback="Your GPTQ is round-to-nearest: every column's rounding error must be pushed onto the columns not yet "
    "quantised.",
)
def gptq_quantize(W, H, group_size, **options):
    return run_gptq(W, H, group_size, options, push=lambda off, u: 0 * off)


@misconception(
    "hessian_not_inverse",
    replaces="_inverse_factor",
    caught_by="test_gptq_exact_f64",
    feedback="The update direction is a row of the Cholesky factor of the *inverse* Hessian.",
)
def inverse_factor(hessian):
    return torch.linalg.cholesky(hessian, upper=True)


@misconception(
    "divide_by_diag_inverse",
    replaces="gptq_quantize",
    caught_by="test_gptq_exact_f64",
    feedback="You mixed OBQ's formula with the Cholesky factor: divide by U_jj, not by its square.",
)
def gptq_quantize(W, H, group_size, **options):
    return run_gptq(W, H, group_size, options, push=lambda off, u: off / u**2)


@misconception(
    "stale_groups",
    replaces="gptq_quantize",
    caught_by="test_gptq_block_invariance",
    feedback="Scales of a group that starts inside a block must see the compensated weights; your answer changes with "
    "block_size.",
)
def gptq_quantize(W, H, group_size, **options):
    return run_gptq(W, H, group_size, options, stale=True)


@misconception(
    "no_dead_columns",
    replaces="gptq_quantize",
    caught_by="test_gptq_dead_inputs",
    feedback="A channel that is never active makes H singular, and its weights only widen the grids: treat dead columns "
    "before damping.",
)
def gptq_quantize(W, H, group_size, **options):
    return run_gptq(W, H, group_size, options, zero_dead=False)


@misconception(
    "damp_before_dead",
    replaces="gptq_quantize",
    caught_by="test_gptq_dead_inputs",
    feedback="The mean that damps is that of the diagonal with the ones of dead inputs in it: treat dead columns before "
    "damping.",
)
def gptq_quantize(W, H, group_size, **options):
    return run_gptq(W, H, group_size, options, dead_first=False)


@misconception(
    "codes_in_quantised_order",
    replaces="gptq_quantize",
    caught_by="test_gptq_act_order",
    feedback="Your codes stand in the order in which they were found. With act_order, put each one back to its column.",
)
def gptq_quantize(W, H, group_size, **options):
    return run_gptq(W, H, group_size, options, permuted=True)


@misconception(
    "symmetric_sevenths",
    replaces="quant_params",
    caught_by="test_symmetric",
    feedback="Your symmetric scale is max|w| / 7. Here it is 2 max|w| / 15: all sixteen codes are used.",
)
def quant_params(w, *, symmetric=False):
    scale, zero = original(w, symmetric=symmetric)
    return (scale * 15 / 14 if symmetric else scale), zero


# --- AWQ --------------------------------------------------------------------------------------------------------------


def run_awq(W, X, group_size, n_grid, symmetric, importance, *, inverted=False):
    check_weight(W, group_size)
    x = X.reshape(-1, X.shape[-1])
    gram, losses, best = x.T @ x / len(x), [], None
    for k in range(n_grid):
        s = importance.pow(k / n_grid).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        factor = 1 / s if inverted else s
        r = quantize_rtn(W * factor, group_size, symmetric=symmetric)
        losses.append(layer_loss(W, dequantize(r["q"], r["scale"], r["zero"], group_size) / factor, gram))
        if best is None or losses[-1] < losses[best[0]]:
            best = (k, r, s)
    k, r, s = best
    return {**r, "channel_scale": s, "ratio": k / n_grid, "losses": losses}


@misconception(
    "awq_scale_on_weights_stat",
    replaces="awq_search",
    caught_by="test_awq_search",
    feedback="AWQ protects channels with large *activations*; large weights are not what makes a channel salient.",
)
def awq_search(W, X, group_size, *, n_grid=20, symmetric=False):
    return run_awq(W, X, group_size, n_grid, symmetric, W.abs().mean(dim=0))


@misconception(
    "awq_scale_inverted",
    replaces="awq_search",
    caught_by="test_awq_search",
    feedback="You shrank the salient channels; scale weights up, activations down.",
)
def awq_search(W, X, group_size, *, n_grid=20, symmetric=False):
    importance = X.reshape(-1, X.shape[-1]).abs().mean(dim=0)
    return run_awq(W, X, group_size, n_grid, symmetric, importance, inverted=True)


@misconception(
    "fold_forgets_bias",
    replaces="fold_scale",
    caught_by="test_fold_preserves_function",
    feedback="Folding must divide the previous op's bias too, or the function changes.",
)
def fold_scale(prev, linears, s):
    bias = None if getattr(prev, "bias", None) is None else prev.bias.detach().clone()
    original(prev, linears, s)
    if bias is not None:
        with torch.no_grad():
            prev.bias.copy_(bias)


# --- nibbles, checkpoints ---------------------------------------------------------------------------------------------


@misconception(
    "sign_is_dragged_along",
    replaces="unpack_gptq",
    caught_by="test_pack_gptq",
    feedback="A word whose top nibble is 8 or more is negative, and >> fills up with ones: mask the top nibble as well.",
)
def unpack_gptq(words):
    nibbles = [(words >> 4 * j) & 15 for j in range(7)] + [words >> 28]
    return torch.stack(nibbles, dim=1).reshape(-1, words.shape[1]).T.to(torch.uint8)


@misconception(
    "nibble_order_linear_awq",
    replaces="pack_awq",
    caught_by="test_pack_awq",
    feedback="AWQ interleaves nibbles (0,2,4,6,1,3,5,7) so that the GPU can unpack pairs; your file would load as noise.",
)
def pack_awq(q):
    check_eights("O", q.shape[0])
    return _words(q.T.reshape(q.shape[1], -1, 8), dim=2)


@misconception(
    "zeros_as_they_are",
    replaces="export_checkpoint",
    caught_by="test_export_checkpoint",
    feedback="The first version of the format stores zero - 1, modulo 16; only gptq_v2 stores zero itself. Loaders of the "
    "first would shift every weight by one step.",
)
def export_checkpoint(model, path, *, fmt="gptq_v2"):
    if fmt != "gptq":
        return original(model, path, fmt=fmt)
    tensors = dict(model.state_dict())
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            tensors[f"{name}.g_idx"] = (torch.arange(layer.in_features) // layer.group_size).to(torch.int32)
    write_checkpoint(model, path, tensors, fmt)


# --- whole models -----------------------------------------------------------------------------------------------------


@misconception(
    "calibrate_on_fp_model",
    replaces="capture_inputs",
    caught_by="test_model_sequential",
    feedback="Layer k must be calibrated on what it will really receive: the output of quantised layers 0..k-1.",
)
def capture_inputs(model, linear, ids):
    """Of the linears that were there when the copy was first seen: nothing is quantised in them."""
    if not hasattr(model, "_before"):
        before, seen = copy.deepcopy(model), {}
        for name, module in before.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
        with torch.no_grad():
            before(input_ids=ids)
        object.__setattr__(model, "_before", seen)
    x = model._before[module_name(model, linear)]
    return x.reshape(-1, x.shape[-1])


# --- right answers at the wrong price ---------------------------------------------------------------------------------


@misconception(
    "full_remainder",
    replaces="gptq_quantize",
    caught_by="test_lazy_blocks",
    matches="pointwise",
    feedback="Each column updates everything to its right: O I² elements are read and written. Update the block at once, "
    "what lies behind it once a block, by one product.",
)
def gptq_quantize(W, H, group_size, **options):
    return run_gptq(W, H, group_size, options, block=W.shape[1])


@misconception(
    "inverse_every_column",
    replaces="_inverse_factor",
    caught_by="test_one_factorisation",
    matches="flops",
    feedback="You invert what is left of the Hessian at every column. All of these inverses are in one Cholesky factor of "
    "H^-1.",
)
def inverse_factor(hessian):
    U = torch.zeros_like(hessian)
    for j in range(len(hessian)):
        inverse = torch.linalg.inv(hessian[j:, j:])
        U[j, j:] = inverse[0] / inverse[0, 0].sqrt()
    return U


@misconception(
    "inputs_through_every_candidate",
    replaces="awq_search",
    caught_by="test_gram_not_tokens",
    matches="flops",
    feedback="Every candidate sees all calibration tokens. Their Gram matrix X^T X says the same about the loss, for 1/N of "
    "the price.",
)
def awq_search(W, X, group_size, *, n_grid=20, symmetric=False):
    check_weight(W, group_size)
    x, losses, best = X.reshape(-1, X.shape[-1]), [], None
    importance = x.abs().mean(dim=0)
    for k in range(n_grid):
        s = importance.pow(k / n_grid).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        r = quantize_rtn(W * s, group_size, symmetric=symmetric)
        off = x @ (W - dequantize(r["q"], r["scale"], r["zero"], group_size) / s).T
        losses.append(float(off.pow(2).sum() / len(x)))
        if best is None or losses[-1] < losses[best[0]] * (1 - 1e-12):
            best = (k, r, s)
    k, r, s = best
    return {**r, "channel_scale": s, "ratio": k / n_grid, "losses": losses}


@misconception(
    "dequantises_everything",
    replaces="int4_matmul",
    caught_by="test_no_fp32_matrix",
    matches="peak_bytes",
    feedback="You unpack the whole matrix before you multiply: at that moment the model is as large as it was. Dequantise a "
    "group at a time.",
)
def int4_matmul(x, qweight, scales, zeros, group_size):
    if group_size % 8:
        raise ValueError(f"group_size = {group_size} must be a multiple of 8: words must not straddle groups")
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    weight = dequantize(unpack_gptq(qweight), scales.T.to(wide), zeros.T, group_size)
    return (x.to(wide) @ weight.T).to(x.dtype)


@misconception(
    "float32_scales",
    replaces="QuantLinear.from_quantized",
    caught_by="test_quantlinear_state",
    feedback="Your scales are stored in float32: with groups of 32 that is half a bit more for every weight. float16 is "
    "what the layout has.",
)
@classmethod
def from_quantized(cls, r, group_size, bias=None):
    outputs, inputs = r["q"].shape
    layer = cls(inputs, outputs, group_size)
    layer.qweight = pack_gptq(r["q"])
    layer.qzeros = pack_gptq(r["zero"].T).T.contiguous()
    layer.scales = r["scale"].T.float().contiguous()
    layer.bias = None if bias is None else bias.detach().clone()
    return layer
