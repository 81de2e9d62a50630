"""Budgets of 2.4 normalization.

Counts are taken from the recorded program, run again on fresh inputs. What one norm keeps between its passes is found
by stacking norms into towers: a tower's inputs cost nothing, its peak is reached when the backward pass begins, and of
two towers of different height everything but the kept bytes cancels: kept = (peak of 4 - peak of 2) / 2.
"""

import torch

from llmkata.checks import check, expect_error, hint, needs, points, probe, task

ROWS, D = 128, 256
LOW, HIGH = 2, 4


@probe
def tower(module, kind, x, parameters, cotangent):
    """A norm of a norm of ... x, and the gradients of x and of all parameters."""
    import torch

    leaf = x.detach().requires_grad_()
    parameters = [[p.detach().requires_grad_() for p in storey] for storey in parameters]
    y = leaf
    for storey in parameters:
        y = module.layer_norm(y, *storey, 1e-3) if kind == "layernorm" else module.rms_norm(y, *storey, 1e-3)
    return y.detach(), *torch.autograd.grad(y, [leaf, *(p for storey in parameters for p in storey)], cotangent)


KINDS = {"rmsnorm": 1, "layernorm": 2}  # and how many parameters each has


def towers(budget, reference, rng, dtype, heights, rows=ROWS, d=D):
    """The run of one tower of each kind and height, as segments named by both."""
    x, cotangent = (torch.randn(rows, d, generator=rng).to(dtype) for _ in range(2))
    parameters = {
        kind: [[(1 + 0.1 * torch.randn(d, generator=rng)).to(dtype) for _ in range(n)] for _ in range(max(heights))]
        for kind, n in KINDS.items()
    }

    def scenario(s, x, parameters, cotangent):
        answers = []
        for kind in KINDS:
            for height in heights:
                with s.segment(f"{kind} {height}"):
                    answers.append(s.run(tower, kind, x, parameters[kind][:height], cotangent))
        return answers

    def expect(x, parameters, cotangent):
        return [
            reference.tower(kind, x, parameters[kind][:height], cotangent, 1e-3) for kind in KINDS for height in heights
        ]

    # bfloat16: a rounding of 2^-9 in each of 8 passes, on sums over 128 rows of numbers around 1; twice that where x̂ is
    # what is kept, since it is rounded once more.
    tol = 1e-3 if dtype == torch.float32 else 1.2
    return budget.replay(scenario, x, parameters, cotangent, expect=expect, tol=tol)


def kept_bytes(budget, reference, rng, dtype, rows=ROWS, d=D):
    """Bytes that one norm of each kind keeps between forward and backward."""
    run = towers(budget, reference, rng, dtype, (LOW, HIGH), rows, d)
    return {
        kind: (run[f"{kind} {HIGH}"].peak_bytes - run[f"{kind} {LOW}"].peak_bytes) / (HIGH - LOW) for kind in KINDS
    }


@task(5)
@points(7)
@needs("test_backward")
@hint(
    "save_for_backward(x, weight, and one or two numbers per row): x̂ and the centred row can be computed again.",
    "Composed operations let autograd keep the input of every square, product and root: two or three copies of x.",
)
def test_saved_bytes_float32(submission, budget, reference, torch_rng):
    """A float32 norm keeps its input and a number or two per row: at most 1.1 times the bytes of x."""
    # x is 131 072 bytes a norm. RMSNorm: + 4 a row of 1 024 bytes = 1.004; LayerNorm + 8 = 1.008.
    # Composed of ordinary operations both keep 2.0 x's worth: what is squared, and what the gain multiplies.
    size = ROWS * D * 4
    for kind, kept in kept_bytes(budget, reference, torch_rng, torch.float32).items():
        budget.require(
            f"bytes kept by {kind}", kept, at_most=1.1 * size, reference=size, unit="bytes", trust="replayed"
        )


@task(5)
@points(8)
@needs("test_backward")
@hint(
    "Save x in its own dtype: the float32 copy is made again in the backward pass.",
    "A float32 copy of bfloat16 data is two x's worth, and autograd keeps several of them for composed operations.",
)
def test_saved_bytes_bfloat16(submission, budget, reference, torch_rng):
    """A bfloat16 norm computes in float32 and yet keeps only bfloat16: at most 1.15 times the bytes of x."""
    # x is 65 536 bytes a norm; + 4 or 8 a row of 512 bytes = 1.008 and 1.016.
    # Composed of ordinary operations both keep 4.0, two arrays in float32.
    size = ROWS * D * 2
    for kind, kept in kept_bytes(budget, reference, torch_rng, torch.bfloat16).items():
        budget.require(
            f"bytes kept by {kind}", kept, at_most=1.15 * size, reference=size, unit="bytes", trust="replayed"
        )


@task(5)
@points(2)
@needs("test_backward")
@hint("x̂ and grad ∘ weight are needed twice in the backward pass: compute each once.")
def test_pointwise_work(submission, budget, reference, torch_rng):
    """Forward and backward of one norm take few passes over x, and no matrix products."""
    # The model answer takes 13.0 passes (RMSNorm: square, mean, scale, gain; x̂, ĝ, ĝx̂, mean, x̂ mean, difference,
    # scale, and grad x̂ and its sum for dw) and 20.0 (LayerNorm). Composed operations and autograd take 18.0 and 26.0.
    runs = towers(budget, reference, torch_rng, torch.float32, (1,))
    for kind, limit in (("rmsnorm", 17), ("layernorm", 24)):
        run = runs[f"{kind} 1"]
        budget.require(f"passes over x of {kind}", run.pointwise, at_most=limit * ROWS * D, unit="elements")
        budget.require(f"matrix products of {kind}", run.flops, at_most=0)


@task(3)
@points(4)
@needs("test_profile")
@hint(
    "Carry the stream on from block to block; running the model from the start for every block costs L(L + 1)/2 blocks."
)
def test_profile_single_pass(submission, budget, torch_rng):
    """The profile of a four-block model runs each block once, on the whole batch."""
    # L = 4 blocks, once each. Starting again for every number takes 0 + 1 + 2 + 3 + 4 = 10.
    calls = []
    ids = torch.randint(16, (3, 10), generator=torch_rng)
    submission.run(watched_profile, ids, calls.append)
    check(len(calls) > 0, "The blocks of the model were not run.", got=len(calls), want=4)
    budget.require("block calls", len(calls), at_most=4, reference=4, unit="calls", trust="handed in")
    check(calls == [0, 1, 2, 3], "Each block is run once, in order.", got=calls, want=[0, 1, 2, 3])


@probe
def watched_profile(module, ids, tell):
    """Take the profile of a model whose blocks report each call; its numbers are test_profile's affair."""
    import torch

    class Watched(torch.nn.Module):
        def __init__(self, block, number):
            super().__init__()
            self.block, self.number = block, number

        def forward(self, x):
            tell(self.number)
            return self.block(x)

    model = module.TinyLM("layernorm", "pre")
    model.blocks = torch.nn.ModuleList(Watched(block, n) for n, block in enumerate(model.blocks))
    module.residual_rms_profile(model, ids)


@task(7)
@points(4)
@needs("test_saved_bytes_float32")
@hint(
    "LayerNorm has a gain and a bias, needs two means, and keeps mean and rstd of each row; RMSNorm has half of all "
    "that.",
    "Kept per row: the row itself, d·itemsize bytes, and 4 bytes for each statistic in float32.",
)
def test_norm_cost_formula(submission, budget, reference, torch_rng):
    """norm_cost gives the parameters of your layers, the bytes that a norm by hand keeps per row, and its sums over a
    row."""
    for d, itemsize in ((8, 4), (256, 2), (1, 8)):
        for kind, name, statistics in (("layernorm", "LayerNorm", 2), ("rmsnorm", "RMSNorm", 1), ("none", None, 0)):
            cost = submission.norm_cost(kind, d, itemsize)
            parameters = (
                0 if name is None else sum(p.numel() for p in getattr(submission, name)(d).state_dict().values())
            )
            kept = 0 if name is None else d * itemsize + 4 * statistics
            for field, want in (
                ("params", parameters),
                ("saved_bytes_per_token", kept),
                ("row_reductions", statistics),
            ):
                got = getattr(cost, field)
                check(got == want, f"{field} of {kind} with d = {d} and itemsize {itemsize}.", got=got, want=want)
    with expect_error(ValueError):
        submission.norm_cost("batchnorm", 8, 4)
    # 16 rows of 8 float32: the claim held against what is metered. A norm may keep less (x̂ and rstd alone do for
    # both).
    kept = kept_bytes(budget, reference, torch_rng, torch.float32, rows=16, d=8)
    for kind, claim in (("rmsnorm", 36), ("layernorm", 40)):
        name = f"bytes kept per row by {kind}"
        budget.require(name, kept[kind] / 16, at_most=claim, reference=claim, unit="bytes", trust="replayed")
