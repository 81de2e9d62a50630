"""Visible checks."""

import torch

from llmkata.checks import hint, same, task


@task(1)
@hint("Two equal scores share equally.")
def test_two_rows(submission):
    """Each row of the softmax is a distribution."""
    same(submission.softmax(torch.tensor([[0.0, 0.0], [1.0, 1.0]])), torch.full((2, 2), 0.5))


@task(1)
@hint("Rows, not columns, sum to 1.")
def test_rows_sum_to_one(submission):
    """The rows of a softmax sum to 1."""
    same(submission.softmax(torch.tensor([[0.0, 1.0, 2.0], [5.0, 1.0, 0.0]])).sum(-1), torch.ones(2))


@task(2)
@hint("softmax(scores) @ values")
def test_mix_of_equals(submission):
    """Equal scores give the mean."""
    same(submission.mix(torch.zeros(1, 2), torch.tensor([[2.0], [4.0]])), torch.tensor([[3.0]]))
