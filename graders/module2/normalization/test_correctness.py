"""Hidden correctness checks of 2.4 normalization.

Core is tasks 1 to 4; tasks 5 to 7 are stretch. The core checks look at values only, so that both norms may be composed
of ordinary operations with autograd behind them; what task 5 adds is judged by test_backward and by the bytes kept.

Mended in the specification:
* The real run is at lr 0.05 for 8 steps (the specification: 0.1, 80 steps): pre and post are as far apart there, at a
  tenth of the time.
* The rank of a LayerNorm's Jacobian is d - 2 only without eps; with the usual eps it is d - 1, and both are asked for.
* Half precision is judged by how many elements are the nearest ones, because a bound on the error wide enough for one
  rounding cannot see the second rounding of an output cast before the gain.
* Statistics are float32 for float32 and half precision data, which is what norm_cost counts; float64 keeps float64.
"""

import math

import torch
from hypothesis import strategies as st

from llmkata.checks import check, expect_error, hint, points, probe, same, sk, task

GRADIENT = {"atol": 1e-10, "rtol": 0.0}


def normal(rng, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


@st.composite
def norm_cases(draw, with_bias):
    """(x, weight, [bias,] eps): any number of dimensions, some rows constant or zero, now and then transposed."""
    lead = draw(st.sampled_from([(), (3,), (2, 3), (2, 1, 3)]))
    d = draw(st.integers(2, 65))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    eps = draw(st.sampled_from([1e-5, 0.1, 1e-12]))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e3]))
    seed = draw(st.integers(0, 999))
    x = sk.tensor(seed, (*lead, d), dtype=dtype, scale=scale)
    if lead and draw(st.booleans()):
        x[..., 0, :] = draw(st.sampled_from([0.0, 1.0]))
    if len(lead) > 1 and draw(st.booleans()):
        x = x.transpose(0, -2).contiguous().transpose(0, -2)
    parameters = [sk.tensor(seed + n, (d,), dtype=dtype) if draw(st.booleans()) else None for n in (1, 2)]
    return (x, *parameters, eps) if with_bias else (x, parameters[0], eps)


def rounding(x, weight, eps, centred):
    """Per element: 32 roundings of the output, and of the mean, which stand out where the spread is far below it."""
    x = x.double()
    spread = (x.var(-1, correction=0, keepdim=True) if centred else x.square().mean(-1, keepdim=True)) + eps
    largest = x.abs().amax(-1, keepdim=True) / spread.sqrt()
    gain = 1.0 if weight is None else weight.double().abs()
    return lambda dtype, want: 32 * torch.finfo(dtype).eps * ((1 + largest) * gain + want.abs())


# --- task 1: the two functions ----------------------------------------------------------------------------------------


@task(1)
@points(6)
@hint(
    "Each row, a vector along the last dimension, is normalised by itself: every mean has dim=-1 and keepdim=True.",
    "y = (x - mean) / sqrt(var + eps) · weight + bias, where var is the mean of (x - mean)² over all d features.",
)
@sk.given(norm_cases(with_bias=True), examples=25)
def test_layer_norm_matches(submission, reference, case):
    """layer_norm equals F.layer_norm in float64: any shape and eps, with and without gain and bias, constant rows
    too."""
    x, weight, _, eps = case
    want = reference.layer_norm(*case)
    limit = rounding(x, weight, eps, centred=True)(x.dtype, want)
    same(submission.layer_norm(*case), want, dtype=x.dtype, atol=limit, rtol=0.0)


@task(1)
@points(7)
@hint(
    "RMSNorm is LayerNorm without centring and without bias.",
    "y = x / sqrt(mean(x²) + eps) · weight, the mean over the last dimension.",
)
@sk.given(norm_cases(with_bias=False), examples=25)
def test_rms_norm_matches(submission, reference, case):
    """rms_norm equals F.rms_norm in float64: any shape and eps, with and without gain, rows of zeros too."""
    x, weight, eps = case
    want = reference.rms_norm(*case)
    limit = rounding(x, weight, eps, centred=False)(x.dtype, want)
    same(submission.rms_norm(*case), want, dtype=x.dtype, atol=limit, rtol=0.0)


@task(1)
@points(1)
@hint(
    "With a spread of 0 it is eps that keeps the root from being 0. (torch.var divides by d - 1, which is 0 for d = 1.)"
)
def test_degenerate_rows(submission):
    """Rows of one feature, constant rows and rows of zeros are finite: LayerNorm gives the bias, RMSNorm of zeros
    zeros."""
    for d in (1, 4):
        weight, bias = torch.full((d,), 3.0), torch.full((d,), 0.5)
        for value in (0.0, 2.0):
            x = torch.full((2, d), value)
            same(
                submission.layer_norm(x, weight, bias),
                bias.expand(2, d),
                what=f"layer_norm of rows of {d} times {value:g}",
            )
            same(
                submission.rms_norm(x, weight),
                weight.expand(2, d) * bool(value),
                what=f"rms_norm of rows of {d} times {value:g}",
            )


@task(1)
@points(5)
@hint(
    "Print your variance of a row around 10 000 in float32: it is the difference of two numbers near 10⁸.",
    "Two passes: first the mean, then the mean of (x - mean)².",
)
def test_offset_data(submission, reference, torch_rng):
    """Rows of unit variance around 100 and around 10 000 are normalised as exactly as float32 can hold them."""
    # float32 has steps of 7.6e-6 at 100 and 9.8e-4 at 10 000, and the mean is off by about one such step. Measured in
    # two passes: 1.1e-5 and 1.4e-3. E[x²] - E[x]²: 5e-3, and at 10 000 nonsense or NaN.
    for offset, limit in ((100.0, 1e-4), (1e4, 1e-2)):
        x = (normal(torch_rng, 2, 256) + offset).float()
        want = torch.stack([reference.exact_layer_norm(row, 1e-5) for row in x])
        got = submission.layer_norm(x, None, None, 1e-5)
        same(got, want, dtype=torch.float32, atol=limit, rtol=0.0, what=f"rows around {offset:g}")


def nearly_all_nearest(got, want, what):
    """One rounding of a float32 result hits the nearest number of the dtype but for a few ties; two miss a quarter."""
    same(
        got, want, dtype=got.dtype, atol=16 * torch.finfo(got.dtype).eps * want.abs().max().item(), rtol=0.0, what=what
    )
    missed = (got != want.to(got.dtype)).double().mean().item()
    check(
        missed <= 0.02,
        f"{what}: {missed:.0%} of the elements are not the nearest {got.dtype} number to the right "
        "value: something was rounded before the end.",
        got=missed,
        want="at most 2 %",
    )


@task(1)
@points(5)
@hint(
    "x.float() first, everything in float32, one .to(x.dtype) at the end (statistics_dtype is given).",
    "float16 ends at 65 504: the square of 300 is too large for it.",
)
def test_half_precision(submission, reference, torch_rng):
    """float16 (values around 1 000) and bfloat16 are computed in float32, gain and bias too, and rounded once."""
    for dtype, size in ((torch.float16, 1000.0), (torch.bfloat16, 1.0)):
        x = (size * normal(torch_rng, 16, 64)).to(dtype)
        weight, bias = (1 + normal(torch_rng, 64, dtype=dtype) for _ in range(2))
        for name, arguments in (("rms_norm", (x, weight)), ("layer_norm", (x, weight, bias))):
            got = submission.call(name, *arguments)
            want = getattr(reference, name)(*arguments)
            check(got.dtype == dtype, f"{name} of {dtype} must give {dtype}.", got=got.dtype, want=dtype)
            nearly_all_nearest(got, want, f"{name} in {dtype}")
        # A float32 gain (parameters are often kept so) does not change the dtype of the output.
        got = submission.rms_norm(x, weight.float())
        check(
            got.dtype == dtype, "The output has the dtype of x, also with a float32 weight.", got=got.dtype, want=dtype
        )


@task(1)
@points(1)
@hint("check_affine is given: call it first.")
def test_errors(submission, torch_rng):
    """A weight or bias that does not fit, and rows without features, raise ValueError naming the shapes."""
    x = normal(torch_rng, 2, 3)
    submission.layer_norm(x, None, None)
    submission.rms_norm(x, None)
    with expect_error(ValueError, "2, 3", "4"):
        submission.layer_norm(x, normal(torch_rng, 4), None)
    with expect_error(ValueError, "2, 3", "2, 3"):
        submission.layer_norm(x, None, normal(torch_rng, 2, 3))
    with expect_error(ValueError, "2, 3", "1"):
        submission.rms_norm(x, normal(torch_rng, 1))
    with expect_error(ValueError):
        submission.rms_norm(normal(torch_rng, 2, 0), None)


# --- task 2: layers ---------------------------------------------------------------------------------------------------


@task(2)
@points(3)
@hint(
    "nn.Parameter(torch.ones(d)) and nn.Parameter(torch.zeros(d)); with affine=False both attributes are None.",
    "forward passes self.eps on: the default of LayerNorm is 1e-5, that of RMSNorm 1e-6.",
)
def test_modules(submission, reference, torch_rng):
    """Both layers have the parameters of the contract, start as the plain norm, and use loaded values and their eps."""
    x = normal(torch_rng, 2, 3, 6, dtype=torch.float32)
    for name, wanted, norm in (
        ("LayerNorm", {"weight": torch.ones(6), "bias": torch.zeros(6)}, reference.layer_norm),
        ("RMSNorm", {"weight": torch.ones(6)}, reference.rms_norm),
    ):
        make = getattr(submission, name)
        layer = make(6, 0.5)
        same(dict(layer.state_dict()), wanted, what=f"parameters of a new {name}")
        values = {key: normal(torch_rng, 6, dtype=torch.float32) for key in wanted}
        layer.load_state_dict(values)
        same(layer(x), norm(x, *values.values(), 0.5), dtype=torch.float32, atol=1e-4, rtol=0.0, what=name)
        plain = make(6, affine=False)
        check(len(plain.state_dict()) == 0, f"{name}(affine=False) has no parameters.", got=list(plain.state_dict()))
        default = norm(1e-3 * x, *[None] * len(wanted))  # small rows, so that the default eps counts
        for layer in (plain, make(6)):
            same(
                layer(1e-3 * x), default, dtype=torch.float32, atol=1e-4, rtol=0.0, what=f"{name} with the default eps"
            )


@task(2)
@points(4)
@hint(
    "Draw the two: in 'pre' the stream itself is never normalised; in 'post' everything is, after each addition.",
    "pre: x + f(norm(x)). post: norm(x + f(x)).",
)
def test_sublayer(submission, torch_rng):
    """'pre' is x + f(norm(x)) and 'post' is norm(x + f(x)), with f and norm called once each."""
    x = normal(torch_rng, 2, 3, 4)
    calls = []

    def f(t):
        calls.append("f")
        return torch.tanh(2 * t) + t.flip(-1)

    def norm(t):
        calls.append("norm")
        return t / (1 + t.square().mean(-1, keepdim=True))

    pre, post = submission.sublayer(x, f, norm, "pre"), submission.sublayer(x, f, norm, "post")
    counted = sorted(calls)
    same(pre, x + f(norm(x)), atol=1e-12, rtol=0.0, what="pre")
    same(post, norm(x + f(x)), atol=1e-12, rtol=0.0, what="post")
    check(counted == ["f", "f", "norm", "norm"], "f and norm are called once for each placement.", got=counted)
    with expect_error(ValueError, "pre", "post"):
        submission.sublayer(x, f, norm, "both")


# --- task 3: measurements ---------------------------------------------------------------------------------------------

FIELDS = ("shift_error", "scale_error", "output_mean", "output_rms", "jacobian_rank")


@task(3)
@points(6)
@hint(
    "Work on copy.deepcopy(norm).double(): in float32 rounding alone looks like a broken invariance.",
    "torch.autograd.functional.jacobian(norm, row) is (d, d); torch.linalg.matrix_rank takes rtol=1e-9.",
    "With eps > 0 scaling is no exact invariance, so a LayerNorm loses one direction, not two.",
)
def test_invariances(submission, reference, torch_rng):
    """What shifts and scales do to each norm, means of its output and the rank of its Jacobian are measured in
    float64."""
    x = normal(torch_rng, 2, 3, 8, dtype=torch.float32)
    matrix, row = x[1], x[0, 2]
    x[0, 0] = 1.0  # LayerNorm has rank d - 1 at a constant row, whatever eps is
    for kind, name in (("layernorm", "LayerNorm"), ("rmsnorm", "RMSNorm")):
        # eps = 1e-12: the smallest singular value is above the default bound of matrix_rank and below 1e-9.
        for rows, eps, affine, shift in (
            (x, 1e-30, False, 2.0),
            (matrix, 1e-12, False, -2.0),
            (x, 1e-5, False, 2.0),
            (row, 1e-3, True, -2.0),
        ):
            norm = getattr(submission, name)(8, eps, affine=affine)
            values = {key: 1 + normal(torch_rng, 8, dtype=torch.float32) for key in norm.state_dict()}
            norm.load_state_dict(values)
            got = submission.measure_invariances(norm, rows, shift=shift, scale=5.0)
            want = reference.invariances(kind, rows, values.get("weight"), values.get("bias"), eps, shift, 5.0)
            where = f"of {name}(eps={eps:g}, affine={affine})"
            for field in FIELDS[:4]:
                same(float(getattr(got, field)), want[field], atol=1e-9, rtol=1e-9, what=f"{field} {where}")
            rank = got.jacobian_rank
            check(
                rank == want["jacobian_rank"], f"jacobian_rank {where} is wrong.", got=rank, want=want["jacobian_rank"]
            )
            check(not isinstance(rank, torch.Tensor), "jacobian_rank is an int, not a tensor.", got=rank)
            same(dict(norm.state_dict()), values, atol=0.0, rtol=0.0, what="the norm after it was measured")
    got = submission.measure_invariances(submission.make_norm("none", 8), x)
    want = reference.invariances("none", x, None, None, 0.0, 3.0, 7.0)
    for field in FIELDS:
        same(float(getattr(got, field)), float(want[field]), atol=1e-9, rtol=1e-9, what=f"{field} of no norm")


@probe
def profile_of(module, kind, placement, seed, ids):
    """The state of a model whose norms have other gains than 1, and its profile. In float64: a mistake is named by numbers
    that agree, and float32 sums differ by the place they lie at. ``seed`` None: a model as it is made."""
    import torch

    model = module.TinyLM(kind, placement).double()
    if seed is not None:
        rng = torch.Generator().manual_seed(seed)
        state = {k: v + 0.3 * torch.randn(v.shape, generator=rng) if "norm" in k else v for k, v in model.state_dict().items()}
        model.load_state_dict(state)
    return model.state_dict(), [float(v) for v in module.residual_rms_profile(model, ids)]


@task(3)
@points(3)
@hint(
    "x = model.embed(ids), then x = block(x) for each of model.blocks; note the RMS of x after each step.",
    "One number for the whole tensor: square, mean over everything, root.",
)
def test_profile(submission, reference, seed, torch_rng):
    """The RMS of the residual stream after the embedding and every block: it grows in 'pre', stays at 1 in 'post'."""
    ids = torch.randint(16, (3, 10), generator=torch_rng)
    for kind, placement in (("layernorm", "pre"), ("rmsnorm", "pre"), ("rmsnorm", "post"), ("none", "pre")):
        state, got = submission.run(profile_of, kind, placement, seed % 1000, ids)
        want = [s.square().mean().sqrt().item() for s in reference.streams(state, ids, kind, placement)]
        same(got, want, atol=1e-4, rtol=1e-4, what=f"profile of {kind}/{placement}")
    _, profile = submission.run(profile_of, "layernorm", "post", None, ids)
    same(profile[1:], [1.0] * 4, atol=1e-3, rtol=0.0, what="profile of a new post-norm model")


# --- task 4: the experiment -------------------------------------------------------------------------------------------


@probe
def grid(module, kinds, placements, lrs, seeds, val_loss):
    """The runs of an experiment whose training is a call of ``val_loss`` with the cell, as rows of plain numbers."""

    def train_fn(*cell):
        return module.NormRun(*cell, (1.0,), val_loss(*cell), False)

    runs = module.norm_experiment(kinds, placements, lrs, seeds, train_fn=train_fn)
    return [[run.kind, run.placement, float(run.lr), int(run.seed), float(run.val_loss)] for run in runs]


@task(4)
@points(5)
@hint(
    "Four nested loops (kinds outermost, seeds innermost), one call of train_fn(kind, placement, lr, seed) in each "
    "cell.",
    "('none', 'post') is the one combination to leave out.",
)
def test_experiment_protocol(submission):
    """Every cell of the grid is trained once, in order, ('none', 'post') is skipped, and the runs are returned."""
    calls = []

    def loss_of(kind, placement, lr, seed):
        return len(kind) + len(placement) / 8 + lr + seed / 1024

    def val_loss(*cell):
        calls.append(cell)
        return loss_of(*cell)

    lrs, seeds = [0.1, 0.001], [7, 3]
    for kinds, placements in (
        (["rmsnorm", "none", "layernorm"], ["post", "pre"]),
        (["none"], ["post"]),
        (["layernorm"], ["pre"]),
    ):
        calls.clear()
        got = submission.run(grid, kinds, placements, lrs, seeds, val_loss)
        want = [
            (k, p, lr, s) for k in kinds for p in placements for lr in lrs for s in seeds if (k, p) != ("none", "post")
        ]
        check(calls == want, "train_fn is called once for each cell, in the order of the loops.", got=calls, want=want)
        rows = [[*cell, loss_of(*cell)] for cell in want]
        check(got == rows, "The runs are those that train_fn returned, in order.", got=got, want=rows)


@probe
def tolerance(module, rows, threshold):
    """lr_tolerance of runs made from these rows, as [[kind, placement, lr or None], ...]."""
    runs = [module.NormRun(losses=(1.0,), **row) for row in rows]
    return [[*pair, lr] for pair, lr in module.lr_tolerance(runs, threshold).items()]


def a_run(kind, placement, lr, seed, val_loss, diverged=False):
    return {"kind": kind, "placement": placement, "lr": lr, "seed": seed, "val_loss": val_loss, "diverged": diverged}


@st.composite
def handmade_runs(draw):
    """Runs of one to three pairs in any order; every pair has learning rates of its own."""
    rows = []
    for kind, placement in draw(st.sampled_from([[("rmsnorm", "pre")], [("layernorm", "pre"), ("layernorm", "post")]])):
        for lr in draw(st.lists(st.sampled_from([0.001, 0.003, 0.01, 0.1]), min_size=1, unique=True)):
            for seed in range(draw(st.integers(1, 2))):
                rows.append(a_run(kind, placement, lr, seed, draw(st.sampled_from([1.5, 1.9, 2.0, 2.6, math.nan]))))
    return draw(st.permutations(rows))


@task(4)
@points(4)
@hint(
    "Go up the learning rates of one pair and stop at the first at which some seed is not below the threshold.",
    "NaN < threshold is False, which is what you want; NaN >= threshold is False too.",
)
@sk.given(handmade_runs(), examples=25)
def test_lr_tolerance(submission, reference, case):
    """The largest lr such that it and all smaller ones of the pair are below the threshold for all seeds, else None."""
    got = {(kind, placement): lr for kind, placement, lr in submission.run(tolerance, case, 2.0)}
    want = reference.lr_tolerance(case, 2.0)
    check(got == want, "lr_tolerance is wrong.", got=got, want=want)


@probe
def sweep_facts(module, rows):
    """What plot_lr_sweep drew, as plain data, and the first bytes of the file."""
    import tempfile
    from pathlib import Path

    from matplotlib.markers import MarkerStyle

    runs = [module.NormRun(losses=(1.0,), **row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.png"
        figure = module.plot_lr_sweep(runs, path)
        signature = path.read_bytes()[:8]
    (ax,) = figure.axes
    legend = ax.get_legend()
    x_marker = MarkerStyle("x")
    x_path = x_marker.get_path().transformed(x_marker.get_transform()).vertices.tolist()
    marked = [c for c in ax.collections if any(path.vertices.tolist() == x_path for path in c.get_paths())]
    crosses = [xy for c in marked for xy in c.get_offsets().tolist()]
    for line in ax.get_lines():
        if line.get_marker() == "x" and line.get_label().startswith("_"):
            crosses += [[float(v) for v in xy] for xy in zip(line.get_xdata(), line.get_ydata())]
    return {
        "signature": signature,
        "scales": [ax.get_xscale(), ax.get_yscale()],
        "top": float(ax.get_ylim()[1]),
        "legend": sorted(t.get_text() for t in legend.get_texts()) if legend else [],
        "lines": {
            line.get_label(): [[float(v) for v in line.get_xdata()], [float(v) for v in line.get_ydata()]]
            for line in ax.get_lines()
            if not line.get_label().startswith("_")
        },
        "crosses": crosses,
    }


@task(4)
@points(3)
@hint(
    "One labelled line for each pair; a point is the mean of val_loss over seeds, or the top of the axis "
    "(get_ylim()[1]).",
    "Set the y limits before you draw the lost points, and to a value: matplotlib moves automatic limits.",
)
def test_plot(submission, reference):
    """Lines hold the mean over seeds, lost points sit at the upper limit with an x, the x axis is logarithmic."""
    rows = [a_run("rmsnorm", "post", 0.003, 0, math.inf), a_run("rmsnorm", "post", 0.03, 0, math.nan, True)]
    rows += [a_run("rmsnorm", "post", 0.01, 0, 2.25)]
    rows += [a_run("layernorm", "pre", lr, s, 1.5 + 10 * lr + 0.1 * s) for lr in (0.1, 0.01, 0.03) for s in (0, 1)]
    rows += [a_run("none", "pre", lr, s, 1.6 + s / 8) for lr in (0.01, 0.03) for s in (0, 1)]
    rows += [a_run("none", "pre", 0.1, 0, 1.75), a_run("none", "pre", 0.1, 1, 6e10, True)]
    alone = [a_run("rmsnorm", "pre", 0.01, 0, 1.5), a_run("rmsnorm", "pre", 0.1, 0, math.nan, True)]
    for drawn in (rows, alone, alone[1:]):
        check_sweep(submission.run(sweep_facts, drawn), reference.sweep_lines(drawn))


def check_sweep(facts, want):
    """The drawing against the lines it must have; where nothing is finite, any upper limit will do."""
    check(facts["signature"] == b"\x89PNG\r\n\x1a\n", "The file is not a PNG.", got=facts["signature"])
    check(facts["scales"][0] == "log", "The x axis is logarithmic.", got=facts["scales"][0])
    check(
        set(facts["lines"]) == set(want),
        "One line labelled kind/placement for each pair.",
        got=sorted(facts["lines"]),
        want=sorted(want),
    )
    check(facts["legend"] == sorted(want), "The legend names every line.", got=facts["legend"], want=sorted(want))
    top = facts["top"]
    for label, line in want.items():
        x, y = ([point[i] for point in line] for i in (0, 1))
        check(all(v < top for v in y if not math.isnan(v)), "A finite mean is not below the upper limit.", got=top)
        same(facts["lines"][label][0], x, atol=1e-12, rtol=0.0, what=f"learning rates of {label}")
        y = [top if math.isnan(v) else v for v in y]
        same(facts["lines"][label][1], y, atol=1e-9, rtol=0.0, what=f"losses of {label}")
    lost = sorted(lr for line in want.values() for lr, y in line if math.isnan(y))
    crosses = sorted(facts["crosses"])
    same(crosses, [[lr, top] for lr in lost], atol=1e-9, rtol=0.0, what="the x marks")


@probe
def train(module, kind, placement, tell):
    """Tell the outcome of one short real run through norm_experiment. (It is told, not answered: what rounding does to
    a training run is no evidence of a known mistake.)"""
    import functools

    short = functools.partial(module.train_tiny_lm, steps=8)
    (run,) = module.norm_experiment([kind], [placement], [0.05], [0], train_fn=short)
    tell([float(run.val_loss), bool(run.diverged)])


@task(4)
@points(3)
@hint(
    "Nothing trains: do gradients flow through your norms? Did you detach something?",
    "Pre-norm learns at this rate and post-norm does not: are the placements in sublayer the right way round?",
)
def test_real_run(submission):
    """At a learning rate of 0.05 a model with pre-norm learns the chain, and one with post-norm learns nothing."""
    # After 8 steps with this seed: 1.94 and 1.96 nats (pre, either norm) against 2.80 and 2.68 (post); symbol counts
    # alone give 2.61.
    for kind, placement, low, high in (
        ("rmsnorm", "pre", 1.2, 2.3),
        ("layernorm", "post", 2.45, 3.5),
    ):
        told = []
        submission.run(train, kind, placement, told.append)
        ((val_loss, diverged),) = told
        check(
            low <= val_loss <= high,
            f"{kind}/{placement} has another validation loss than it should.",
            got=val_loss,
            want=f"{low:g} to {high:g} nats",
        )
        check(not diverged, f"{kind}/{placement} did not diverge.", got=diverged, want=False)


# --- task 5: the backward pass ----------------------------------------------------------------------------------------


@task(5)
@points(7)
@hint(
    "mean and rstd depend on x too: with x̂ fixed you get ĝ·rstd, and the statistics take away mean(ĝ ∘ x̂)·x̂ (and "
    "mean(ĝ)).",
    "Two identities to test yours with: a LayerNorm gradient sums to 0 over the features, and <dx, x - mean> is 0 but "
    "for eps.",
    "dw and db sum over everything but the last dimension.",
)
def test_backward(submission, reference, torch_rng):
    """Gradients of x, weight and bias equal those through PyTorch's norms: all shapes, no gain, zero gains, tiny
    eps."""
    for lead, d, eps, with_weight, with_bias in (
        ((2,), 5, 1e-5, True, True),
        ((), 4, 0.1, True, True),
        ((2, 3), 7, 1e-3, False, True),
        ((3, 2), 1, 1e-5, True, False),
        ((4,), 6, 1e-30, False, False),
    ):
        x = normal(torch_rng, d, *lead).movedim(0, -1)  # not contiguous
        weight = normal(torch_rng, d) if with_weight else None
        if with_weight and d > 2:
            weight[1] = 0.0
        bias = normal(torch_rng, d) if with_bias else None
        cotangent = normal(torch_rng, *lead, d)
        for kind, name, arguments in (
            ("rmsnorm", "rms_norm", (x, weight)),
            ("layernorm", "layer_norm", (x, weight, bias)),
        ):
            wrt = tuple(i for i, t in enumerate(arguments) if t is not None)
            _, grads = submission.vjp(name, (*arguments, eps), wrt=wrt, cotangents=cotangent)
            want = reference.gradients(kind, x, weight, bias if kind == "layernorm" else None, eps, cotangent)
            for i, got, right in zip(wrt, grads, want, strict=True):
                part = ("x", "weight", "bias")[i]
                same(got, right, **GRADIENT, what=f"gradient of {part} of {name} {(*lead, d)}, eps {eps:g}")


@task(5)
@points(2)
@hint("Compute in float32 also on the way back, and give each gradient the dtype of its tensor.")
def test_backward_in_half_precision(submission, reference, torch_rng):
    """Gradients of bfloat16 data are those of float32 arithmetic, rounded to the dtype of each tensor."""
    x, cotangent = (normal(torch_rng, 64, 16, dtype=torch.bfloat16) for _ in range(2))
    weight, bias = 1 + normal(torch_rng, 16, dtype=torch.bfloat16), normal(torch_rng, 16, dtype=torch.float32)
    fine = torch.full((16,), 1.0038)  # bfloat16 makes 1 of it: 0.4 % less
    for kind, name, arguments in (
        ("rmsnorm", "rms_norm", (x, weight)),
        ("rmsnorm", "rms_norm", (x, fine)),
        ("layernorm", "layer_norm", (x, weight, bias)),
        ("layernorm", "layer_norm", (x, fine, bias)),
    ):
        wrt = tuple(range(len(arguments)))
        _, grads = submission.vjp(name, (*arguments, 1e-5), wrt=wrt, cotangents=cotangent)
        want = reference.gradients(kind, x, arguments[1], bias if kind == "layernorm" else None, 1e-5, cotangent)
        # Roundings of the 1024 numbers cancel: 2e-5 is left. A gain that was rounded to bfloat16 does not cancel.
        factor = ((grads[0].double() * want[0]).sum() / want[0].square().sum()).item()
        check(abs(factor - 1) <= 1e-3, f"The gradient of x of {name} is too large or too small.", got=factor, want=1.0)
        for part, tensor, got, right in zip(("x", "weight", "bias"), arguments, grads, want):
            # A rounding is 2^-9 of a number. A sum of 64 products of numbers rounded to bfloat16 is off by 2^-9 of
            # them. The bias, float32, is a sum of what came in.
            limit = 1e-4 if part == "bias" else 2.0**-5 * right.abs().max().item()
            same(got, right, dtype=tensor.dtype, atol=limit, rtol=0.0, what=f"gradient of {part} of {name}")


# --- task 6: algebra --------------------------------------------------------------------------------------------------


@probe
def fold(module, name, eps, affine, norm_state, weight, bias):
    """fold_norm's two layers, and the arguments as they are afterwards."""
    import torch

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    norm = getattr(module, name)(weight.shape[1], eps, affine=affine).double()
    norm.load_state_dict(norm_state)
    new_norm, new_linear = module.fold_norm(norm, linear)
    return (
        new_norm,
        new_linear,
        {
            "norm_parameters": len(list(new_norm.parameters())),
            "norm": {key: value.detach().clone() for key, value in norm.state_dict().items()},
            "linear": {key: value.detach().clone() for key, value in linear.state_dict().items()},
        },
    )


@task(6)
@points(5)
@hint(
    "W (x̂ ∘ gain + bias) + b: pull the gain into W and the bias into b.",
    "(W diag(gain)) scales column j of W by gain[j]; weight is (out, in), so gain broadcasts as it is.",
)
def test_fold(submission, reference, torch_rng):
    """The folded pair computes what norm and linear did, its norm has no parameters, and the originals are
    untouched."""
    x = 0.01 * normal(torch_rng, 3, 5)  # small, so that eps counts
    for name, eps, affine, with_bias in (
        ("RMSNorm", 1e-3, True, True),
        ("RMSNorm", 1e-6, True, False),
        ("LayerNorm", 1e-3, True, True),
        ("LayerNorm", 1e-5, True, False),
        ("RMSNorm", 1e-2, False, True),
    ):
        keys = ("weight", "bias") if name == "LayerNorm" else ("weight",)
        state = {key: normal(torch_rng, 5) for key in keys} if affine else {}
        weight, bias = normal(torch_rng, 5, 5), normal(torch_rng, 5) if with_bias else None
        norm, linear, after = submission.run(fold, name, eps, affine, state, weight, bias)
        y = (
            reference.layer_norm(x, state.get("weight"), state.get("bias"), eps)
            if name == "LayerNorm"
            else (reference.rms_norm(x, state.get("weight"), eps))
        )
        want = torch.nn.functional.linear(y, weight, bias)
        where = f"{name}(affine={affine}) into a linear {'with' if with_bias else 'without'} bias"
        same(linear(norm(x)), want, atol=1e-10, rtol=0.0, what=where)
        check(after["norm_parameters"] == 0, "The new norm still has parameters.", got=after["norm_parameters"], want=0)
        old = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        same(after["linear"], old, atol=0.0, rtol=0.0, what="the linear that was handed in")
        same(after["norm"], state, atol=0.0, rtol=0.0, what="the norm that was handed in")


@probe
def centred(module, weight, bias):
    """center_writer's layer, and the state of the original afterwards."""
    import torch

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    new = module.center_writer(linear)
    return new, {key: value.detach().clone() for key, value in linear.state_dict().items()}


@task(6)
@points(5)
@hint(
    "The mean over the outputs of Wx + b is (mean row of W)·x + mean(b): subtract both.",
    "Which dimension of W runs over the outputs? nn.Linear's weight is (out, in).",
)
def test_layernorm_is_rmsnorm_of_centred(submission, reference, torch_rng):
    """A pre-norm stack whose writers went through center_writer gives the same with RMSNorm as with LayerNorm."""
    d, width, eps = 6, 9, 1e-5
    x = normal(torch_rng, 4, d)
    x = x - x.mean(-1, keepdim=True)
    streams = {"layer_norm": x, "rms_norm": x}
    for n in range(4):
        read, write = normal(torch_rng, width, d), normal(torch_rng, d, width)
        bias = normal(torch_rng, d) if n % 2 else None
        writer, original = submission.run(centred, write, bias)
        same(original["weight"], write, atol=0.0, rtol=0.0, what="the linear that was handed in")
        for name, stream in streams.items():
            norm = getattr(reference, name)
            inner = torch.tanh(norm(stream, *([None] * (2 if name == "layer_norm" else 1)), eps) @ read.T)
            added = writer(inner)
            plain = torch.nn.functional.linear(inner, write, bias)
            same(added, plain - plain.mean(-1, keepdim=True), atol=1e-9, rtol=0.0, what="output of the centred writer")
            streams[name] = stream + added
    same(streams["rms_norm"], streams["layer_norm"], atol=1e-9, rtol=0.0, what="the stack with RMSNorm")
