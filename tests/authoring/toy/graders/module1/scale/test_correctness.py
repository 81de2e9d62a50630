"""Hidden checks."""

import hypothesis.strategies as st
import torch

from llmkata.checks import expect_error, hint, needs, points, same, sk, task


@st.composite
def matrices(draw):
    shape = (draw(st.integers(2, 4)), draw(st.integers(2, 5)))
    return sk.tensor(draw(st.integers(0, 99)), shape, torch.float64)


@task(1)
@points(40)
@hint("Which dimension is summed over?", "The last one.")
@sk.given(matrices(), examples=10)
def test_softmax_matches(submission, reference, case):
    """The softmax equals that of PyTorch."""
    same(submission.softmax(case), reference.softmax(case), atol=1e-9, rtol=0)


@task(1)
@points(10)
@hint("Subtract the maximum first.")
def test_large_numbers(submission):
    """Large numbers do not overflow, whatever the other rows hold."""
    scores = torch.tensor([[1000.0, 1000.0, 0.0], [-1000.0, -1000.0, -1000.0]], dtype=torch.float64)
    same(submission.softmax(scores), torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3], dtype=torch.float64), atol=1e-9, rtol=0)


@task(1)
@points(10)
@hint("dim() tells the number of dimensions.")
def test_scalars_are_refused(submission):
    """A tensor without dimensions is refused, with its shape."""
    with expect_error(ValueError, "shape ()"):
        submission.softmax(torch.tensor(1.0))


@task(2)
@points(10)
@needs("test_softmax_matches")
@hint("Rows of weights times values.")
def test_mix(submission, reference, torch_rng):
    """The weighted sum equals that of a loop over rows."""
    scores = torch.randn(3, 4, generator=torch_rng, dtype=torch.float64)
    values = torch.randn(4, 2, generator=torch_rng, dtype=torch.float64)
    same(submission.mix(scores, values), reference.mix(scores, values), atol=1e-9, rtol=0)


@task(2)
@points(10)
@needs("test_softmax_matches")
@hint("Gradients flow through both factors.")
def test_mix_gradients(submission, torch_rng):
    """The gradients of the weighted sum equal those of PyTorch."""
    scores = torch.randn(3, 4, generator=torch_rng, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, 2, generator=torch_rng, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(3, 2, generator=torch_rng, dtype=torch.float64)
    want = torch.autograd.grad(scores.softmax(-1) @ values, (scores, values), cotangent)
    _, got = submission.vjp("mix", (scores.detach(), values.detach()), wrt=(0, 1), cotangents=cotangent)
    same(got, want, atol=1e-9, rtol=0)
