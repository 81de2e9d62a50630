"""Wrong readings of clipping, accumulation and the guard, each as the code it leads to.

They run in the namespace of the model answer and use its helpers; but for its own mistake each does what it does.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import math
import statistics
from itertools import islice

import torch

from llmkata.checks import misconception


def checked(grads, norm_type):
    if not norm_type > 0:
        raise ValueError(f"norm_type must lie in (0, inf], got {norm_type}")
    return list(grads)


@misconception(
    "norm_in_half",
    replaces="global_norm",
    caught_by="test_norm_does_not_overflow",
    feedback="The norm overflowed although no gradient did: powers were summed in the gradients' own dtype. 1e30 squared "
    "is no float32, 1000 squared no float16; sum in float64.",
)
@torch.no_grad()
def global_norm(grads, norm_type=2.0):
    grads = checked(grads, norm_type)
    norms = [torch.linalg.vector_norm(g, norm_type).double() for g in grads if g.numel()]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=grads[0].device if grads else None)
    return torch.linalg.vector_norm(torch.stack(norms), norm_type)


@misconception(
    "sum_of_norms",
    replaces="global_norm",
    caught_by="test_global_norm",
    feedback="You added up the norms of the tensors. The norm of all elements is the norm of those norms: the root of "
    "the sum of their squares for p = 2.",
)
@torch.no_grad()
def global_norm(grads, norm_type=2.0):
    grads = checked(grads, norm_type)
    norms = [scaled_norm(g, norm_type) for g in grads if g.numel()]
    return sum(norms) if norms else torch.zeros((), dtype=torch.float64)


def bounded(max_norm):
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")


def refuse(norm, error_if_nonfinite):
    if error_if_nonfinite and not norm < math.inf:
        raise RuntimeError("the norm of the gradients is non-finite")


def scale(grads, factor):
    for group in by_dtype_and_device(grads):
        wide = torch.float64 if group[0].dtype == torch.float64 else torch.float32
        torch._foreach_mul_(group, factor.to(group[0].device, wide))


@misconception(
    "per_tensor_clip",
    replaces="clip_grad_norm_",
    caught_by="test_clip_norm",
    feedback="The direction of the update changed: you clipped each tensor by its own norm. All gradients share one "
    "coefficient, from the norm of all of them.",
)
@torch.no_grad()
def clip_grad_norm_(params, max_norm, norm_type=2.0, error_if_nonfinite=False):
    bounded(max_norm)
    grads = existing_gradients(params)
    norm = global_norm(grads, norm_type)
    refuse(norm, error_if_nonfinite)
    for g in grads:
        own = global_norm([g], norm_type)
        scale([g], torch.where(norm < math.inf, (max_norm / (own + 1e-6)).clamp(max=1.0), 1.0))
    return norm


@misconception(
    "always_rescale",
    replaces="clip_grad_norm_",
    caught_by="test_clip_norm",
    feedback="Small gradients were blown up to max_norm: the coefficient max_norm/norm is not capped at 1.",
)
@torch.no_grad()
def clip_grad_norm_(params, max_norm, norm_type=2.0, error_if_nonfinite=False):
    bounded(max_norm)
    grads = existing_gradients(params)
    norm = global_norm(grads, norm_type)
    refuse(norm, error_if_nonfinite)
    scale(grads, torch.where(norm < math.inf, max_norm / (norm + 1e-6), 1.0))
    return norm


@misconception(
    "nonfinite_zeroes",
    replaces="clip_grad_norm_",
    caught_by="test_nonfinite",
    feedback="With a norm of inf the coefficient is 0, and with NaN it is NaN: every good gradient was destroyed with the "
    "bad one. Where the norm is not finite, leave the gradients as they are.",
)
@torch.no_grad()
def clip_grad_norm_(params, max_norm, norm_type=2.0, error_if_nonfinite=False):
    bounded(max_norm)
    grads = existing_gradients(params)
    norm = global_norm(grads, norm_type)
    refuse(norm, error_if_nonfinite)
    scale(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@misconception(
    "tied_twice",
    replaces="clip_grad_norm_",
    caught_by="test_nonfinite",
    feedback="A parameter that is listed twice has one gradient: you counted it twice in the norm, and scaled it twice.",
)
@torch.no_grad()
def clip_grad_norm_(params, max_norm, norm_type=2.0, error_if_nonfinite=False):
    bounded(max_norm)
    grads = [p.grad for p in params if p.grad is not None]
    norm = global_norm(grads, norm_type)
    refuse(norm, error_if_nonfinite)
    scale(grads, torch.where(norm < math.inf, (max_norm / (norm + 1e-6)).clamp(max=1.0), 1.0))
    return norm


@misconception(
    "host_decides",
    replaces="clip_grad_norm_",
    caught_by="test_zero_syncs",
    matches="reads",
    feedback="`if norm > max_norm` reads the norm on the host, which waits until the device has caught up. Compute the "
    "coefficient on the device and multiply always: by 1 it changes nothing.",
)
@torch.no_grad()
def clip_grad_norm_(params, max_norm, norm_type=2.0, error_if_nonfinite=False):
    bounded(max_norm)
    grads = existing_gradients(params)
    norm = global_norm(grads, norm_type)
    refuse(norm, error_if_nonfinite)
    if max_norm - 1e-6 < norm < math.inf:
        scale(grads, max_norm / (norm + 1e-6))
    return norm


@misconception(
    "tensor_by_tensor",
    replaces="clip_grad_norm_",
    caught_by="test_kernels",
    matches="kernels",
    feedback="Right numbers, two kernels for every parameter. The multi-tensor operations torch._foreach_norm and "
    "torch._foreach_mul_ take the whole list at once.",
)
@torch.no_grad()
def clip_grad_norm_(params, max_norm, norm_type=2.0, error_if_nonfinite=False):
    bounded(max_norm)
    grads = existing_gradients(params)
    norm = global_norm(grads, norm_type)
    refuse(norm, error_if_nonfinite)
    factor = torch.where(norm < math.inf, (max_norm / (norm + 1e-6)).clamp(max=1.0), 1.0)
    for g in grads:
        g.mul_(factor.to(g.dtype if g.dtype == torch.float64 else torch.float32))
    return norm


@misconception(
    "concatenated",
    replaces="global_norm",
    caught_by="test_clip_bytes",
    matches="peak_bytes",
    feedback="Right norm, but all gradients were copied into one vector for it: as much memory again as they take. The "
    "norm of the tensors' norms needs one number for each.",
)
@torch.no_grad()
def global_norm(grads, norm_type=2.0):
    grads = checked(grads, norm_type)
    flat = [g.flatten() for g in grads if g.numel()]
    if not flat:
        return torch.zeros((), dtype=torch.float64, device=grads[0].device if grads else None)
    whole = torch.cat(flat)
    if whole.dtype != torch.float64 and (norm_type <= 6 or norm_type == math.inf):
        return torch.linalg.vector_norm(whole, norm_type, dtype=torch.float64)
    return scaled_norm(whole, norm_type)


@misconception(
    "clamps_above_only",
    replaces="clip_grad_value_",
    caught_by="test_clip_value",
    feedback="Elements below -clip_value were left as they are: clamp on both sides.",
)
@torch.no_grad()
def clip_grad_value_(params, clip_value):
    if clip_value < 0:
        raise ValueError(f"clip_value must not be negative, got {clip_value}")
    for grad in existing_gradients(params):
        grad.clamp_(max=clip_value)


def adaptively(params, clipping, eps, axes_of):
    for p in {id(p): p for p in params}.values():
        if p.grad is None:
            continue
        axes = axes_of(p)
        weight_norm, grad_norm = (
            torch.linalg.vector_norm(t, dim=axes, keepdim=True, dtype=torch.float64) if axes else t.double().abs()
            for t in (p, p.grad)
        )
        ratio = clipping * weight_norm.clamp(min=eps) / grad_norm.clamp(min=1e-6)
        p.grad.mul_(torch.where(grad_norm < math.inf, ratio.clamp(max=1.0), 1.0).to(p.dtype))


@misconception(
    "agc_per_tensor",
    replaces="adaptive_clip_",
    caught_by="test_agc",
    feedback="AGC is unit-wise: one ratio per output row, its norms over all dimensions but the first. You took one norm "
    "for the whole matrix.",
)
@torch.no_grad()
def adaptive_clip_(params, clipping=0.01, eps=1e-3):
    adaptively(params, clipping, eps, lambda p: tuple(range(p.dim())))


@misconception(
    "agc_per_column",
    replaces="adaptive_clip_",
    caught_by="test_agc",
    feedback="Your units are columns: the norm ran over the first dimension. A unit is w[i], everything that feeds one "
    "output.",
)
@torch.no_grad()
def adaptive_clip_(params, clipping=0.01, eps=1e-3):
    adaptively(params, clipping, eps, lambda p: (0,) if p.dim() else ())


@misconception(
    "agc_norm_in_half",
    replaces="adaptive_clip_",
    caught_by="test_agc_edges",
    feedback="The norm of a unit overflowed although its gradient did not, and so the unit was left as it was: the norm was "
    "taken in the gradient's own dtype. 1e30 squared is no float32; take the norm in float64.",
)
@torch.no_grad()
def adaptive_clip_(params, clipping=0.01, eps=1e-3):
    for p in {id(p): p for p in params}.values():
        if p.grad is None:
            continue
        axes = tuple(range(1, p.dim())) if p.dim() > 1 else tuple(range(p.dim()))
        weight_norm, grad_norm = (torch.linalg.vector_norm(t, dim=axes, keepdim=True) for t in (p, p.grad))
        ratio = clipping * weight_norm.double().clamp(min=eps) / grad_norm.double().clamp(min=1e-6)
        ratio = torch.where(grad_norm < math.inf, ratio.clamp(max=1.0), 1.0)
        p.grad.mul_(ratio.to(torch.promote_types(p.grad.dtype, torch.float32)))


def gathered(model, micro_batches, loss_sum_fn, total_tokens, no_sync, weight, divide):
    """The model answer with a weight for the loss of each micro-batch and a divisor of its own at the end."""
    params = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad for p in params]
    for p in params:
        p.grad = None
    loss, n_tokens, n_micro, device = 0.0, 0, 0, torch.device("cpu")
    for batch, last in mark_last(micro_batches):
        with nullcontext() if no_sync is None or last else no_sync():
            loss_sum, tokens = loss_sum_fn(model, batch)
            if loss_sum.requires_grad:
                (loss_sum * weight(tokens)).backward()
        loss, n_tokens, n_micro = loss + loss_sum.item() * weight(tokens), n_tokens + int(tokens), n_micro + 1
        del loss_sum
    ranks, counted = 1, n_tokens if total_tokens is None else total_tokens
    if no_sync is not None and total_tokens is None and n_micro:
        counted, ranks = across_ranks(n_tokens, device)
    if counted < 1 or not n_micro:
        for p, grad in zip(params, before):
            p.grad = grad
        raise ValueError("no tokens to take a mean over")
    divisor = divide(counted, n_micro)
    for p, grad in zip(params, before):
        if p.grad is not None:
            p.grad.mul_(ranks / divisor)
        if grad is not None:
            p.grad = grad if p.grad is None else grad.add_(p.grad)
    norm = global_norm([p.grad for p in params if p.grad is not None])
    return Accumulated(loss / divisor, n_tokens, n_micro, float(norm))


@misconception(
    "mean_of_means",
    replaces="accumulate",
    caught_by="test_accumulation_exact",
    feedback="You averaged the micro-batches' means, so a token of a short sequence weighs more than one of a long one. "
    "Transformers had this bug until 4.46 (October 2024). Add sums; divide once by all tokens.",
)
def accumulate(model, micro_batches, loss_sum_fn, *, total_tokens=None, no_sync=None):
    return gathered(
        model, micro_batches, loss_sum_fn, total_tokens, no_sync, lambda n: 1 / max(n, 1), lambda tokens, micro: micro
    )


@misconception(
    "no_division",
    replaces="accumulate",
    caught_by="test_accumulation_exact",
    feedback="The gradients were added up and never divided: your step grows with the number of tokens.",
)
def accumulate(model, micro_batches, loss_sum_fn, *, total_tokens=None, no_sync=None):
    return gathered(model, micro_batches, loss_sum_fn, total_tokens, no_sync, lambda n: 1, lambda tokens, micro: 1)


@misconception(
    "divides_what_was_there",
    replaces="accumulate",
    caught_by="test_accumulation_edges",
    feedback="Gradients from before the call were divided together with the new ones. Set them aside, divide, then add.",
)
def accumulate(model, micro_batches, loss_sum_fn, *, total_tokens=None, no_sync=None):
    params = [p for p in model.parameters() if p.requires_grad]
    before = [None if p.grad is None else p.grad.clone() for p in params]
    found = original(model, micro_batches, loss_sum_fn, total_tokens=total_tokens, no_sync=no_sync)
    divisor = found.n_tokens if total_tokens is None else total_tokens
    for p, grad in zip(params, before):
        if grad is not None:
            p.grad.sub_(grad * (1 - 1 / divisor))
    return found


@misconception(
    "sum_losses_backward_once",
    replaces="accumulate",
    caught_by="test_accumulation_peak",
    matches="peak_bytes",
    feedback="Right gradient, but all graphs stay alive until the one backward at the end: no memory is saved. Call "
    "backward for each micro-batch.",
)
def accumulate(model, micro_batches, loss_sum_fn, *, total_tokens=None, no_sync=None):
    parts = []
    for batch, last in mark_last(micro_batches):
        with nullcontext() if no_sync is None or last else no_sync():
            parts.append(loss_sum_fn(model, batch))
    tokens = sum(n for _, n in parts)
    ranks, divisor = 1, tokens if total_tokens is None else total_tokens
    if no_sync is not None and total_tokens is None and parts:
        divisor, ranks = across_ranks(tokens, parts[0][0].device)
    if divisor < 1 or not parts:
        raise ValueError("no tokens to take a mean over")
    loss = sum(part for part, _ in parts) / divisor
    (ranks * loss).backward()
    norm = global_norm([p.grad for p in model.parameters() if p.grad is not None])
    return Accumulated(loss.item(), tokens, len(parts), float(norm))


@misconception(
    "syncs_every_time",
    replaces="accumulate",
    caught_by="test_no_sync_contexts",
    feedback="no_sync was never entered: the ranks exchange the gradients after every micro-batch, K times what is "
    "needed.",
)
def accumulate(model, micro_batches, loss_sum_fn, *, total_tokens=None, no_sync=None):
    inert = None if no_sync is None else nullcontext
    return original(model, micro_batches, loss_sum_fn, total_tokens=total_tokens, no_sync=inert)


@misconception(
    "guard_learns_spikes",
    replaces="SpikeGuard.should_skip",
    caught_by="test_guard",
    feedback="Rejected norms entered the window: after a few spikes the median is one, and the guard accepts them.",
)
def should_skip(self, norm):
    if not math.isfinite(norm):
        self.skipped += 1
        return True
    spike = self.accepted >= self.warmup and norm > self.factor * statistics.median(self.norms)
    if spike and self.streak < self.max_skips:
        self.streak += 1
        self.skipped += 1
        self.norms.append(norm)
        return True
    if spike:
        self.norms.clear()
        self.accepted = 0
    self.streak = 0
    self.norms.append(norm)
    self.accepted += 1
    return False


@misconception(
    "guard_deadlock",
    replaces="SpikeGuard.should_skip",
    caught_by="test_guard",
    feedback="After a genuine change of scale every step is rejected for ever. After max_skips rejections in a row the "
    "next one is accepted, and the window starts again from it.",
)
def should_skip(self, norm):
    if not math.isfinite(norm):
        self.skipped += 1
        return True
    if self.accepted >= self.warmup and norm > self.factor * statistics.median(self.norms):
        self.skipped += 1
        return True
    self.norms.append(norm)
    self.accepted += 1
    return False


@misconception(
    "clip_each_microbatch",
    replaces="Trainer.step",
    caught_by="test_trainer_order",
    feedback="Clipping is not linear: you clipped while micro-batches were still being added. Accumulate all of them, then "
    "clip once.",
)
def step(self, micro_batches, loss_sum_fn):
    if not hasattr(micro_batches, "__len__"):
        micro_batches = islice(micro_batches, self.accumulation_steps)
    batches, chosen = list(micro_batches), self.strategy
    params = list(self.model.parameters())
    self.optimizer.zero_grad()
    found = accumulate(self.model, batches, loss_sum_fn)
    if self.guard is not None and self.guard.should_skip(found.grad_norm):
        return {"loss": found.loss, "grad_norm": found.grad_norm, "skipped": True, "clipped": False}
    self.optimizer.zero_grad()
    for batch in batches:
        accumulate(self.model, [batch], loss_sum_fn, total_tokens=found.n_tokens)
        if chosen.agc is not None:
            adaptive_clip_(params, chosen.agc)
        if chosen.clip_value is not None:
            clip_grad_value_(params, chosen.clip_value)
        if chosen.clip_norm is not None:
            clip_grad_norm_(params, chosen.clip_norm)
    after = global_norm([p.grad for p in params if p.grad is not None]).item()
    self.optimizer.step()
    clipped = after < (1 - 1e-5) * found.grad_norm
    return {"loss": found.loss, "grad_norm": found.grad_norm, "skipped": False, "clipped": clipped}


@misconception(
    "norm_after_clipping",
    replaces="Trainer.step",
    caught_by="test_trainer_order",
    feedback="The norm you report was taken after clipping, so it never exceeds the bound and nobody sees a spike: take it "
    "before.",
)
def step(self, micro_batches, loss_sum_fn):
    report = original(self, micro_batches, loss_sum_fn)
    if not report["skipped"]:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        report["grad_norm"] = global_norm(grads).item()
    return report
