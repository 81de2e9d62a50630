"""Hidden correctness checks of 3.5 gradient_strategies.

Core is tasks 1 to 4; tasks 5 (adaptive clipping), 6 (cost of clipping), 7 (no_sync) and 8 (trainer and study) are
stretch. Models and batches are the grader's; the reference holds the same models as functions.

Mended in the specification:
* `accumulate` adds to gradients that are there, and leaves them alone when there are no tokens.
* `compare_strategies` takes the loss, SGD is named, and "diverged" and "final loss" are defined.
* Accumulation is judged on a small causal language model of the grader in float64, so that the judge needs no
  transformers; a LLaMA in the hub's layout is trained by a visible check.
* The study is compared number by number with a simulation in float64, which says more than bounds on its losses.
* Several ranks are simulated in one process: all_reduce adds the tokens of the other rank.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from llmkata.checks import check, expect_error, hint, needs, points, probe, same, sk, task

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def normal(seed, shape, dtype=F64, scale=1.0):
    """Normal numbers that are not rounded to short fractions."""
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=draw, dtype=F64)).to(dtype)


@probe
def clip(module, name, params, grads, kwargs):
    """Calls a clipping function on parameters with these gradients; what it returns, gradients, parameters."""
    leaves = [p.clone().requires_grad_() for p in params]
    for leaf, grad in zip(leaves, grads):
        leaf.grad = None if grad is None else grad.clone()
    result = getattr(module, name)((leaf for leaf in leaves), **kwargs)
    return result, [leaf.grad for leaf in leaves], [leaf.detach() for leaf in leaves]


def clipped(submission, name, grads, params=None, **kwargs):
    """(returned, gradients after)."""
    params = [torch.zeros_like(g) if g is not None else torch.zeros(2) for g in grads] if params is None else params
    returned, after, _ = submission.run(clip, name, params, grads, kwargs)
    return returned, after


def same_norm(got, want, rtol, what="norm"):
    check(isinstance(got, torch.Tensor) and got.dim() == 0, f"The {what} is a 0-dim tensor.", got=got)
    check(got.dtype in (F32, F64), f"The {what} is float32 or float64.", got=got.dtype)
    same(got.double(), torch.tensor(want, dtype=F64), atol=0.0, rtol=rtol, what=what)


# --- task 1: the norm -------------------------------------------------------------------------------------------------


@st.composite
def gradient_lists(draw, dtypes=(F32, F64, F16, BF16)):
    """Tensors of simple shapes: scalars, empty ones, transposed ones, of one dtype or mixed."""
    shapes = st.sampled_from([(3,), (), (2, 3), (0,), (4, 1), (2, 3, 2), (1,)])
    n = draw(st.integers(1, 6))
    mixed = draw(st.booleans())
    first = draw(st.sampled_from(dtypes))
    seed = draw(st.integers(0, 999))
    grads = []
    for i in range(n):
        dtype = draw(st.sampled_from(dtypes)) if mixed else first
        t = normal(seed + i, draw(shapes), dtype)
        grads.append(t.transpose(0, -1) if t.dim() > 1 and draw(st.booleans()) else t)
    return grads


@task(1)
@points(8)
@hint(
    "All elements of all tensors count as one long vector.",
    "The norm of the tensors' norms: (Σ ||g||^p)^(1/p); for p = inf their maximum. Empty tensors add nothing.",
)
@sk.given(st.tuples(gradient_lists(), st.sampled_from([2.0, 1.0, 3.0, 0.5, math.inf])), examples=30)
def test_global_norm(submission, reference, case):
    """global_norm is the p-norm of all elements, for p from 0.5 to inf, any shapes, and any mix of dtypes."""
    grads, p = case
    rtol = 1e-3 if {g.dtype for g in grads} & {F16, BF16} else 3e-6
    same_norm(submission.global_norm(grads, p), reference.global_norm(grads, p), rtol)
    same_norm(submission.global_norm([], p), 0.0, rtol, "norm of no tensors")
    for wrong in (0.0, -1.0, math.nan):
        with expect_error(ValueError, "norm_type"):
            submission.global_norm(grads, wrong)


@task(1)
@points(8)
@hint(
    "Where do your squares live? 1e30² is not a float32, and 1000² is not a float16.",
    "Sum in float64; for float64 gradients divide by the largest |g| first and multiply by it at the end.",
)
def test_norm_does_not_overflow(submission, reference, torch_rng):
    """A norm overflows only if the norm itself is too large: 1e30 in float32, 10 000 times 1000 in float16, 1e200."""
    base = [torch.randn(5, 7, generator=torch_rng), torch.randn(11, generator=torch_rng)]
    cases = {
        "float32 gradients of 1e30": [torch.full((3, 4), 1e30), torch.full((5,), -1e30)],
        "float32 gradients of 1e-30": [torch.full((3, 4), 1e-30), torch.full((5,), -1e-30)],
        "10 000 float16 gradients of 1000": [torch.full((10_000,), 1e3, dtype=F16)],
        "bfloat16 gradients of 1e30": [torch.full((16,), 1e30, dtype=BF16)],
        "float64 gradients of 1e200": [torch.full((4,), 1e200, dtype=F64), torch.full((12,), -1e200, dtype=F64)],
        "float64 gradients of 1e-200": [torch.full((4,), 1e-200, dtype=F64)],
        "float32 and float64 mixed": [torch.full((4,), 1e30), torch.full((12,), 1e190, dtype=F64)],
        "zeros": [torch.zeros(3), torch.zeros(2, 2, dtype=F64)],
    }
    for what, grads in cases.items():
        for p in (2.0, 3.0, math.inf):
            rtol = 1e-3 if grads[0].dtype in (F16, BF16) else 3e-6
            same_norm(submission.global_norm(grads, p), reference.global_norm(grads, p), rtol, f"{p:g}-norm of {what}")
    big, half = [torch.full((3,), 1e30)], [torch.full((3,), 1e3, dtype=F16)]
    for p in (11.0, 20.0):
        same_norm(submission.global_norm(big, p), reference.global_norm(big, p), 3e-6, f"{p:g}-norm of 1e30")
        same_norm(submission.global_norm(half, p), reference.global_norm(half, p), 1e-3, f"{p:g}-norm of 1000")
    same_norm(
        submission.global_norm([g * 2.0**100 for g in base]),
        reference.global_norm(base) * 2.0**100,
        3e-6,
        "norm of gradients times 2^100",
    )
    for what in ("float32 gradients of 1e30", "float64 gradients of 1e200"):
        returned, after = clipped(submission, "clip_grad_norm_", cases[what], max_norm=1.0)
        same_norm(returned, reference.global_norm(cases[what]), 3e-6)
        want = reference.clipped_by_norm(cases[what], 1.0)
        same(after, want, dtype=None, atol=0.0, rtol=3e-6, what=f"clipped {what}")


# --- task 2: clipping -------------------------------------------------------------------------------------------------


@task(2)
@points(8)
@hint(
    "One coefficient for all tensors, min(1, max_norm/(norm + 1e-6)): the direction of the whole gradient stays.",
    "Parameters may come from a generator, some with .grad None, and one may be listed twice.",
)
@sk.given(
    st.tuples(gradient_lists((F32, F64)), st.sampled_from([2.0, 1.0, math.inf]), st.sampled_from([0.5, 1e-3, 2, 1e3])),
    examples=20,
)
def test_clip_norm(submission, reference, case):
    """clip_grad_norm_ scales all gradients by one factor, returns the norm before, and leaves short gradients alone."""
    grads, p, max_norm = case
    norm = reference.global_norm(grads, p)
    returned, after = clipped(submission, "clip_grad_norm_", [*grads, None], max_norm=max_norm, norm_type=p)
    same_norm(returned, norm, 3e-6, "norm before clipping")
    check(after[-1] is None, "A parameter without gradient keeps none.", got=after[-1])
    if norm + 1e-6 <= max_norm:
        same(after[:-1], grads, atol=0.0, rtol=0.0, what="gradients below max_norm")
    else:
        want = reference.clipped_by_norm(grads, max_norm, p)
        for got, expected, grad in zip(after, want, grads):
            same(got, expected, dtype=grad.dtype, atol=0.0, rtol=5e-6, what="clipped gradient")


@probe
def clip_tied(module, value, max_norm):
    import torch

    p = torch.zeros(2, requires_grad=True)
    p.grad = value.clone()
    return module.clip_grad_norm_([p, p], max_norm), p.grad


@task(2)
@points(4)
@hint(
    "Where the norm is NaN or inf, the coefficient is 1: torch.where picks it without asking the device.",
    "error_if_nonfinite asks before anything is changed.",
)
def test_nonfinite(submission, reference):
    """A non-finite norm leaves the gradients as they are, or raises if asked; bounds that make no sense are errors."""
    for bad in (math.nan, math.inf, -math.inf):
        grads = [torch.tensor([3.0, bad]), torch.tensor([[1.0, 2.0]])]
        returned, after = clipped(submission, "clip_grad_norm_", grads, max_norm=0.5)
        check(not math.isfinite(float(returned)), "The norm of gradients with NaN or inf is not finite.", got=returned)
        same(after, grads, atol=0.0, rtol=0.0, equal_nan=True, what=f"gradients with {bad}")
        with expect_error(RuntimeError, "non-finite"):
            clipped(submission, "clip_grad_norm_", grads, max_norm=0.5, error_if_nonfinite=True)
    grads = [torch.tensor([3.0, 4.0])]
    returned, after = clipped(submission, "clip_grad_norm_", grads, max_norm=1.0, error_if_nonfinite=True)
    same_norm(returned, 5.0, 3e-6)
    same(after, reference.clipped_by_norm(grads, 1.0), dtype=F32, atol=0.0, rtol=5e-6, what="finite gradients")
    for wrong in (0.0, -1.0, math.nan):
        with expect_error(ValueError, "max_norm"):
            clipped(submission, "clip_grad_norm_", grads, max_norm=wrong)
    with expect_error(ValueError, "norm_type"):
        clipped(submission, "clip_grad_norm_", grads, max_norm=1.0, norm_type=0.0)
    returned, after = clipped(submission, "clip_grad_norm_", [None, None], max_norm=1.0)
    same_norm(returned, 0.0, 0.0, "norm of no gradients")
    short = [torch.tensor([3e-6, 4e-6])]
    returned, after = clipped(submission, "clip_grad_norm_", short, max_norm=2e-6)
    same(after, reference.clipped_by_norm(short, 2e-6), dtype=None, atol=0.0, rtol=5e-6,
         what="gradients of norm 5e-6, clipped to 2e-6 (the divisor is norm + 1e-6)")  # fmt: skip
    returned, after = submission.run(clip_tied, torch.tensor([3.0, 4.0]), 1.0)
    same_norm(returned, 5.0, 3e-6, "norm of a parameter listed twice")
    same(after, reference.clipped_by_norm(grads, 1.0)[0], dtype=F32, atol=0.0, rtol=5e-6, what="its gradient")


@task(2)
@points(4)
@hint("Each element by itself: clamp_(-clip_value, clip_value) does it in place, and keeps NaN.")
def test_clip_value(submission, torch_rng):
    """clip_grad_value_ clamps every element on both sides; NaN stays NaN, a negative bound is an error."""
    grads = [torch.randn(3, 4, generator=torch_rng), None, torch.tensor([math.nan, math.inf, -9.0, 0.2], dtype=F16)]
    for bound in (0.5, 0.0, 100.0):
        _, after = clipped(submission, "clip_grad_value_", grads, clip_value=bound)
        want = [None if g is None else g.clamp(-bound, bound) for g in grads]
        check(after[1] is None, "A parameter without gradient keeps none.", got=after[1])
        same([after[0], after[2]], [want[0], want[2]], atol=0.0, rtol=0.0, equal_nan=True, what=f"clamped to {bound}")
    with expect_error(ValueError, "clip_value"):
        clipped(submission, "clip_grad_value_", grads, clip_value=-0.5)


# --- task 3: accumulation ---------------------------------------------------------------------------------------------

WORDS, WIDTH = 7, 3


@probe
def accumulated(module, weights, batches, options):
    """accumulate on the grader's language model; the report, and gradients."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.mixing, self.unembedding = (torch.nn.Parameter(w.clone()) for w in weights)
            self.unused = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self.frozen = torch.nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)

        def forward(self, ids):
            so_far = self.embedding[ids].cumsum(1) / torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
            return torch.tanh(so_far @ self.mixing)[:, :-1] @ self.unembedding

    def loss_sum(model, batch):
        ids, mask = batch
        keep = mask[:, 1:].flatten()
        if not keep.any():
            return torch.zeros((), dtype=torch.float64), 0
        losses = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (losses * keep).sum(), int(keep.sum())

    model = Model()
    if options.get("before") is not None:
        for p, g in zip(model.parameters(), options["before"]):
            p.grad = g.clone()
    given = (b for b in batches) if options.get("generator") else batches
    try:
        found = module.accumulate(model, given, loss_sum, total_tokens=options.get("total"))
        report, error = (found.loss, found.n_tokens, found.n_micro, found.grad_norm), None
    except ValueError as caught:
        report, error = None, str(caught)
    return report, [p.grad for p in model.parameters()], error


@st.composite
def token_batches(draw):
    """(weights, micro-batches, generator?): lengths differ, some tokens or whole micro-batches are masked."""
    seed = draw(st.integers(0, 999))
    batches = []
    for i in range(draw(st.integers(1, 5))):
        rows, length = draw(st.integers(1, 2)), draw(st.integers(2, 14))
        ids = torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(seed + i))
        mask = torch.ones(rows, length, dtype=torch.int64)
        if i and draw(st.integers(0, 3)) == 0:
            mask.zero_()
        elif length > 3 and draw(st.booleans()):
            mask[0, length // 2 :] = 0
        batches.append((ids, mask))
    return token_weights(seed), batches, draw(st.booleans())


def token_weights(seed):
    shapes = (WORDS, WIDTH), (WIDTH, WIDTH), (WIDTH, WORDS)
    return [normal(seed + i, shape) for i, shape in enumerate(shapes)]


EXACT = {"atol": 1e-11, "rtol": 1e-10}


@task(3)
@points(10)
@hint(
    "Add up the sums of losses (backward on each), count the tokens, and divide once, when all have been counted.",
    "The mean of means weighs a token of a short micro-batch more than one of a long one.",
)
@sk.given(token_batches(), examples=25)
def test_accumulation_exact(submission, reference, case):
    """accumulate gives the gradient of the mean over all tokens, however the tokens are split into micro-batches."""
    weights, batches, generator = case
    loss, tokens, grads = reference.pooled(weights, batches)
    report, got, error = submission.run(accumulated, weights, batches, {"generator": generator})
    check(error is None, "There are tokens, and yet accumulate raised ValueError.", got=error)
    same(got[:3], grads, **EXACT, what="gradients")
    check(got[3] is None or not got[3].any(), "A parameter that is not used gets no gradient.", got=got[3])
    check(report[1:3] == (tokens, len(batches)), "Tokens and micro-batches counted.", got=report[1:3])
    floats = isinstance(report[0], float) and isinstance(report[3], float)
    check(floats, "loss and grad_norm are floats.", got=(report[0], report[3]))
    same(torch.tensor(report[0], dtype=F64), torch.tensor(loss, dtype=F64), **EXACT, what="loss")
    norm = torch.tensor(reference.global_norm(grads), dtype=F64)
    same(torch.tensor(report[3], dtype=F64), norm, atol=1e-12, rtol=1e-8, what="grad_norm")


@task(3)
@points(2)
@hint(
    "Gradients that are there before the call must not be divided with the rest: set them aside.",
    "total_tokens replaces the divisor and nothing else. With no tokens, raise and leave .grad as it was.",
)
def test_accumulation_edges(submission, reference, torch_rng):
    """accumulate adds to gradients that are there, honours total_tokens, and refuses to divide by no tokens."""
    weights = token_weights(5)
    batches = [(torch.randint(WORDS, (1, n), generator=torch_rng), torch.ones(1, n, dtype=torch.int64)) for n in (9, 3)]
    loss, tokens, grads = reference.pooled(weights, batches)
    shapes = [*(w.shape for w in weights), (2,)]
    before = [torch.randn(shape, generator=torch_rng, dtype=F64) for shape in shapes]
    _, got, error = submission.run(accumulated, weights, batches, {"before": before})
    check(error is None, "accumulate raised ValueError.", got=error)
    same(got[:4], [*(b + g for b, g in zip(before, grads)), before[3]], **EXACT, what="gradients added to those before")
    report, got, error = submission.run(accumulated, weights, batches, {"total": 40})
    check(error is None, "accumulate raised ValueError.", got=error)
    same(got[:3], [g * tokens / 40 for g in grads], **EXACT, what="gradients with total_tokens = 40")
    check(report[1] == tokens, "n_tokens is what was counted.", got=report[1], want=tokens)
    wanted_loss = torch.tensor(loss * tokens / 40, dtype=F64)
    same(torch.tensor(report[0], dtype=F64), wanted_loss, **EXACT, what="loss with total_tokens = 40")
    masked = [(ids, torch.zeros_like(mask)) for ids, mask in batches]
    for nothing, options in ((masked, {}), ([], {}), (batches, {"total": 0})):
        report, got, error = submission.run(accumulated, weights, nothing, {"before": before, **options})
        check(error is not None and "no tokens" in error, 'A ValueError with "no tokens" is raised.', got=error)
        same(got[:4], before, atol=0.0, rtol=0.0, what="gradients after the error")


# --- task 4: the guard ------------------------------------------------------------------------------------------------


@probe
def judge(module, options, norms):
    guard = module.SpikeGuard(**options)
    return [bool(guard.should_skip(norm)) for norm in norms], guard.skipped


@st.composite
def norm_sequences(draw):
    """(options, norms): calm stretches, spikes, changes of scale, NaN and inf."""
    options = {
        "window": draw(st.sampled_from([4, 3, 1, 20])),
        "factor": draw(st.sampled_from([2.0, 10.0])),
        "warmup": draw(st.sampled_from([2, 1, 5])),
        "max_skips": draw(st.sampled_from([2, 0, 3])),
    }
    level, norms = 1.0, []
    for kind in draw(st.lists(st.integers(0, 9), min_size=5, max_size=40)):
        if kind == 9:
            level *= 30.0
        elif kind == 8:
            level /= 30.0
        special = {7: 40.0 * level, 6: math.nan, 5: math.inf, 4: 2.5 * level, 3: 11.0 * level}
        norms.append(special.get(kind, level * (1 + 0.25 * kind)))
    return options, norms


@st.composite
def lasting_changes(draw):
    """(options, norms): calm, a change of scale that is accepted, and a spike in the new warm-up and one after it."""
    warmup, factor, max_skips = (draw(st.sampled_from(x)) for x in ([2, 3, 5], [2.0, 10.0], [2, 0, 3]))
    level = 3 * factor
    calm = [1 + 0.1 * i for i in range(warmup + draw(st.integers(0, 2)))]
    again = [level] * draw(st.integers(0, warmup - 2))
    norms = [*calm, *[level] * (max_skips + 1), *again, 2 * factor * level, *[level] * warmup, 9 * factor * level]
    options = {"window": draw(st.sampled_from([3, 4, 20])), "factor": factor, "warmup": warmup, "max_skips": max_skips}
    return options, norms


@task(4)
@points(7)
@hint(
    "Print the window after a spike: a rejected norm must not be in it.",
    "Count finite rejections in a row; the one after max_skips is accepted into an empty window, warm-up begins anew.",
)
@sk.given(st.one_of(norm_sequences(), lasting_changes()), examples=60)
def test_guard(submission, reference, case):
    """The guard skips spikes and non-finite norms, learns nothing from them, and gives in to a lasting change."""
    options, norms = case
    want = reference.guard(norms, **options)
    decisions, skipped = submission.run(judge, options, norms)
    check(decisions == want, "The steps that are skipped.", got=decisions, want=want)
    check(skipped == sum(want), "`skipped` counts them.", got=skipped, want=sum(want))


# --- task 5: adaptive clipping ----------------------------------------------------------------------------------------


@st.composite
def units(draw):
    """(weights, gradients, clipping, eps): up to 4 dimensions, rows of zeros in either."""
    seed, grads, weights = draw(st.integers(0, 999)), [], []
    for i in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from([(3,), (3, 2), (1, 4), (4, 1), (2, 3, 2), (2, 1, 3, 2), ()]))
        dtype = draw(st.sampled_from([F32, F64]))
        w, g = normal(seed + i, shape, dtype), normal(seed + 7 + i, shape, dtype, draw(st.sampled_from([1, 1e-3, 50])))
        zero = draw(st.integers(0, 3))
        if shape and zero:
            (w if zero == 1 else g)[0] = math.nan if zero == 3 and draw(st.booleans()) else 0.0
        weights.append(w)
        grads.append(g)
    return weights, grads, draw(st.sampled_from([0.01, 0.2])), draw(st.sampled_from([1e-3, 0.5]))


@task(5)
@points(6)
@hint(
    "One ratio for each row: norms over every dimension but the first, with keepdim=True.",
    "eps keeps weights of zero trainable; 1e-6 keeps gradients of zero from dividing by zero.",
)
@sk.given(units(), examples=30)
def test_agc(submission, reference, case):
    """adaptive_clip_ bounds each unit's gradient by its own weights; vectors are one unit, NaN units stay."""
    weights, grads, clipping, eps = case
    # Weights of NaN have no bound that could be asked for.
    weights = [w.nan_to_num(0.0) for w in weights]
    want = reference.clipped_adaptively(weights, grads, clipping, eps)
    _, after, params = submission.run(
        clip, "adaptive_clip_", [*weights, torch.zeros(2)], [*grads, None], {"clipping": clipping, "eps": eps}
    )
    check(after[-1] is None, "A parameter without gradient keeps none.", got=after[-1])
    for got, expected, grad in zip(after, want, grads):
        same(got, expected, dtype=grad.dtype, atol=1e-30, rtol=5e-6, equal_nan=True, what="clipped gradient")
    same(params[:-1], weights, atol=0.0, rtol=0.0, what="weights, which stay")


@task(5)
@points(2)
@needs("test_agc")
@hint(
    "The square of 1e30 is no float32: take norms and ratio in float64, as in global_norm.",
    "The formula's 1e-6 stands below the gradient's norm, and a unit of inf has no finite norm.",
)
def test_agc_edges(submission, reference):
    """Adaptive clipping holds for gradients of 1e30 and of 5e-7, in half precision, and beside a unit of inf."""
    rows = torch.tensor([[3.0, 4.0], [0.5, 0.0], [0.0, 0.0]])
    cases = {
        "float32 gradients of 1e30": ([rows], [torch.full((3, 2), 1e30)], 0.01),
        "a number of 1e60 in float64": ([torch.tensor(2.0, dtype=F64)], [torch.tensor(-1e60, dtype=F64)], 0.01),
        "float16 gradients of 60 000": (
            [torch.ones(3, 2, dtype=F16), torch.tensor(1.0, dtype=F16)],
            [torch.full((3, 2), 6e4, dtype=F16), torch.tensor(-6e4, dtype=F16)],
            0.01,
        ),
        "gradients of 5e-7 to weights of zero": ([torch.zeros(2, 2)], [torch.tensor([[3e-7, 4e-7], [0.0, 0.0]])], 1e-4),
        "a unit of inf": ([rows], [torch.tensor([[math.inf, 1.0], [2.0, 2.0], [-math.inf, math.nan]])], 0.01),
    }
    for what, (weights, grads, clipping) in cases.items():
        want = reference.clipped_adaptively(weights, grads, clipping, 1e-3)
        _, after = clipped(submission, "adaptive_clip_", grads, weights, clipping=clipping, eps=1e-3)
        for got, expected, grad in zip(after, want, grads):
            rtol = 2e-3 if grad.dtype == F16 else 5e-6
            same(got, expected, dtype=grad.dtype, atol=1e-30, rtol=rtol, equal_nan=True, what=f"clipped: {what}")


# --- task 7: no_sync --------------------------------------------------------------------------------------------------


@probe
def synchronised(module, weight, batches, other_tokens, given=("no_sync",), total=None):
    """What happens in which order, and the gradient where another rank has `other_tokens` tokens (None: no ranks).

    accumulate is given the arguments that `given` names.
    """
    import contextlib

    import torch

    log = []
    model = torch.nn.Linear(weight.shape[0], 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    model.weight.register_hook(lambda grad: log.append("backward"))

    @contextlib.contextmanager
    def no_sync():
        log.append("enter")
        yield
        log.append("exit")

    def loss_sum(model, x):
        log.append("forward")
        return model(x).sum(), x.shape[0]

    dist = torch.distributed
    names = ("is_available", "is_initialized", "get_world_size", "all_reduce")
    kept = {name: getattr(dist, name, None) for name in names}
    if other_tokens is not None:
        dist.is_available = dist.is_initialized = lambda: True
        dist.get_world_size = lambda *_: 2
        dist.all_reduce = lambda tensor, *_, **__: tensor.add_(other_tokens)
    try:
        options = {name: {"no_sync": no_sync, "total_tokens": total}[name] for name in given}
        found = module.accumulate(model, iter(batches), loss_sum, **options)
    finally:
        for name, value in kept.items():
            setattr(dist, name, value)
    return log, model.weight.grad, (found.n_tokens, found.n_micro)


@task(7)
@points(3)
@hint(
    "The last micro-batch is known only when the next one has been asked for: read one ahead.",
    "Forward and backward both stand inside no_sync. Across ranks: times the ranks, over the tokens of all.",
)
def test_no_sync_contexts(submission, torch_rng):
    """no_sync is entered around all micro-batches but the last; ranks of different size give the pooled gradient."""
    weight = torch.randn(3, generator=torch_rng, dtype=F64)
    for k in (1, 2, 4):
        batches = [torch.randn(n + 1, 3, generator=torch_rng, dtype=F64) for n in range(k)]
        total = sum(len(x) for x in batches)
        summed = torch.cat(batches).sum(0, keepdim=True)
        want = ["enter", "forward", "backward", "exit"] * (k - 1) + ["forward", "backward"]
        log, grad, counts = submission.run(synchronised, weight, batches, None)
        check(log == want, "What happens in which order.", got=log, want=want)
        same(grad, summed / total, **EXACT, what="gradient")
        log, grad, counts = submission.run(synchronised, weight, batches, 5)
        check(log == want, "What happens in which order with two ranks.", got=log, want=want)
        check(counts == (total, k), "Tokens and micro-batches of this rank.", got=counts, want=(total, k))
        same(grad, 2 * summed / (total + 5), **EXACT, what="gradient that DDP will average over 2 ranks")
        log, grad, counts = submission.run(synchronised, weight, batches, 5, ("no_sync", "total_tokens"), 40)
        check(log == want, "What happens in which order with total_tokens.", got=log, want=want)
        same(grad, summed / 40, **EXACT, what="gradient with total_tokens = 40, whatever other ranks have")
        log, grad, counts = submission.run(synchronised, weight, batches, 5, ())
        same(grad, summed / total, **EXACT, what="gradient without no_sync, whatever other ranks have")
    with expect_error(ValueError, "no tokens"):
        submission.run(synchronised, weight, [], None)


# --- task 8: trainer and study ----------------------------------------------------------------------------------------

UNITS = 5


def rnn_weights(seed):
    return [normal(seed, (UNITS, 2)), torch.eye(UNITS, dtype=F64), normal(seed + 1, (UNITS,), scale=0.1),
            normal(seed + 2, (UNITS,))]  # fmt: skip


def updates_of(seed, steps, micro, spikes, nans=()):
    """Lists of micro-batches of different sizes; inputs of the steps in `spikes` are 1000 times too large."""
    updates = []
    for step in range(steps):
        batches = []
        for i in range(micro):
            x = normal(1000 * seed + 10 * step + i, (2 + 2 * i, 4, 2))
            y = x.prod(-1).sum(-1) * (1 + 3 * i)
            if step in spikes:
                x = x * 1000
            if step in nans:
                y = y * math.nan
            batches.append((x, y))
        updates.append(batches)
    return updates


@probe
def trained(module, jobs):
    """Reports, parameters, and optimizer calls of a Trainer for each (weights, updates, strategy, lr, generator?)."""
    import torch

    class Rnn(torch.nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.inputs, self.matrix, self.bias, self.readout = (torch.nn.Parameter(w.clone()) for w in weights)

        def forward(self, x):
            state = torch.zeros(x.shape[0], self.matrix.shape[0], dtype=x.dtype)
            for t in range(x.shape[1]):
                state = torch.relu(x[:, t] @ self.inputs.T + state @ self.matrix.T + self.bias)
            return state @ self.readout

    def loss_sum(model, batch):
        x, y = batch
        return (model(x) - y).square().sum(), y.numel()

    results = []
    for weights, updates, strategy, lr, generator in jobs:
        model = Rnn(weights)
        calls = []
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(1))
        steps = len(updates[0])
        number = {"accumulation_steps": steps} if generator else {}
        trainer = module.Trainer(model, optimizer, module.Strategy("case", **strategy), **number)
        stream = (batch for batches in updates for batch in batches)
        reports = [trainer.step(stream if generator else batches, loss_sum) for batches in updates]
        results.append((reports, [p.detach() for p in model.parameters()], len(calls)))
    return results


@probe
def skipped_adam(module, x, y):
    """Adam's state and the parameter around a step that the guard skips."""
    import copy

    import torch

    model = torch.nn.Linear(3, 1).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    trainer = module.Trainer(model, optimizer, module.Strategy("guard", guard=True))
    loss_sum = lambda model, batch: ((model(batch[0]) - batch[1]).square().sum(), batch[1].numel())
    trainer.step([(x, y)], loss_sum)
    flat = lambda: (
        [t.clone() for s in optimizer.state_dict()["state"].values() for t in s.values()]
        + [p.detach().clone() for p in model.parameters()]
    )
    before = copy.deepcopy(flat())
    report = trainer.step([(x, y * float("nan"))], loss_sum)
    return report["skipped"], before, flat()


@probe
def step_of_nothing(module, batches):
    """A step on these micro-batches of no targets."""
    import torch

    model = torch.nn.Linear(3, 1)
    trainer = module.Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), module.Strategy("none"))
    return trainer.step(batches, lambda model, batch: (model(batch).sum(), 0))


@probe
def replica_steps(module, grad, bounds):
    """For each bound: (times that no_sync was entered, report) of a step of three micro-batches with this gradient.

    The model has no_sync, as DDP has, and a parameter that is not used.
    """
    import contextlib

    import torch

    class Replica(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.entered = 0
            self.weight, self.unused = (torch.nn.Parameter(torch.zeros_like(grad)) for _ in range(2))

        @contextlib.contextmanager
        def no_sync(self):
            self.entered += 1
            yield

    results = []
    for bound in bounds:
        model = Replica()
        optimizer = torch.optim.SGD([model.weight], lr=0.1)
        trainer = module.Trainer(model, optimizer, module.Strategy("case", clip_norm=bound))
        report = trainer.step([grad, grad, grad], lambda model, batch: ((model.weight * batch).sum(), 1))
        results.append((model.entered, report["grad_norm"], bool(report["clipped"])))
    return results


CHOICES = (
    {},
    {"clip_norm": 0.5},
    {"clip_value": 0.05},
    {"agc": 0.05},
    {"agc": 0.2, "clip_value": 0.1, "clip_norm": 0.3},
    {"guard": True, "clip_norm": 1.0},
)


@task(8)
@points(4)
@hint(
    "zero_grad, accumulate all micro-batches, ask the guard, then clip once: clipping each micro-batch is not the same.",
    "The order is agc, value, norm. A skipped step does not call the optimizer at all.",
)
def test_trainer_order(submission, reference):
    """A step accumulates, asks the guard about the norm before clipping, clips once, and steps or leaves all alone."""
    weights = rnn_weights(3)
    jobs = []
    for number, strategy in enumerate(CHOICES):
        spikes = (12, 13) if strategy.get("guard") else ()
        updates = updates_of(number, 16 if spikes else 3, 3, spikes)
        jobs.append((weights, updates, strategy, 1e-3, number % 2 == 1))
    for (_, updates, strategy, lr, _), (reports, params, calls) in zip(jobs, submission.run(trained, jobs)):
        want, wanted_params = reference.train(weights, updates, strategy, lr)
        for got, expected in zip(reports, want):
            for key in ("skipped", "clipped"):
                check(bool(got[key]) == expected[key], f"`{key}` with {strategy}.", got=got[key], want=expected[key])
            for key in ("loss", "grad_norm"):
                value, wanted = (torch.tensor(float(r[key]), dtype=F64) for r in (got, expected))
                same(value, wanted, atol=1e-10, rtol=1e-6, what=f"`{key}` with {strategy}")
        same(params, wanted_params, atol=1e-7, rtol=1e-6, what=f"parameters with {strategy}")
        updated = sum(not r["skipped"] for r in want)
        check(calls == updated, "Calls of the optimizer.", got=calls, want=updated)
    for batches in ([], [torch.zeros(2, 3)]):
        with expect_error(ValueError, "no tokens"):
            submission.run(step_of_nothing, batches)
    # A norm of 500; what clipping takes from it is half of one part in 10^5, or one and a half.
    bounds = [None, 500 * (1 - 5e-6), 500 * (1 - 1.5e-5)]
    for (entered, norm, short), bound in zip(
        submission.run(replica_steps, torch.tensor([300.0, 400.0], dtype=F64), bounds), bounds
    ):
        check(entered == 2, "no_sync of the model is entered for two of three micro-batches.", got=entered, want=2)
        same(torch.tensor(norm, dtype=F64), torch.tensor(500.0, dtype=F64), rtol=1e-6, what="`grad_norm`")
        want = bound == bounds[-1]
        check(short == want, f"`clipped` with a norm of 500 and clip_norm={bound}.", got=short, want=want)
    x, y = normal(1, (4, 3)), normal(2, (4, 1))
    skipped, before, after = submission.run(skipped_adam, x, y)
    check(skipped, "A step of NaN is skipped by the guard.", got=skipped)
    same(after, before, atol=0.0, rtol=0.0, what="parameters and Adam's state around a skipped step")


@probe
def compared(module, weights, updates, strategies, steps, lr):
    """compare_strategies on models with these weights and these updates, both by seed."""
    import itertools

    import torch

    class Rnn(torch.nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.inputs, self.matrix, self.bias, self.readout = (torch.nn.Parameter(w.clone()) for w in weights)

        def forward(self, x):
            state = torch.zeros(x.shape[0], self.matrix.shape[0], dtype=x.dtype)
            for t in range(x.shape[1]):
                state = torch.relu(x[:, t] @ self.inputs.T + state @ self.matrix.T + self.bias)
            return state @ self.readout

    return module.compare_strategies(
        lambda seed: Rnn(weights[seed]),
        lambda seed: itertools.cycle(updates[seed]),
        [module.Strategy(name, **options) for name, options in strategies.items()],
        seeds=list(weights),
        steps=steps,
        lr=lr,
    )


@task(8)
@points(4)
@hint(
    "A new model, a new optimizer and the same batches for every strategy and seed.",
    "final_loss is the median of the last 10 losses, so that a corrupted last batch does not decide it.",
)
def test_stability_study(submission, reference):
    """compare_strategies trains each strategy on each seed and reports what happened: plain SGD diverges, others do
    not."""
    strategies = {
        "none": {}, "norm": {"clip_norm": 0.5}, "value": {"clip_value": 0.1}, "agc": {"agc": 0.02},
        "guard": {"guard": True},
    }  # fmt: skip
    # 20 updates of which two are corrupt. With these seeds plain SGD ends in NaN (with others in units that are dead).
    weights, updates = {}, {}
    for seed in (6, 8):
        weights[seed] = [w * scale for w, scale in zip(rnn_weights(seed), (0.5, 1.0, 1.0, 0.5))]
        xs = [normal(1000 * seed + 10 * step, (4, 4, 2)) for step in range(24)]
        updates[seed] = [[(x * (1000 if i in (11, 12) else 1), x.prod(-1).sum(-1))] for i, x in enumerate(xs)]
    table = submission.run(compared, weights, updates, strategies, 20, 0.05)
    check(list(table) == list(strategies), "One entry per strategy.", got=list(table), want=list(strategies))
    for name, options in strategies.items():
        rows = [reference.study(weights[seed], updates[seed][:20], options, 0.05) for seed in weights]
        wanted = {key: [row[key] for row in rows] for key in rows[0]}
        got = table[name]
        check(set(got) == set(wanted), f"Keys of {name}.", got=sorted(got), want=sorted(wanted))
        for key in ("diverged", "skipped", "updates"):
            check(list(got[key]) == wanted[key], f"`{key}` of {name}.", got=got[key], want=wanted[key])
        if name == "none":  # on its way to inf nothing is reproducible
            check(all(wanted["diverged"]), "Without clipping the reference diverges.")
            continue
        for key in ("final_loss", "max_norm"):
            values, want = (torch.tensor(x, dtype=F64) for x in (got[key], wanted[key]))
            same(values, want, atol=1e-9, rtol=1e-4, what=f"`{key}` of {name}")
    # One seed whose first update is NaN: without a guard all is lost, and no norm is finite.
    first, *others = updates[6][:4]
    lost = {6: [[(x, y * math.nan) for x, y in first], *others]}
    strategies = {"none": {}, "guard": {"guard": True}}
    table = submission.run(compared, {6: weights[6]}, lost, strategies, 4, 0.05)
    for name, options in strategies.items():
        for key, value in reference.study(weights[6], lost[6], options, 0.05).items():
            values, want = (torch.tensor(x, dtype=F64) for x in (table[name][key], [value]))
            same(values, want, atol=1e-9, rtol=1e-4, equal_nan=True, what=f"`{key}` of {name} after NaN")
