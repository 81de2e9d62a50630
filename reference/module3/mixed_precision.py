"""Oracle of 3.1: NumPy's half precision, exact fractions, PyTorch's own scaler, float64 formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch


def scale_report(grads, scales):
    """[(zeroed, subnormal, overflow)] for float16, by NumPy's casts."""
    flat = np.concatenate([g.detach().double().numpy().ravel() for g in grads])
    flat = flat[flat != 0]
    report = []
    for scale in scales:
        with np.errstate(over="ignore", invalid="ignore"):
            half = np.abs((flat * scale).astype(np.float16))
        lost = (half == 0, (half > 0) & (half < np.float16(2.0**-14)), np.isinf(half) | np.isnan(half))
        report.append(tuple(x.mean() if flat.size else 0.0 for x in lost))
    return report


def static_scale(largest, dtype_max, margin_bits):
    """The largest power of two with largest·s·2^margin_bits <= dtype_max, in exact fractions, by counting up and down."""
    fits = lambda k: Fraction(largest) * Fraction(2) ** (k + margin_bits) <= Fraction(dtype_max)
    k = 0
    while fits(k):
        k += 1
    while not fits(k):
        k -= 1
    return math.ldexp(1.0, k)


def new_scaler(**options):
    """PyTorch's loss scaler: the same algorithm by other authors."""
    return torch.amp.GradScaler("cpu", **options)


def mlp_loss(weights, batch):
    """Mean squared error of factor · tanh(x W1ᵀ) W2ᵀ, in the dtype of the weights."""
    x, y, factor = batch
    w1, w2 = weights
    return (factor * (torch.tanh(x.to(w1.dtype) @ w1.mT) @ w2.mT) - y.to(w1.dtype)).square().mean()


def mlp_step(weights, batches, lr, max_norm):
    """(mean loss, norm of its gradient, clipped gradients, weights after SGD) in float64."""
    leaves = [w.double().requires_grad_() for w in weights]
    loss = sum(mlp_loss(leaves, b) for b in batches) / len(batches)
    grads = torch.autograd.grad(loss, leaves)
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    factor = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
    clipped = [factor * g for g in grads]
    return float(loss.detach()), norm, clipped, [w.double() - lr * g for w, g in zip(weights, clipped, strict=True)]


def adam(weights, grads_by_step, lr, betas=(0.9, 0.999), eps=1e-8):
    """Weights after these gradients, by the formulas of Adam in float64."""
    w = [x.double() for x in weights]
    m, v = ([torch.zeros_like(x) for x in w] for _ in range(2))
    for t, grads in enumerate(grads_by_step, 1):
        for i, g in enumerate(grads):
            g = g.double()
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            w[i] = w[i] - lr * (m[i] / (1 - betas[0] ** t)) / ((v[i] / (1 - betas[1] ** t)).sqrt() + eps)
    return w


def regression_run(weights, x, y, factor, steps, lr):
    """(gradients of the first step, last loss) of Adam (PyTorch's, eps 1e-12) in float64."""
    leaves = [w.double().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(leaves, lr=lr, eps=1e-12)
    first = None
    for _ in range(steps):
        optimizer.zero_grad()
        mlp_loss(leaves, (x, y, factor)).backward()
        first = first or [w.grad.clone() for w in leaves]
        optimizer.step()
    return first, float(mlp_loss(leaves, (x, y, factor)).detach())
