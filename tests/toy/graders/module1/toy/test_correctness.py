"""Hidden checks of the toy exercise."""

import hypothesis.strategies as st
import torch

from llmkata.checks import check, expect_error, gate, hint, needs, points, same, sk, task


@task(1)
@points(2)
@gate
@hint("A softmax is a distribution.")
def test_softmax_sums_to_one(submission, torch_rng):
    """Every row of the softmax sums to 1."""
    x = torch.randn(3, 5, generator=torch_rng)
    same(submission.softmax(x).sum(-1), torch.ones(3), atol=1e-5)


@st.composite
def matrices(draw):
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    return sk.tensor(draw(st.integers(0, 99)), shape, torch.float32)


@task(1)
@points(3)
@sk.given(matrices(), examples=15)
def test_softmax_matches(submission, reference, case):
    """The softmax equals that of PyTorch."""
    same(submission.softmax(case), reference.softmax(case))


@task(1)
@points(1)
@needs("test_softmax_matches")
def test_softmax_of_large_numbers(submission):
    """Large numbers do not overflow."""
    same(submission.softmax(torch.tensor([1000.0, 1000.0])), torch.tensor([0.5, 0.5]))


@task(1)
@points(2)
def test_magic(submission, reference, rng):
    """The next magic number."""
    for n in rng.integers(0, 2**31, 5).tolist():
        same(submission.magic(n), reference.magic(n))


@task(1)
@points(1)
def test_softmax_refuses_scalars(submission):
    """A tensor without dimensions is refused, with its shape."""
    with expect_error(ValueError, "shape ()"):
        submission.softmax(torch.tensor(1.0))


@task(2)
@points(2)
def test_project(submission, torch_rng):
    """The product of two matrices."""
    x, w = torch.randn(3, 4, generator=torch_rng), torch.randn(4, 2, generator=torch_rng)
    same(submission.project(x, w), x @ w)


@task(2)
@points(1)
def test_stats(submission):
    """Mean and largest entry, as a Stats."""
    got = submission.stats(torch.tensor([1.0, 3.0]))
    check(got._type == "Stats", "stats must return a Stats.")
    same((got.mean, got.peak), (torch.tensor(2.0), torch.tensor(3.0)))


@task(3)
@points(2)
def test_repeated(submission):
    """The function is applied exactly as often as asked."""
    calls = []

    def double(x):
        calls.append(x)
        return 2 * x

    same(submission.repeated(double, torch.ones(2), 3), torch.full((2,), 8.0))
    check(len(calls) == 3, f"The function was called {len(calls)} times.")


@task(3)
@points(2)
def test_ledger(submission):
    """Entries add up, in the order in which they came."""
    ledger = submission.Ledger()
    for name, value in (("tea", 2.0), ("ink", 1.0), ("tea", 0.5)):
        ledger.add(name, value)
    same(list(ledger), ["tea", "ink"])
    same((ledger["tea"], ledger.total), (2.5, 3.5))
