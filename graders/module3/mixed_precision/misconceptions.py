"""Wrong readings of loss scaling, autocast and master weights, each as the code it leads to.

They run in the namespace of the model answer and use its helpers; but for its own mistake each does what it does.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import math

import torch
from torch import nn

from llmkata.checks import misconception

# --- task 1 -----------------------------------------------------------------------------------------------------------


@misconception(
    "zeros_counted",
    replaces="scale_report",
    caught_by="test_scale_report_matches_numpy_half",
    feedback="Your fractions are of all elements. A gradient that was zero before loses nothing: divide by the number of "
    "non-zero elements, and do not count the others as zeroed.",
)
@torch.no_grad()
def scale_report(grads, scales, dtype=torch.float16):
    values = torch.cat([torch.zeros(0), *(g.flatten() for g in grads)]).float()
    report = []
    for scale in scales:
        rounded = (values * scale).to(dtype).abs()
        lost = ((rounded == 0) & (values != 0), (rounded > 0) & (rounded < torch.finfo(dtype).smallest_normal))
        counts = (*lost, ~(rounded < math.inf))
        report.append(ScaleStats(float(scale), *(int(c.sum()) / max(values.numel(), 1) for c in counts)))
    return report


@misconception(
    "mean_of_tensors",
    replaces="scale_report",
    caught_by="test_scale_report_matches_numpy_half",
    feedback="You averaged the fractions of the tensors. A bias of 10 numbers then counts as much as a matrix of a "
    "million: count over all elements together, then divide once.",
)
@torch.no_grad()
def scale_report(grads, scales, dtype=torch.float16):
    kept = [v for v in (g.flatten().float() for g in grads) if bool((v != 0).any())]
    kept = [v[v != 0] for v in kept]
    report = []
    for scale in scales:
        rows = []
        for v in kept:
            r = (v * scale).to(dtype).abs()
            tiny = torch.finfo(dtype).smallest_normal
            rows.append([int(c.sum()) / v.numel() for c in (r == 0, (r > 0) & (r < tiny), ~(r < math.inf))])
        means = [sum(column) / len(rows) for column in zip(*rows)] if rows else [0.0] * 3
        report.append(ScaleStats(float(scale), *means))
    return report


@misconception(
    "rounded_logarithm",
    replaces="pick_static_scale",
    caught_by="test_pick_static_scale",
    feedback="Your scale is half of what fits: you took the gradient's logarithm up to the next integer and that of 65504 "
    "down. Compare the products themselves, or mantissas and exponents (math.frexp).",
)
@torch.no_grad()
def pick_static_scale(grads, dtype=torch.float16, margin_bits=1):
    values = torch.cat([torch.zeros(1), *(g.flatten().float() for g in grads)]).abs()
    if not values.isfinite().all():
        raise ValueError("non-finite gradients")
    largest = float(values.max())
    if largest == 0:
        return 2.0**24
    room = math.floor(math.log2(torch.finfo(dtype).max)) - math.ceil(math.log2(largest)) - margin_bits
    return 2.0**room


# --- task 2 -----------------------------------------------------------------------------------------------------------


def unscale_with(scaler, optimizer, has_overflow):
    """unscale_ of the model answer with another test for overflow."""
    if not scaler.enabled:
        return
    if optimizer in scaler._unscaled:
        stepped = scaler._unscaled[optimizer].stepped
        raise RuntimeError("unscale_ was called after step()" if stepped else "unscale_ has already been called")
    grads = list(iter_grads(optimizer))
    if any(g.dtype == torch.float16 for g in grads):
        raise ValueError("FP16 gradients cannot be unscaled")
    inverse = scaler._scale.double().reciprocal().float()
    for g in grads:
        g.mul_(inverse)
    flags = [has_overflow(g) for g in grads if g.numel()]
    scaler._unscaled[optimizer] = Unscaled(torch.stack(flags).any() if flags else torch.tensor(False))


@misconception(
    "isinf_only",
    replaces="LossScaler.unscale_",
    caught_by="test_scaler_lockstep",
    feedback="inf - inf is NaN: overflow often shows up as NaN, and you stepped on it. Look for whatever is not finite.",
)
@torch.no_grad()
def unscale_(self, optimizer):
    unscale_with(self, optimizer, lambda g: g.isinf().any())


# It goes from gradient to gradient as the next one does, which the count of kernels sees.
@misconception(
    "reads_each_gradient",
    replaces="LossScaler.unscale_",
    caught_by="test_host_reads",
    matches="reads",
    equivalent_to="loop_over_gradients",
    feedback="The host asks the device about each gradient, and waits for each answer. Keep the flags on the device and "
    "read one of them, in step.",
)
@torch.no_grad()
def unscale_(self, optimizer):
    unscale_with(self, optimizer, lambda g: torch.tensor(not bool(g.isfinite().all())))


@misconception(
    "loop_over_gradients",
    replaces="LossScaler.unscale_",
    caught_by="test_kernels",
    matches="kernels",
    feedback="Every gradient starts kernels of its own: of a model with hundreds of small tensors that is most of the "
    "time of a step. torch._foreach_mul_ and torch._foreach_norm take the whole list.",
)
@torch.no_grad()
def unscale_(self, optimizer):
    unscale_with(self, optimizer, lambda g: ~g.isfinite().all())


def update_with(scaler, flags_and_tracker):
    """update of the model answer with another rule: (found_inf, due, clean steps) -> (scale, tracker)."""
    if not scaler.enabled:
        return
    if not scaler._unscaled:
        raise RuntimeError("No inf checks were recorded since the last update")
    found = any(bool(r.found_inf) for r in scaler._unscaled.values())
    clean = int(scaler._growth_tracker) + 1
    scale, tracker = flags_and_tracker(found, clean)
    scaler._scale.fill_(scale)
    scaler._growth_tracker.fill_(tracker)
    scaler._unscaled.clear()


@misconception(
    "tracker_not_reset",
    replaces="LossScaler.update",
    caught_by="test_scaler_lockstep",
    feedback="Growth must count consecutive clean steps: after an overflow the count starts at 0 again, yours went on.",
)
def update(self):
    def rule(found, clean):
        if found:
            return self._scale * self.backoff_factor, clean - 1
        due = clean == self.growth_interval
        return (self._scale * self.growth_factor if due else self._scale), (0 if due else clean)

    update_with(self, rule)


@misconception(
    "grows_and_keeps_counting",
    replaces="LossScaler.update",
    caught_by="test_scaler_lockstep",
    feedback="After a growth the count of clean steps has to start anew: yours went on, and the scale grew only once.",
)
def update(self):
    def rule(found, clean):
        if found:
            return self._scale * self.backoff_factor, 0
        return (self._scale * self.growth_factor if clean == self.growth_interval else self._scale), clean

    update_with(self, rule)


@misconception(
    "skip_but_count_step",
    replaces="LossScaler.step",
    caught_by="test_skip_leaves_optimizer_untouched",
    feedback="Adam's moments decay and its step counter moves even with zero gradients; a skipped step must not happen "
    "at all.",
)
def step(self, optimizer):
    if not self.enabled:
        return optimizer.step()
    if optimizer not in self._unscaled:
        self.unscale_(optimizer)
    record = self._unscaled[optimizer]
    if record.stepped:
        raise RuntimeError("step has already been called since the last update")
    record.stepped, record.skipped = True, bool(record.found_inf)
    if not record.skipped:
        return optimizer.step()
    for grad in iter_grads(optimizer):
        grad.zero_()
    optimizer.step()
    return None


@misconception(
    "one_flag_for_all",
    replaces="LossScaler.step",
    caught_by="test_scaler_lockstep",
    feedback="An overflow in one optimizer's gradients made you skip the other one too. Each optimizer is skipped by its "
    "own flag; only the scale is common.",
)
def step(self, optimizer):
    if not self.enabled:
        return optimizer.step()
    if optimizer not in self._unscaled:
        self.unscale_(optimizer)
    record = self._unscaled[optimizer]
    if record.stepped:
        raise RuntimeError("step has already been called since the last update")
    record.stepped = True
    record.skipped = any(bool(r.found_inf) for r in self._unscaled.values())
    return None if record.skipped else optimizer.step()


# --- task 3 -----------------------------------------------------------------------------------------------------------


def backward_of(model, optimizer, scaler, micro_batches, loss_fn, dtype, divisor, after=lambda: None):
    """Zeroes, and runs backward of each micro-batch; the mean loss."""
    if not micro_batches:
        raise ValueError("micro_batches is empty")
    optimizer.zero_grad()
    losses = []
    with low_precision(dtype):
        for number, batch in enumerate(micro_batches, 1):
            loss = loss_fn(model, batch)
            (scaler.scale(loss) / divisor).backward()
            losses.append(loss.detach().float())
            if number < len(micro_batches):
                after()
    return torch.stack(losses).mean().item()


def finish(optimizer, scaler, loss, max_norm, scale):
    """From unscaling to the report."""
    scaler.unscale_(optimizer)
    grads = list(iter_grads(optimizer))
    norm = nn.utils.get_total_norm(grads)
    if max_norm is not None:
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    scaler.step(optimizer)
    skipped = scaler.skipped(optimizer)
    scaler.update()
    return StepReport(loss, norm.item(), skipped, scale)


@misconception(
    "clip_scaled_grads",
    replaces="amp_step",
    caught_by="test_amp_step_order",
    feedback="You clipped gradients that were still multiplied by the loss scale, so max_norm acted as if it were "
    "max_norm/scale. Unscale first, then take the norm and clip.",
)
def amp_step(model, optimizer, scaler, micro_batches, loss_fn, *, dtype=torch.float16, max_norm=None):
    loss = backward_of(model, optimizer, scaler, micro_batches, loss_fn, dtype, len(micro_batches) or 1)
    scale, grads = scaler.get_scale(), list(iter_grads(optimizer))
    norm = nn.utils.get_total_norm(grads)
    if max_norm is not None:
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    skipped = scaler.skipped(optimizer)
    scaler.update()
    return StepReport(loss, norm.item(), skipped, scale)


@misconception(
    "update_per_microbatch",
    replaces="amp_step",
    caught_by="test_amp_step_order",
    feedback="The scale changed between the micro-batches of one step. Gradients accumulated under different scales "
    "cannot be unscaled together: update once, after the step.",
)
def amp_step(model, optimizer, scaler, micro_batches, loss_fn, *, dtype=torch.float16, max_norm=None):
    def grow():
        scaler._unscaled.setdefault(optimizer, Unscaled(torch.tensor(False)))
        scaler.update()

    loss = backward_of(model, optimizer, scaler, micro_batches, loss_fn, dtype, len(micro_batches) or 1, grow)
    return finish(optimizer, scaler, loss, max_norm, scaler.get_scale())


@misconception(
    "sum_over_microbatches",
    replaces="amp_step",
    caught_by="test_amp_step_order",
    feedback="Your gradient is the sum over the micro-batches, as if the learning rate were multiplied by their number. "
    "The loss is their mean: divide each loss by the number of micro-batches before backward.",
)
def amp_step(model, optimizer, scaler, micro_batches, loss_fn, *, dtype=torch.float16, max_norm=None):
    loss = backward_of(model, optimizer, scaler, micro_batches, loss_fn, dtype, 1)
    return finish(optimizer, scaler, loss, max_norm, scaler.get_scale())


@misconception(
    "scale_after_update",
    replaces="amp_step",
    caught_by="test_amp_step_overflow",
    feedback="The report holds the scale of the next step: read it before update changes it.",
)
def amp_step(model, optimizer, scaler, micro_batches, loss_fn, *, dtype=torch.float16, max_norm=None):
    loss = backward_of(model, optimizer, scaler, micro_batches, loss_fn, dtype, len(micro_batches) or 1)
    report = finish(optimizer, scaler, loss, max_norm, 0.0)
    return StepReport(report.loss, report.grad_norm, report.skipped, scaler.get_scale())


# --- tasks 4 and 5 ----------------------------------------------------------------------------------------------------


def cast_arguments(region, func, args, kwargs, target, cast=None):
    """func with its arguments in the target's dtype, None: as they are."""
    if target is not None:
        cast = cast or region._cast
        args, kwargs = (map_tensors(lambda x: cast(x, target), a) for a in (args, kwargs))
    return func(*args, **kwargs)


@misconception(
    "cast_detached",
    replaces="Autocast._cast",
    caught_by="test_autocast_llama_grads",
    feedback="Your weights never receive a gradient: the cast has to be recorded by autograd. x.to(dtype), without "
    "detach, data or no_grad.",
)
def _cast(self, x, dtype):
    is_weight = x.dtype == torch.float32 and x.is_leaf and x.requires_grad
    return x.detach().to(dtype) if is_weight else x.to(dtype)


@misconception(
    "softmax_in_half",
    replaces="Autocast._target",
    caught_by="test_autocast_dtype_table",
    feedback="Reductions and exponentials lose accuracy in half precision; this behaves as if every operation were on the "
    "low-precision list. FP32_OPS get their inputs in float32.",
)
def _target(self, func, args, kwargs):
    if self._is_explicit(args, kwargs):
        return None
    return self.dtype if func in LOW_PRECISION_OPS or func in FP32_OPS else None


@misconception(
    "casts_doubles",
    replaces="Autocast.__torch_function__",
    caught_by="test_autocast_dtype_table",
    feedback="float64 inputs were cast. Who computes in float64 has a reason: autocast leaves those, and integers, as "
    "they are.",
)
def __torch_function__(self, func, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    if not (self.enabled and Autocast._active[-1] is self):
        return func(*args, **kwargs)
    target = self._target(func, args, kwargs)

    def cast(x):
        if isinstance(x, torch.Tensor) and x.dtype == torch.float64 and target is not None:
            return x.to(target)
        if isinstance(x, (list, tuple)):
            return type(x)(map(cast, x))
        return x

    args, kwargs = tuple(map(cast, args)), {k: cast(v) for k, v in kwargs.items()}
    return cast_arguments(self, func, args, kwargs, target)


@misconception(
    "cast_back",
    replaces="Autocast.__torch_function__",
    caught_by="test_autocast_dtype_table",
    feedback="You cast results back to float32. Then everything after a product runs in float32 and keeps 4 bytes a "
    "number for backward: leave results as they are.",
)
def __torch_function__(self, func, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    if not (self.enabled and Autocast._active[-1] is self):
        return func(*args, **kwargs)
    result = cast_arguments(self, func, args, kwargs, self._target(func, args, kwargs))
    if func in LOW_PRECISION_OPS and isinstance(result, torch.Tensor) and result.dtype == self.dtype:
        return result.float()
    return result


@misconception(
    "keeps_float32_beside",
    replaces="Autocast.__torch_function__",
    caught_by="test_saved_bytes",
    matches="peak_bytes",
    feedback="What you cast stays alive in float32 as well, until the region ends: keep casts of weights alone, not of "
    "activations.",
)
def __torch_function__(self, func, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    if not (self.enabled and Autocast._active[-1] is self):
        return func(*args, **kwargs)

    def cast(x, dtype):
        changed = self._cast(x, dtype)
        if changed is not x:
            Autocast._casts[id(x), dtype, None] = (x, changed)
        return changed

    return cast_arguments(self, func, args, kwargs, self._target(func, args, kwargs), cast)


@misconception(
    "no_cache",
    replaces="Autocast._cast",
    caught_by="test_weight_casts",
    matches="bytes_moved",
    feedback="Every call casts its weights again. Within a region they do not change: keep each leaf's cast until the "
    "outermost region ends.",
)
def _cast(self, x, dtype):
    return x.to(dtype)


@misconception(
    "no_grad_cast_reused",
    replaces="Autocast._cast",
    caught_by="test_autocast_no_grad_then_grad",
    feedback="A cast made under no_grad has no graph, and you used it again for training: no gradient reaches the weight. "
    "Keep casts of the two grad modes apart.",
)
def _cast(self, x, dtype):
    is_weight = x.dtype == torch.float32 and x.is_leaf and x.requires_grad
    if x.dtype == dtype or not (is_weight and self.cache_weights):
        return x.to(dtype)
    key = (id(x), dtype, True)
    if key not in Autocast._casts:
        Autocast._casts[key] = (x, x.to(dtype))
    return Autocast._casts[key][1]


@misconception(
    "stale_cache",
    replaces="Autocast.__exit__",
    caught_by="test_autocast_cache_dropped",
    feedback="You keep training on the weights of the first step: casts have to be dropped when the outermost region ends.",
)
def __exit__(self, *exc):
    Autocast._active.pop()
    super(Autocast, self).__exit__(*exc)


@misconception(
    "nested_ignored",
    replaces="Autocast.__torch_function__",
    caught_by="test_autocast_nested_disable",
    feedback="An inner `enabled=False` did nothing: the outer region still cast your inputs. torch asks every active mode "
    "in turn, so a region must know whether it is the innermost.",
)
def __torch_function__(self, func, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    target = self._target(func, args, kwargs) if self.enabled else None
    return cast_arguments(self, func, args, kwargs, target)


# --- task 6 -----------------------------------------------------------------------------------------------------------


@misconception(
    "master_from_half",
    replaces="MasterWeights.step",
    caught_by="test_master_weights",
    feedback="Small updates are rounded away again: you read the masters from the half-precision model before each step. "
    "The float32 copy must be the one that persists.",
)
def step(self, scaler=None):
    if not self._collected:
        self.collect_grads()
    with torch.no_grad():
        for master, p in zip(self.masters, self.params):
            master.copy_(p)
    if scaler is None:
        self.optimizer.step()
    else:
        scaler.step(self.optimizer)
    with torch.no_grad():
        for master, p in zip(self.masters, self.params):
            p.copy_(master)
    self._collected = False


@misconception(
    "collects_twice",
    replaces="MasterWeights.step",
    caught_by="test_master_weights_scaled",
    feedback="step collected the gradients again, over those that had been unscaled and clipped: what collect_grads has "
    "already brought must be used as it is.",
)
def step(self, scaler=None):
    self.collect_grads()
    if scaler is None:
        self.optimizer.step()
    else:
        scaler.step(self.optimizer)
    with torch.no_grad():
        for master, p in zip(self.masters, self.params):
            p.copy_(master)
    self._collected = False
