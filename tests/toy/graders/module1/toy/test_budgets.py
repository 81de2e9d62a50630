"""Budgets of the toy exercise."""

import numpy as np
import torch

from llmkata.checks import needs, points, same, task


@task(2)
@points(3)
@needs("test_project")
def test_project_flops(submission, budget, torch_rng):
    """A product of (32, 16) and (16, 8) costs 2 * 32 * 16 * 8 operations."""
    x, w = torch.randn(32, 16, generator=torch_rng), torch.randn(16, 8, generator=torch_rng)
    run = budget.replay(lambda s, x, w: s.project(x, w), x, w, expect=lambda x, w: x @ w)
    budget.require("FLOPs of a product", run.flops, at_most=8192, at_least=8192, reference=8192)


@task(4)
@points(2)
def test_row_sums_peak(submission, budget):
    """Sums of rows need a block, not a copy: 2 MiB of 8 MiB."""
    a = np.arange(2**20, dtype=np.float64).reshape(4096, 256)
    same(submission.row_sums(a[:6], a[:6], block=4), (a[:6] ** 2).sum(-1))
    peak = budget.peak_bytes(lambda s: s.row_sums(a, a, block=64))
    budget.require("peak bytes of the sums", peak, at_most=2 << 20, unit="B")
