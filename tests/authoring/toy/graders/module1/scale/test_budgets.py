"""Budgets."""

import torch

from llmkata.checks import hint, points, task


@task(2)
@points(20)
@hint("One matrix product is all it takes.")
def test_mix_flops(submission, budget, torch_rng):
    """A mix of 16 rows costs one product."""
    scores, values = torch.randn(16, 8, generator=torch_rng), torch.randn(8, 4, generator=torch_rng)
    # 2 * 16 * 8 * 4 = 1024 FLOP
    run = budget.replay(lambda s, a, v: s.mix(a, v), scores, values, expect=lambda a, v: a.softmax(-1) @ v)
    budget.require("FLOPs of a mix", run.flops, at_most=1024, at_least=1024, reference=1024)
