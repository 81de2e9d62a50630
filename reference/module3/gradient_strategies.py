"""Oracle of 3.5: formulas in float64, one pooled loss, no accumulation.

A small recurrent model and a small language model are here as functions of their parameters; the grader's probes hold
the same models as modules.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch


def array(t):
    return t.detach().double().numpy()


def global_norm(grads, norm_type=2.0):
    """The p-norm of all elements as a float, powers taken of numbers up to 1."""
    flat = np.abs(np.concatenate([array(g).ravel() for g in grads] or [np.zeros(0)]))
    if flat.size == 0 or flat.max() == 0:
        return 0.0
    largest = flat.max()
    if math.isinf(norm_type) or not np.isfinite(largest):
        return float(largest)
    return float(largest * ((flat / largest) ** norm_type).sum() ** (1 / norm_type))


def clipped_by_norm(grads, max_norm, norm_type=2.0):
    """Gradients in float64 after clipping; as they are where the norm is not finite."""
    norm = global_norm(grads, norm_type)
    factor = min(1.0, max_norm / (norm + 1e-6)) if math.isfinite(norm) else 1.0
    return [g.double() * factor for g in grads]


def clipped_by_value(grads, clip_value):
    return [g.double().clamp(-clip_value, clip_value) for g in grads]


def clipped_adaptively(weights, grads, clipping=0.01, eps=1e-3):
    """Unit by unit, in float64."""
    results = []
    for w, g in zip(weights, grads):
        w, g = array(w), array(g).copy()
        units = range(g.shape[0]) if g.ndim > 1 else [...]
        for i in units:
            norm = math.sqrt((g[i] ** 2).sum())
            if math.isfinite(norm):
                bound = clipping * max(math.sqrt((w[i] ** 2).sum()), eps)
                g[i] = g[i] * min(1.0, bound / max(norm, 1e-6))
        results.append(torch.from_numpy(np.asarray(g)))
    return results


def guard(norms, window, factor, warmup, max_skips):
    """Whether each step is skipped."""
    decisions, accepted, refused = [], [], 0
    for norm in norms:
        spike = False
        if math.isfinite(norm):
            spike = len(accepted) >= warmup and norm > factor * statistics.median(accepted[-window:])
            if spike and refused == max_skips:
                spike, accepted = False, []
            refused = refused + 1 if spike else 0
            accepted += [] if spike else [norm]
        decisions.append(spike or not math.isfinite(norm))
    return decisions


# --- a language model: next token from the mean of the embeddings so far ----------------------------------------------


def token_losses(params, ids, mask):
    """Summed loss of the next tokens that the mask leaves, and their number; ids and mask (B, T)."""
    embedding, mixing, unembedding = params
    so_far = embedding[ids].cumsum(1) / torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
    logits = torch.tanh(so_far @ mixing)[:, :-1] @ unembedding
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    keep = mask[:, 1:].flatten().to(losses.dtype)
    return (losses * keep).sum(), int(keep.sum())


def pooled(params, batches):
    """(mean loss, tokens, gradients) of all micro-batches at once."""
    leaves = [p.detach().clone().requires_grad_() for p in params]
    parts = [token_losses(leaves, *batch) for batch in batches]
    tokens = sum(n for _, n in parts)
    loss = sum(total for total, _ in parts) / tokens
    return loss.item(), tokens, list(torch.autograd.grad(loss, leaves))


# --- a deep network, for memory ---------------------------------------------------------------------------------------


def mlp_gradients(weights, x, y):
    """Gradient of the mean squared error of y over its elements; tanh layers."""
    leaves = [w.detach().clone().requires_grad_() for w in weights]
    h = x
    for w in leaves:
        h = torch.tanh(h @ w)
    return list(torch.autograd.grad((h - y).square().sum() / y.numel(), leaves))


# --- a recurrent model, trained ---------------------------------------------------------------------------------------


def recurrent(params, x):
    """ReLU RNN: x (B, T, 2) -> (B,)."""
    inputs, matrix, bias, readout = params
    state = torch.zeros(x.shape[0], matrix.shape[0], dtype=x.dtype)
    for t in range(x.shape[1]):
        state = torch.relu(x[:, t] @ inputs.T + state @ matrix.T + bias)
    return state @ readout


def train(params, updates, strategy, lr):
    """Reports of SGD on the updates (lists of (x, y)), and the parameters at the end.

    The guard has the default values of SpikeGuard.
    """
    params, norms, reports = [p.detach().clone() for p in params], [], []
    for batches in updates:
        leaves = [p.clone().requires_grad_() for p in params]
        total = sum((recurrent(leaves, x) - y).square().sum() for x, y in batches)
        loss = total / sum(y.numel() for _, y in batches)
        before = after = list(torch.autograd.grad(loss, leaves))
        norm = global_norm(before)
        norms.append(norm)
        skipped = strategy.get("guard", False) and guard(norms, 20, 10.0, 10, 3)[-1]
        if not skipped:
            if strategy.get("agc") is not None:
                after = clipped_adaptively(params, after, strategy["agc"])
            if strategy.get("clip_value") is not None:
                after = clipped_by_value(after, strategy["clip_value"])
            if strategy.get("clip_norm") is not None:
                after = clipped_by_norm(after, strategy["clip_norm"])
            params = [p - lr * g for p, g in zip(params, after)]
        shorter = global_norm(after) < (1 - 1e-5) * norm
        reports.append({"loss": loss.item(), "grad_norm": norm, "skipped": skipped, "clipped": shorter})
    return reports, params


def study(params, updates, strategy, lr):
    """One row of compare_strategies for one seed."""
    reports, _ = train(params, updates, strategy, lr)
    final = float(np.median([r["loss"] for r in reports[-10:]]))
    skipped = sum(r["skipped"] for r in reports)
    return {
        "final_loss": final,
        "diverged": not math.isfinite(final),
        "max_norm": max((r["grad_norm"] for r in reports if math.isfinite(r["grad_norm"])), default=0.0),
        "skipped": skipped,
        "updates": len(reports) - skipped,
    }
