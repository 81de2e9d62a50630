"""Budgets of 2.5 residual_connections.

FLOPs are counted in the recorded program, run again on fresh inputs (a product (m, k) x (k, n) is 2mkn). Calls are
counted by branches that are handed in: each tells the grader when it runs, forward or backward, and on how large a
batch.
"""

import torch

from llmkata.checks import check, hint, needs, points, probe, task


def tokens(rng, batch=2, length=5):
    return torch.randint(16, (batch, length), generator=rng)


@probe
def watched(module, kind, n_layers, instrument, arguments, tell):
    """Run an instrument on a new model whose branches report each forward and backward run."""
    import torch

    class Passing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y, number):
            ctx.number = number
            return y.view_as(y)

        @staticmethod
        def backward(ctx, grad):
            tell("backward", ctx.number, 0)
            return grad, None

    class Watched(torch.nn.Module):
        def __init__(self, branch, number):
            super().__init__()
            self.branch, self.number = branch, number

        def forward(self, x):
            tell("forward", self.number, x.numel() // (x.shape[-1] * x.shape[-2]))
            return Passing.apply(self.branch(x), self.number)

    model = module.TinyLM(kind, n_layers)
    for number, sublayer in enumerate(model.sublayers):
        sublayer.branch = Watched(sublayer.branch, number)
    getattr(module, instrument)(model, *arguments)


def watch(submission, kind, n_layers, instrument, *arguments):
    """Forward runs as [(sublayer, batch size), ...] and backward runs as [sublayer, ...]."""
    forward, backward = [], []

    def tell(direction, number, size):
        if direction == "forward":
            forward.append((number, size))
        else:
            backward.append(number)

    submission.run(watched, kind, n_layers, instrument, list(arguments), tell)
    check(len(forward) > 0, "The branches of the model were not run.", got=0)
    return forward, backward


@task(3)
@points(6)
@needs("test_gradient_profile")
@hint(
    "One forward pass that keeps the streams, then one torch.autograd.grad for all of them together.",
    "Do not call autograd.grad in a loop: each call goes back through everything behind its tensor again.",
)
def test_gradient_single_pass(submission, budget, torch_rng):
    """A profile of six blocks runs each of the 12 branches once forward and once backward."""
    # 12 and 12. One autograd.grad for every stream goes back through 11 + 10 + .. + 0 = 66 branches for the streams
    # alone.
    ids, targets = tokens(torch_rng), tokens(torch_rng)
    forward, backward = watch(submission, "plain", 6, "gradient_profile", ids, targets)
    budget.require("branches run forward", len(forward), at_most=12, reference=12, unit="calls", trust="handed in")
    budget.require("branches run backward", len(backward), at_most=12, reference=12, unit="calls", trust="handed in")


def by_interpolation(mats, x):
    """2^L paths are too many here: the coefficients of t^k in the product of I + t A, from its values at roots of
    unity."""
    roots = torch.exp(2j * torch.pi * torch.arange(len(mats) + 1, dtype=torch.float64) / (len(mats) + 1))
    values = []
    for t in roots:
        v = x.T.to(torch.complex128)
        for a in mats:
            v = v + t * (a.to(torch.complex128) @ v)
        values.append(v.T)
    return torch.fft.fft(torch.stack(values), dim=0).real / (len(mats) + 1)


@task(5)
@points(8)
@needs("test_paths")
@hint(
    "After l layers paths have 0 to l branches: the next matrix is applied to l + 1 arrays, not to all L + 1.",
    "Enumerating the 2^L paths costs L · 2^(L-1) products. Most of them compute the same thing: sum first, multiply "
    "then.",
)
def test_path_flops(submission, budget, reference, torch_rng):
    """Twelve matrices take 78 products, not 24 576, and the work grows as the square of their number."""
    n, d = 4, 16
    one = 2 * n * d * d  # a matrix times an (N, d) array: 2 048 FLOP

    def counts(*sizes):
        x = torch.randn(n, d, generator=torch_rng, dtype=torch.float64)
        stacks = [
            [torch.randn(d, d, generator=torch_rng, dtype=torch.float64) / d for _ in range(length)] for length in sizes
        ]

        def scenario(s, stacks, x):
            answers = []
            for length, mats in zip(sizes, stacks, strict=True):
                with s.segment(str(length)):
                    answers.append(s.path_contributions(mats, x))
            return answers

        def expect(stacks, x):
            return [by_interpolation(mats, x) for mats in stacks]

        run = budget.replay(scenario, stacks, x, expect=expect, tol=1e-6)
        return [run[str(length)].flops for length in sizes]

    # L = 12: 1 + 2 + .. + 12 = 78 products, 159 744 FLOP. All 13 lengths at every layer: 156 products, twice the limit.
    budget.require("FLOPs for 12 matrices", *counts(12), at_most=1.05 * 78 * one, reference=78 * one)
    # 36, 136, 528 products: exponent 1.94. Only reached with a solution that is not exponential.
    sizes = (8, 16, 32)
    budget.growth("FLOPs by the number of matrices", sizes, counts(*sizes), exponent_at_most=2.1, unit="FLOP")


@task(6)
@points(3)
@needs("test_decomposition")
@hint("contribution runs the branch: add its result to x yourself instead of calling forward as well.")
def test_decompose_single_pass(submission, budget, torch_rng):
    """Decomposing a model of four blocks runs each of its eight branches once."""
    # 8. Calling contribution and forward of every sublayer takes 16.
    forward, _ = watch(submission, "plain", 4, "decompose_residual", tokens(torch_rng))
    budget.require("branches run", len(forward), at_most=8, reference=8, unit="calls", trust="handed in")


@task(7)
@points(3)
@needs("test_lesion")
@hint(
    "A model without block l is the whole model up to block l: keep the streams between the blocks.",
    "The last entry needs no block at all besides those of the whole model.",
)
def test_lesion_reuses_prefix(submission, budget, torch_rng):
    """The lesions of eight blocks take at most 36 runs of a block on the batch, the whole model's included."""
    # L + (L - 1) + .. + 1 = L(L + 1)/2 = 36. Every lesioned model from the start: 8 + 8 · 7 = 64. Streams that are
    # batched together count each.
    ids, targets = tokens(torch_rng), tokens(torch_rng)
    forward, _ = watch(submission, "plain", 8, "lesion_study", ids, targets)
    batches = sum(size for number, size in forward if number % 2 == 0) / len(ids)
    budget.require("runs of a block on the batch", batches, at_most=36, reference=36, unit="calls", trust="handed in")
