"""Wrong readings of normalisation, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `statistics_dtype`, `check_affine` and
the rest are its helpers. But for its own mistake each does what the model answer does.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import copy
import dataclasses
import itertools
import math

import torch

from llmkata.checks import misconception


def finish(x_hat, weight, bias, dtype):
    """Gain and bias in the dtype of x_hat, then one rounding."""
    y = x_hat if weight is None else x_hat * weight.to(x_hat.dtype)
    y = y if bias is None else y + bias.to(y.dtype)
    return y.to(dtype)


def centre(x):
    """x minus its row means in the dtype of sums, and the biased variance."""
    x = x.to(statistics_dtype(x.dtype))
    centred = x - x.mean(-1, keepdim=True)
    return centred, centred.square().mean(-1, keepdim=True)


# --- the functions ----------------------------------------------------------------------------------------------------


@misconception(
    "unbiased_variance",
    replaces="layer_norm",
    caught_by="test_layer_norm_matches",
    feedback="You divided by d - 1 (the default of torch.var and torch.std): normalisation layers use the biased "
    "variance.",
)
def layer_norm(x, weight, bias, eps=1e-5):
    check_affine(x, weight, bias)
    centred, variance = centre(x)
    d = x.shape[-1]
    return finish(centred * (variance * (d / (d - 1) if d > 1 else math.nan) + eps).rsqrt(), weight, bias, x.dtype)


@misconception(
    "eps_outside_root",
    replaces="layer_norm",
    caught_by="test_layer_norm_matches",
    feedback="eps belongs under the root; on rows of small spread 1/(sqrt(v) + eps) and 1/sqrt(v + eps) differ by "
    "orders of magnitude.",
)
def layer_norm(x, weight, bias, eps=1e-5):
    check_affine(x, weight, bias)
    centred, variance = centre(x)
    return finish(centred / (variance.sqrt() + eps), weight, bias, x.dtype)


@misconception(
    "wrong_axis",
    replaces="layer_norm",
    caught_by="test_layer_norm_matches",
    feedback="Each token is normalised by itself, over its features; yours changes with its neighbours.",
)
def layer_norm(x, weight, bias, eps=1e-5):
    check_affine(x, weight, bias)
    xf = x.to(statistics_dtype(x.dtype))
    axis = -2 if x.dim() > 1 else -1
    centred = xf - xf.mean(axis, keepdim=True)
    return finish(centred * (centred.square().mean(axis, keepdim=True) + eps).rsqrt(), weight, bias, x.dtype)


@misconception(
    "one_number_for_all",
    replaces="layer_norm",
    caught_by="test_layer_norm_matches",
    feedback="You take one mean and one variance over the whole tensor: every row (token) has its own, so dim=-1 and "
    "keepdim=True.",
)
def layer_norm(x, weight, bias, eps=1e-5):
    check_affine(x, weight, bias)
    xf = x.to(statistics_dtype(x.dtype))
    centred = xf - xf.mean()
    return finish(centred * (centred.square().mean() + eps).rsqrt(), weight, bias, x.dtype)


@misconception(
    "one_pass_variance",
    replaces="layer_norm",
    caught_by="test_offset_data",
    feedback="E[x²] - E[x]² cancels: with a mean of 10 000 nothing of the variance is left in float32. Centre first, "
    "then take the mean of the squares.",
)
def layer_norm(x, weight, bias, eps=1e-5):
    check_affine(x, weight, bias)
    xf = x.to(statistics_dtype(x.dtype))
    mean = xf.mean(-1, keepdim=True)
    variance = xf.square().mean(-1, keepdim=True) - mean.square()
    return finish((xf - mean) * (variance + eps).rsqrt(), weight, bias, x.dtype)


@misconception(
    "rms_centres",
    replaces="rms_norm",
    caught_by="test_rms_norm_matches",
    feedback="That is LayerNorm without bias: RMSNorm does not centre.",
)
def rms_norm(x, weight, eps=1e-6):
    return layer_norm(x, weight, None, eps)


@misconception(
    "rms_by_sum",
    replaces="rms_norm",
    caught_by="test_rms_norm_matches",
    feedback="You divided by the length of the row, sqrt(Σ x²): the root *mean* square is smaller by sqrt(d).",
)
def rms_norm(x, weight, eps=1e-6):
    check_affine(x, weight)
    xf = x.to(statistics_dtype(x.dtype))
    return finish(xf * (xf.square().sum(-1, keepdim=True) + eps).rsqrt(), weight, None, x.dtype)


@misconception(
    "square_in_half",
    replaces="RMSNormFunction.forward",
    caught_by="test_half_precision",
    feedback="x² overflows float16 beyond 255 and keeps 8 bits in bfloat16: square, sum and scale in float32.",
)
def forward(ctx, x, weight, eps):
    rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    ctx.save_for_backward(x, weight, rstd.to(statistics_dtype(x.dtype)))
    y = x * rstd
    return y if weight is None else y * weight.to(x.dtype)


@misconception(
    "cast_before_gain",
    replaces="RMSNormFunction.forward",
    caught_by="test_half_precision",
    feedback="You rounded x̂ to half precision before multiplying by the gain (as transformers' Llama does), so a "
    "product of two rounded numbers is rounded again. Here the gain is applied in float32 and there is one cast, at "
    "the end.",
)
def forward(ctx, x, weight, eps):
    xf = x.to(statistics_dtype(x.dtype))
    rstd = (xf.square().mean(-1, keepdim=True) + eps).rsqrt()
    ctx.save_for_backward(x, weight, rstd)
    y = (xf * rstd).to(x.dtype)
    return y if weight is None else y * weight.to(x.dtype)


# --- layers -----------------------------------------------------------------------------------------------------------


@misconception(
    "eps_of_the_layer_unused",
    replaces="LayerNorm.forward",
    caught_by="test_modules",
    feedback="Your layer was given eps and normalises with the default of the function: pass self.eps on.",
)
def forward(self, x):
    return layer_norm(x, self.weight, self.bias)


@misconception(
    "post_normalises_branch",
    replaces="sublayer",
    caught_by="test_sublayer",
    feedback="Post-norm normalises the sum, not the branch: norm(x + f(x)).",
)
def sublayer(x, f, norm, placement):
    return x + norm(f(x)) if placement == "post" else original(x, f, norm, placement)


@misconception(
    "pre_normalises_stream",
    replaces="sublayer",
    caught_by="test_sublayer",
    feedback="Your pre-norm adds the branch to the *normalised* stream: the skip must carry x itself, x + f(norm(x)).",
)
def sublayer(x, f, norm, placement):
    if placement == "pre":
        y = norm(x)
        return y + f(y)
    return original(x, f, norm, placement)


@misconception(
    "placements_swapped",
    replaces="sublayer",
    caught_by="test_sublayer",
    feedback="Your 'pre' and 'post' are exchanged: 'pre' normalises what the branch reads, 'post' what the step "
    "returns.",
)
def sublayer(x, f, norm, placement):
    return original(x, f, norm, {"pre": "post", "post": "pre"}.get(placement, placement))


# --- measurements -----------------------------------------------------------------------------------------------------


@misconception(
    "measured_in_float32",
    replaces="measure_invariances",
    caught_by="test_invariances",
    feedback="In float32 rounding hides the answer: 1e-7 may be an exact invariance or not. Measure a float64 copy of "
    "the norm, on x in float64.",
)
def measure_invariances(norm, x, *, shift=3.0, scale=7.0):
    with torch.no_grad():
        y = norm(x)
        right = original(norm, x, shift=shift, scale=scale)
        return dataclasses.replace(
            right,
            shift_error=(norm(x + shift) - y).abs().max().item(),
            scale_error=(norm(scale * x) - y).abs().max().item(),
            output_mean=y.mean(-1).mean().item(),
            output_rms=y.square().mean(-1).sqrt().mean().item(),
        )


@misconception(
    "rank_by_default_tolerance",
    replaces="measure_invariances",
    caught_by="test_invariances",
    feedback="Your rank counts singular values that are rounding noise, or none that are small: the tolerance is 1e-9 "
    "of the largest singular value.",
)
def measure_invariances(norm, x, *, shift=3.0, scale=7.0):
    right = original(norm, x, shift=shift, scale=scale)
    jacobian = torch.autograd.functional.jacobian(copy.deepcopy(norm).double(), x.double().reshape(-1, x.shape[-1])[0])
    return dataclasses.replace(right, jacobian_rank=int(torch.linalg.matrix_rank(jacobian, rtol=1e-3)))


@misconception(
    "mean_of_token_rms",
    replaces="residual_rms_profile",
    caught_by="test_profile",
    feedback="You average the RMS of the tokens; asked is the RMS over everything, the root of the mean of all "
    "squares.",
)
def residual_rms_profile(model, ids):
    with torch.no_grad():
        x = model.embed(ids)
        profile = [x.square().mean(-1).sqrt().mean().item()]
        for block in model.blocks:
            x = block(x)
            profile.append(x.square().mean(-1).sqrt().mean().item())
        return profile


@misconception(
    "profile_without_embedding",
    replaces="residual_rms_profile",
    caught_by="test_profile",
    feedback="The first number is the RMS after the embedding, before any block: L blocks give L + 1 numbers.",
)
def residual_rms_profile(model, ids):
    return original(model, ids)[1:]


# --- the experiment ---------------------------------------------------------------------------------------------------


@misconception(
    "none_after_the_branch",
    replaces="norm_experiment",
    caught_by="test_experiment_protocol",
    feedback="A model without norms has no placement: ('none', 'post') would train the model of ('none', 'pre') "
    "again, so it is left out.",
)
def norm_experiment(kinds, placements, lrs, seeds, *, train_fn=train_tiny_lm):
    return [train_fn(*cell) for cell in itertools.product(kinds, placements, lrs, seeds)]


@misconception(
    "largest_that_works",
    replaces="lr_tolerance",
    caught_by="test_lr_tolerance",
    feedback="You took the largest learning rate that happens to work: it must work at every smaller one of the grid "
    "too.",
)
def lr_tolerance(runs, threshold):
    result = {}
    for pair in dict.fromkeys((run.kind, run.placement) for run in runs):
        own = [run for run in runs if (run.kind, run.placement) == pair]
        failed = {run.lr for run in own if not run.val_loss < threshold}
        result[pair] = max((run.lr for run in own if run.lr not in failed), default=None)
    return result


@misconception(
    "one_seed_is_enough",
    replaces="lr_tolerance",
    caught_by="test_lr_tolerance",
    feedback="You let a learning rate pass when one seed is below the threshold; all of them have to be.",
)
def lr_tolerance(runs, threshold):
    result = {}
    for pair in dict.fromkeys((run.kind, run.placement) for run in runs):
        own = [run for run in runs if (run.kind, run.placement) == pair]
        passed = {run.lr for run in own if run.val_loss < threshold}
        result[pair] = None
        for lr in sorted({run.lr for run in own}):
            if lr not in passed:
                break
            result[pair] = lr
    return result


@misconception(
    "nan_passes",
    replaces="lr_tolerance",
    caught_by="test_lr_tolerance",
    feedback="A run that ended in NaN counts as passed: NaN >= threshold is False. Ask for val_loss < threshold "
    "instead.",
)
def lr_tolerance(runs, threshold):
    return original([dataclasses.replace(r, val_loss=-1.0) if math.isnan(r.val_loss) else r for r in runs], threshold)


@misconception(
    "diverged_in_the_mean",
    replaces="plot_lr_sweep",
    caught_by="test_plot",
    feedback="You leave diverged seeds out of the mean: one of two seeds diverging looks like success. Such a point "
    "goes to the upper limit, with an x.",
)
def plot_lr_sweep(runs, path):
    cells = {}
    for run in runs:
        cells.setdefault((run.kind, run.placement, run.lr), []).append(run)
    kept = []
    for group in cells.values():
        kept += [run for run in group if not run.diverged] or group
    return original(kept, path)


# --- the backward passes ----------------------------------------------------------------------------------------------


@misconception(
    "stat_as_constant",
    replaces="RMSNormFunction.backward",
    caught_by="test_backward",
    feedback="You treated the statistic as a constant; it depends on x, so project that direction out: subtract "
    "x̂ · mean(ĝ ∘ x̂).",
)
def backward(ctx, grad):
    x, weight, rstd = ctx.saved_tensors
    g = grad if weight is None else grad * weight
    dw = None if weight is None else sum_rows(grad * x * rstd, tuple(range(x.dim() - 1)))
    return g * rstd, dw, None


@misconception(
    "mean_term_missing",
    replaces="LayerNormFunction.backward",
    caught_by="test_backward",
    feedback="Gradients of a LayerNorm input sum to zero over the features; yours do not: the mean depends on x too, "
    "so subtract mean(ĝ).",
)
def backward(ctx, grad):
    x, weight, mean, rstd = ctx.saved_tensors
    rows = tuple(range(x.dim() - 1))
    x_hat = (x - mean) * rstd
    g = grad if weight is None else grad * weight
    dx = rstd * (g - x_hat * (g * x_hat).mean(-1, keepdim=True))
    dw = None if weight is None else sum_rows(grad * x_hat, rows)
    return dx, dw, None if ctx.bias_dtype is None else sum_rows(grad, rows), None


@misconception(
    "gain_after_projection",
    replaces="RMSNormFunction.backward",
    caught_by="test_backward",
    feedback="The gain belongs to the incoming gradient, ĝ = grad ∘ w, before the projection; you multiplied by it "
    "afterwards.",
)
def backward(ctx, grad):
    x, weight, rstd = ctx.saved_tensors
    x_hat = x * rstd
    dx = rstd * (grad - x_hat * (grad * x_hat).mean(-1, keepdim=True))
    dw = None if weight is None else sum_rows(grad * x_hat, tuple(range(x.dim() - 1)))
    return dx if weight is None else dx * weight, dw, None


# --- what is kept, and what is done twice -----------------------------------------------------------------------------


@misconception(
    "composed_rms_norm",
    replaces="rms_norm",
    caught_by="test_saved_bytes_float32",
    matches="peak_bytes",
    feedback="Your rms_norm is composed of ordinary operations, each of which lets autograd keep its own input. Send "
    "the call through RMSNormFunction, which keeps x and one number per row.",
)
def rms_norm(x, weight, eps=1e-6):
    check_affine(x, weight)
    xf = x.to(statistics_dtype(x.dtype))
    return finish(xf * (xf.square().mean(-1, keepdim=True) + eps).rsqrt(), weight, None, x.dtype)


@misconception(
    "composed_layer_norm",
    replaces="layer_norm",
    caught_by="test_saved_bytes_float32",
    matches="peak_bytes",
    feedback="Your layer_norm is composed of ordinary operations, each of which lets autograd keep its own input. "
    "Send the call through LayerNormFunction, which keeps x and two numbers per row.",
)
def layer_norm(x, weight, bias, eps=1e-5):
    check_affine(x, weight, bias)
    centred, variance = centre(x)
    return finish(centred * (variance + eps).rsqrt(), weight, bias, x.dtype)


@misconception(
    "keeps_the_float32_copy",
    replaces="RMSNormFunction.forward",
    caught_by="test_saved_bytes_bfloat16",
    matches="peak_bytes",
    feedback="You keep the float32 copy of x, twice the bytes of the bfloat16 original: save x itself, and convert it "
    "again in the backward pass.",
)
def forward(ctx, x, weight, eps):
    xf = x.to(statistics_dtype(x.dtype))
    rstd = (xf.square().mean(-1, keepdim=True) + eps).rsqrt()
    ctx.save_for_backward(xf, weight, rstd)
    return finish(xf * rstd, weight, None, x.dtype)


@misconception(
    "keeps_the_mean_square_too",
    replaces="RMSNormFunction.forward",
    caught_by="test_norm_cost_formula",
    matches="peak_bytes",
    feedback="Beside x and 1/rms your RMSNorm keeps another number for each row, such as its mean square: one of them "
    "gives the other, so keep one.",
)
def forward(ctx, x, weight, eps):
    xf = x.to(statistics_dtype(x.dtype))
    ctx.mean_square = xf.square().mean(-1, keepdim=True)
    rstd = (ctx.mean_square + eps).rsqrt()
    ctx.save_for_backward(x, weight, rstd)
    return finish(xf * rstd, weight, None, x.dtype)


@misconception(
    "backward_by_autograd",
    replaces="RMSNormFunction.backward",
    caught_by="test_pointwise_work",
    matches="pointwise",
    feedback="You run the forward pass again and let autograd go back through it: little memory, but half as much "
    "work again. The derivative in closed form takes a few passes over x.",
)
def backward(ctx, grad):
    x, weight, rstd = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (x, weight) if t is not None]
        xf = leaves[0].to(rstd.dtype)
        eps = 1 / rstd.square() - xf.detach().square().mean(-1, keepdim=True)
        y = finish(xf * (xf.square().mean(-1, keepdim=True) + eps).rsqrt(), (*leaves, None)[1], None, x.dtype)
        grads = torch.autograd.grad(y, leaves, grad)
    return grads[0], grads[1] if weight is not None else None, None


@misconception(
    "profile_from_the_start",
    replaces="residual_rms_profile",
    caught_by="test_profile_single_pass",
    matches="calls",
    feedback="You run the model from the embedding again for every number: L(L + 1)/2 blocks in place of L. Carry the "
    "stream on.",
)
def residual_rms_profile(model, ids):
    profile = []
    with torch.no_grad():
        for depth in range(len(model.blocks) + 1):
            x = model.embed(ids)
            for block in model.blocks[:depth]:
                x = block(x)
            profile.append(x.square().mean().sqrt().item())
    return profile


@misconception(
    "statistics_in_itemsize",
    replaces="norm_cost",
    caught_by="test_norm_cost_formula",
    feedback="Mean and rstd are float32 also where x is not: 4 bytes each, whatever the itemsize of x.",
)
def norm_cost(kind, d, itemsize):
    right = original(kind, d, itemsize)
    return dataclasses.replace(
        right, saved_bytes_per_token=(d + right.row_reductions) * itemsize if right.params else 0
    )


@misconception(
    "rms_norm_with_bias",
    replaces="norm_cost",
    caught_by="test_norm_cost_formula",
    feedback="RMSNorm has a gain and no bias: d parameters.",
)
def norm_cost(kind, d, itemsize):
    right = original(kind, d, itemsize)
    return dataclasses.replace(right, params=2 * d) if kind == "rmsnorm" else right


# --- algebra ----------------------------------------------------------------------------------------------------------


@misconception(
    "fold_rows",
    replaces="fold_norm",
    caught_by="test_fold",
    feedback="The gain scales the linear's inputs (the columns of W), not its outputs.",
)
def fold_norm(norm, linear):
    new_norm, new_linear = original(norm, linear)
    with torch.no_grad():
        if norm.weight is not None:
            new_linear.weight.copy_(linear.weight * norm.weight[:, None])
    return new_norm, new_linear


@misconception(
    "fold_forgets_bias",
    replaces="fold_norm",
    caught_by="test_fold",
    feedback="The norm's bias is lost: the linear reads it too, so W · bias goes into the new bias, also where the "
    "linear had none.",
)
def fold_norm(norm, linear):
    without = copy.deepcopy(norm)
    if getattr(without, "bias", None) is not None:
        without.bias.data.zero_()
    return original(without, linear)


@misconception(
    "folded_default_eps",
    replaces="fold_norm",
    caught_by="test_fold",
    feedback="Your new norm has the default eps instead of that of the norm it replaces.",
)
def fold_norm(norm, linear):
    return type(norm)(linear.in_features, affine=False), original(norm, linear)[1]


@misconception(
    "centred_inputs",
    replaces="center_writer",
    caught_by="test_layernorm_is_rmsnorm_of_centred",
    feedback="You centred each row of W, that is, over the inputs. The mean over the *outputs* is to vanish: W is "
    "(out, in), so subtract the mean over dim 0.",
)
def center_writer(linear):
    new = original(linear)
    with torch.no_grad():
        new.weight.copy_(linear.weight - linear.weight.mean(1, keepdim=True))
    return new


@misconception(
    "bias_not_centred",
    replaces="center_writer",
    caught_by="test_layernorm_is_rmsnorm_of_centred",
    feedback="The bias writes to the stream as well: subtract its mean too.",
)
def center_writer(linear):
    new = original(linear)
    if linear.bias is not None:
        new.bias.data.copy_(linear.bias)
    return new
