"""Visible checks of the toy exercise."""

import torch

from llmkata.checks import hint, same, task


@task(1)
@hint("Which dimension is summed over?", "The last one.")
def test_two_numbers(submission):
    """The softmax of two equal numbers is one half for each."""
    same(submission.softmax(torch.zeros(2)), torch.full((2,), 0.5))


@task(3)
def test_one_entry(submission):
    """A ledger with one entry."""
    ledger = submission.Ledger()
    same(ledger.add("tea", 2.0), 2.0)
    same(len(ledger), 1)
    same(ledger.total, 2.0)
