"""The three assertions of benchmarks/peers/test_attention.py."""

import torch

from llmkata.checks import hint, points, same, task


@task(1)
@points(1)
@hint("Scores are divided by the square root of the width.")
def test_output(submission, reference):
    """The output equals softmax(q kᵀ / sqrt(d)) v."""
    q, k, v = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same(submission.attention(q, k, v)[0], reference.attention(q, k, v), atol=1e-9)


@task(1)
@points(1)
@hint("Which axis does the softmax run over?")
def test_rows_sum_to_one(submission):
    """Every row of the weights sums to 1."""
    q, k = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    same(submission.attention(q, k, k)[1].sum(-1), torch.ones(5, dtype=torch.float64), atol=1e-9)


@task(1)
@points(1)
@hint("Mask what is above the diagonal.")
def test_causal(submission):
    """No query sees a later key."""
    q, k = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = submission.attention(q, k, k, causal=True)[1]
    same(weights.triu(1), torch.zeros(5, 5, dtype=torch.float64), atol=0.0)
