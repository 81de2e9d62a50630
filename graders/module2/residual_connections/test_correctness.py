"""Hidden correctness checks of 2.5 residual_connections.

Core is tasks 1 to 4; tasks 5 to 7 are stretch, and no core check runs their code. Models are float64 copies of TinyLM
with weights drawn here, so that the oracle, which knows only the weights, computes them independently.

Mended in the specification:
* Without norms and skips the *parameters'* gradients vanish in every sublayer; the gradient of the last stream cannot
  (only final_norm and unembed lie behind it), so the statement is about parameters.
* The real sweep runs 6 steps in place of 80: the two kinds are 0.7 nats apart by then, and cost a tenth of the time.
* A model of the kind "none" has no decomposition: ValueError("no residual stream"), as its checks say; the contract's
  "the whole output" is about `contribution`.
"""

import math

import torch
from hypothesis import strategies as st

from llmkata.checks import check, expect_error, hint, points, probe, same, sk, task

KINDS = ("none", "plain", "scaled", "rezero")
TIGHT = {"atol": 1e-10, "rtol": 1e-10}


def normal(rng, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


def weights(rng, kind, n_layers, norm="rmsnorm", d=8):
    """A float64 state dict of TinyLM(kind, n_layers, norm, d=d) with random gains and gates."""
    state = {"token.weight": normal(rng, 16, d), "position.weight": normal(rng, 16, d)}
    for n in range(2 * n_layers):
        name = f"sublayers.{n}"
        if kind == "rezero":
            state[f"{name}.gate"] = normal(rng)
        if norm == "rmsnorm":
            state[f"{name}.branch.0.weight"] = 1 + 0.3 * normal(rng, d)
        if n % 2:
            state[f"{name}.branch.1.weight"] = normal(rng, 4 * d, d) / d**0.5
            state[f"{name}.branch.3.weight"] = normal(rng, d, 4 * d) / (2 * d**0.5)
        else:
            state[f"{name}.branch.1.qkv_proj.weight"] = normal(rng, 3 * d, d) / d**0.5
            state[f"{name}.branch.1.out_proj.weight"] = normal(rng, d, d) / d**0.5
    if norm == "rmsnorm":
        state["final_norm.weight"] = 1 + 0.3 * normal(rng, d)
    state["unembed.weight"] = normal(rng, 16, d) / d**0.5
    return state


def tokens(rng, batch=2, length=5):
    return torch.randint(16, (batch, length), generator=rng)


@probe
def build(module, kind, n_layers, norm, state):
    """A float64 TinyLM with these weights."""
    model = module.TinyLM(kind, n_layers, norm, d=state["token.weight"].shape[1]).double()
    model.load_state_dict(state)
    return model


# --- task 1: wirings --------------------------------------------------------------------------------------------------


@probe
def wire(module, kind, n_sublayers, gate, inner, outer, x, cotangent):
    """Output and contribution of a wrapped MLP, and gradients of x, of the MLP and of the gate."""
    import torch

    branch = torch.nn.Sequential(
        torch.nn.Linear(*inner.T.shape, bias=False), torch.nn.Tanh(), torch.nn.Linear(*outer.T.shape, bias=False)
    ).double()
    branch[0].weight.data, branch[2].weight.data = inner, outer
    wrapper = module.ResidualWrapper(branch, kind, n_sublayers).double()
    gates = [p for name, p in wrapper.named_parameters() if name == "gate"]
    with torch.no_grad():
        for p in gates:
            p.fill_(gate)
    x = x.detach().requires_grad_()
    output = wrapper(x)
    grads = torch.autograd.grad(output, [x, branch[0].weight, branch[2].weight, *gates], cotangent)
    return output.detach(), wrapper.contribution(x).detach(), list(grads)


@st.composite
def wirings(draw):
    lead = draw(st.sampled_from([(1,), (3,), (2, 3)]))
    d, width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    n_sublayers = draw(st.sampled_from([4, 2, 24, 1]))
    gate = draw(st.sampled_from([0.5, -2.0, 0.0]))
    seed = draw(st.integers(0, 999))
    shapes = ((width, d), (d, width), (*lead, d), (*lead, d))
    return n_sublayers, gate, *(sk.tensor(seed + n, shape) for n, shape in enumerate(shapes))


@task(1)
@points(7)
@hint(
    "Multiply the branch, never x: the skip is the identity in all three residual kinds.",
    "none f(x); plain x + f(x); scaled x + f(x)/sqrt(n_sublayers); rezero x + gate·f(x). contribution is what is "
    "added.",
)
@sk.given(wirings(), examples=12)
def test_wirings(submission, case):
    """forward and contribution are those of the four wirings, and gradients reach x, the branch and the gate."""
    n_sublayers, gate, inner, outer, x, cotangent = case
    for kind in KINDS:
        leaves = [t.clone().requires_grad_() for t in (x, inner, outer)]
        factor = torch.tensor(gate, dtype=torch.float64, requires_grad=True)
        scale = {"none": 1.0, "plain": 1.0, "scaled": 1 / math.sqrt(n_sublayers), "rezero": factor}[kind]
        added = torch.tanh(leaves[0] @ leaves[1].T) @ leaves[2].T * scale
        want = added if kind == "none" else leaves[0] + added
        wanted = torch.autograd.grad(want, [*leaves, *([factor] if kind == "rezero" else [])], cotangent)
        output, contribution, grads = submission.run(wire, kind, *case)
        same(output, want.detach(), **TIGHT, what=f"output of {kind}")
        same(contribution, added.detach(), **TIGHT, what=f"contribution of {kind}")
        check(
            len(grads) == len(wanted), "Only rezero has a parameter `gate`.", got=len(grads) - 3, want=len(wanted) - 3
        )
        for name, got, right in zip(("x", "the branch", "the branch", "the gate"), grads, wanted):
            same(got, right, **TIGHT, what=f"gradient of {name} of {kind}")


@probe
def wrap_with(module, kind, case):
    """The output of a wrapper on a (2, 3, 4) input whose branch returns another shape."""
    import torch

    class Branch(torch.nn.Module):
        def forward(self, x):
            return {"width": x[..., :3], "tokens": x.mean(1, keepdim=True), "same": x}[case]

    return module.ResidualWrapper(Branch(), kind, 2)(torch.ones(2, 3, 4))


@task(1)
@points(2)
@hint(
    "Compare the shapes yourself: a (2, 1, 4) added to a (2, 3, 4) broadcasts without a word.",
    "check_kind is given; branch_scale and the wrapper both call it.",
)
def test_wiring_errors(submission):
    """A branch that returns another shape raises ValueError("shape ..."), for every kind, and so does an unknown
    kind."""
    for kind in KINDS:
        submission.run(wrap_with, kind, "same")
        for case in ("width", "tokens"):
            with expect_error(ValueError, "shape"):
                submission.run(wrap_with, kind, case)
    with expect_error(ValueError, *KINDS):
        submission.branch_scale("dense", 2)
    with expect_error(ValueError, *KINDS):
        submission.run(wrap_with, "dense", "same")


@task(1)
@points(2)
@hint("'scaled' is 1/sqrt(n_sublayers): n branches of variance 1/n add up to one branch's worth.")
def test_branch_scale(submission):
    """none and plain 1, scaled n_sublayers ** -0.5, rezero 0."""
    for n in (1, 2, 16, 50):
        for kind, want in (("none", 1.0), ("plain", 1.0), ("scaled", 1 / math.sqrt(n)), ("rezero", 0.0)):
            same(
                float(submission.branch_scale(kind, n)), want, atol=1e-12, rtol=0.0, what=f"branch_scale({kind!r}, {n})"
            )


@probe
def gates_of(module, kind):
    """Shape and value of each parameter called gate in a new model, and the model's logits and weights."""
    import torch

    model = module.TinyLM(kind, 3)
    found = [(list(p.shape), float(p)) for name, p in model.named_parameters() if name.endswith("gate")]
    with torch.no_grad():
        return found, model(torch.arange(12).reshape(2, 6)), {k: v.clone() for k, v in model.state_dict().items()}


@task(1)
@points(3)
@hint("nn.Parameter(torch.zeros(())): one number, 0 at the start, so that every sublayer begins as the identity.")
def test_rezero_starts_as_identity(submission, reference):
    """A new rezero model has one gate of 0 per sublayer, shape (), and its logits are those of the embedding alone."""
    ids = torch.arange(12).reshape(2, 6)
    for kind in KINDS:
        gates, logits, state = submission.run(gates_of, kind)
        want = [([], 0.0)] * 6 if kind == "rezero" else []
        got = [(list(shape), value) for shape, value in gates]
        check(got == want, f"Gates (shape, value) of a new {kind} model.", got=got, want=want)
        last = reference.streams(state, kind, 3, ids)[0 if kind == "rezero" else -1]
        same(
            logits, reference.logits(state, last), dtype=None, atol=1e-4, rtol=0.0, what=f"logits of a new {kind} model"
        )


# --- task 2: variance and rank ----------------------------------------------------------------------------------------


@task(2)
@points(6)
@hint(
    "Draw x, then one A for each step, from one torch.Generator().manual_seed(seed), in that order.",
    "Variances of independent terms add: Var[x + alpha·f] = Var[x] + alpha²·Var[f].",
)
def test_variance(submission, reference):
    """measure_variance follows the normative draws step by step, and expected_variance is (1 + alpha²)^n, close to
    it."""
    for n, alpha, d, batch, seed in ((1, 1.0, 4, 3, 5), (6, -0.5, 16, 8, 1), (16, 1.0, 64, 16, 2)):
        got = submission.measure_variance(n, alpha, d=d, batch=batch, seed=seed)
        check(len(got) == n, "One number for each step.", got=len(got), want=n)
        want = reference.measure_variance(n, alpha, d, batch, seed)
        same(
            [float(v) for v in got],
            want,
            atol=0.0,
            rtol=1e-4,
            what=f"measure_variance({n}, {alpha}, d={d}, seed={seed})",
        )
    for n, alpha in ((0, 1.0), (4, 1.0), (7, 0.25), (64, 0.125)):
        want = (1 + alpha**2) ** n
        same(
            float(submission.expected_variance(n, alpha)),
            want,
            atol=0.0,
            rtol=1e-9,
            what=f"expected_variance({n}, {alpha})",
        )
    # At d = 256 measured / expected was 0.97 to 1.11 for seeds 0 to 4.
    got = submission.measure_variance(16, 1.0)[-1]
    check(
        0.75 <= got / 65536 <= 1.25,
        "16 steps with alpha = 1, defaults, stay within 25 % of 2^16.",
        got=got,
        want=65536.0,
    )


@st.composite
def token_arrays(draw):
    """(..., T, d) arrays; some with equal rows, some zero."""
    lead = draw(st.sampled_from([(), (2,), (2, 2)]))
    t, d = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    x = sk.tensor(draw(st.integers(0, 999)), (*lead, t, d), scale=draw(st.sampled_from([1.0, 0.001])))
    form = draw(st.sampled_from(["any", "offset", "equal", "zero"]))
    if form == "equal":
        x = x[..., :1, :].expand(x.shape).contiguous()
    return {"any": x, "offset": x + 3.0, "equal": x, "zero": x * 0}[form]


@task(2)
@points(5)
@hint(
    "Which shared row is nearest to all tokens? Their mean, over the positions (dim -2).",
    "Frobenius norms over the last two dimensions: sqrt of the sum of all squares. 0/0 counts as 0.",
)
@sk.given(token_arrays(), examples=30)
def test_rank_one_distance(submission, reference, case):
    """||x - 1·mean_t(x)|| / ||x|| of every (T, d) array: 0 for equal tokens and for zeros, unchanged by the scale."""
    got = submission.rank_one_distance(case)
    want = [reference.rank_one_distance(x) for x in case.reshape(-1, *case.shape[-2:])]
    same(got, torch.tensor(want, dtype=torch.float64).reshape(case.shape[:-2]), atol=1e-11, rtol=0.0)


@probe
def collapse(module, skip, seed, depth, x):
    """rank_profile of a stack of given attention layers."""
    layers = [module.AttentionOnly(x.shape[-1], skip, 100 * seed + n) for n in range(depth)]
    return [float(v) for v in module.rank_profile(layers, x)]


@task(2)
@points(6)
@hint(
    "Run the layers one after the other and measure after each of them; the input itself is not measured.",
    "With a batch the number is the mean of the distances, not the distance of the mean.",
)
def test_rank_collapse(submission, reference, torch_rng):
    """rank_profile of attention without a skip falls to rounding noise within six layers; with a skip it does not."""
    x = normal(torch_rng, 2, 8, 16)
    for seed in range(3):
        for skip, depth in ((False, 6), (True, 12)):
            got = submission.run(collapse, skip, seed, depth, x)
            want, y = [], x
            for n in range(depth):
                y = reference.attention_only(y, skip, 100 * seed + n)
                want.append(sum(map(reference.rank_one_distance, y)) / len(y))
            same(got, want, atol=1e-8, rtol=0.0, what=f"rank_profile {'with' if skip else 'without'} skip")
    # Measured over five seeds: 2e-16 after 6 layers without, 0.12 to 0.27 after 12 with a skip.


# --- task 3: gradients ------------------------------------------------------------------------------------------------


@probe
def profile_twice(module, kind, n_layers, norm, state, ids, targets):
    """Two profiles of a model whose parameters already hold gradients (or None, every second), and those afterwards.
    The last branch has a parameter that it does not use."""
    import torch

    model = module.TinyLM(kind, n_layers, norm, d=state["token.weight"].shape[1]).double()
    model.load_state_dict(state)
    model.sublayers[-1].branch.register_parameter("spare", torch.nn.Parameter(torch.ones(3).double()))
    for n, p in enumerate(model.parameters()):
        p.grad = torch.ones_like(p) if n % 2 else None
    out = []
    for _ in range(2):
        g = module.gradient_profile(model, ids, targets)
        out.append([float(g.loss), [float(v) for v in g.activation], [float(v) for v in g.parameter]])
    changed = []
    for n, (name, p) in enumerate(model.named_parameters()):
        kept = p.grad is not None and bool((p.grad == 1).all()) if n % 2 else p.grad is None
        if not kept:
            changed.append(name)
    return out, changed


@task(3)
@points(8)
@hint(
    "Keep the stream after each sublayer in a list and differentiate with respect to the whole list at once.",
    "torch.autograd.grad(loss, streams + parameters, allow_unused=True) writes to no .grad field.",
    "parameter[n] is the norm of all gradients of sublayer n as one vector: sqrt of the sum of their squares; one that "
    "the loss does not depend on counts 0.",
)
def test_gradient_profile(submission, reference, torch_rng):
    """Loss and gradient norms equal the oracle's for all kinds; what .grad held before is neither used nor changed."""
    for kind, n_layers, norm in (
        ("plain", 1, "rmsnorm"),
        ("none", 2, "rmsnorm"),
        ("scaled", 2, "none"),
        ("rezero", 3, "rmsnorm"),
        ("plain", 8, "none"),
    ):
        state, ids, targets = weights(torch_rng, kind, n_layers, norm), tokens(torch_rng), tokens(torch_rng)
        if kind == "rezero":
            state["sublayers.2.gate"] *= 0  # the branch gets no gradient, the gate does
        profiles, changed = submission.run(profile_twice, kind, n_layers, norm, state, ids, targets)
        want = reference.gradient_profile(state, kind, n_layers, ids, targets)
        for call, (loss, activation, parameter) in zip(("first", "second"), profiles):
            where = f"of {kind}, {n_layers} blocks, norm {norm}, {call} call"
            same(loss, want["loss"], **TIGHT, what=f"loss {where}")
            same(activation, want["activation"], **TIGHT, what=f"activation {where}")
            same(parameter, want["parameter"], **TIGHT, what=f"parameter {where}")
        check(not changed, "gradient_profile changed the .grad of parameters.", got=changed[:4], want=[])


@probe
def new_profile(module, kind, ids, targets):
    """Smallest and largest parameter gradient of a new model of 16 blocks without norms."""
    g = module.gradient_profile(module.TinyLM(kind, 16, "none"), ids, targets)
    return [float(min(g.parameter)), float(max(g.parameter))]


@task(3)
@points(3)
@hint("If both are of ordinary size: is the kind 'none' really without a skip?")
def test_gradients_vanish_without_skips(submission, torch_rng):
    """In 16 blocks without norms no sublayer gets a gradient above 1e-12 if there is no skip, and all above 0.05 if
    there is."""
    ids, targets = tokens(torch_rng), tokens(torch_rng)
    # Measured: 5e-21 to 2e-20 without, 2.7 to 4.3 with skips.
    got = submission.run(new_profile, "none", ids, targets)
    check(0 < got[1] <= 1e-12, "Largest parameter gradient without skips.", got=got[1], want="at most 1e-12, not 0")
    got = submission.run(new_profile, "plain", ids, targets)
    check(got[0] >= 0.05, "Smallest parameter gradient with skips.", got=got[0], want="at least 0.05")


# --- task 4: the sweep ------------------------------------------------------------------------------------------------


@probe
def grid(module, kinds, depths, seeds, val_loss):
    """The rows of a sweep whose training is a call of ``val_loss`` with the cell."""

    def train_fn(*cell):
        return module.SweepRow(*cell, val_loss(*cell), 1.0, 2.0, 0.5)

    rows = module.depth_sweep(kinds, depths, seeds, train_fn=train_fn)
    return [[row.kind, int(row.depth), int(row.seed), float(row.val_loss)] for row in rows]


@task(4)
@points(4)
@hint("Three nested loops, kinds outermost and seeds innermost; train_fn(kind, depth, seed), and keep what it returns.")
def test_sweep_protocol(submission):
    """Every cell is trained once, in order, and the rows are those that train_fn returned."""
    calls = []

    def loss_of(kind, depth, seed):
        return len(kind) + depth / 8 + seed / 1024

    def val_loss(*cell):
        calls.append(cell)
        return loss_of(*cell)

    for kinds, depths, seeds in ((["plain", "none"], [4, 1, 2], [3, 0]), (["rezero"], [2], [])):
        calls.clear()
        got = submission.run(grid, kinds, depths, seeds, val_loss)
        want = [(k, n, s) for k in kinds for n in depths for s in seeds]
        check(calls == want, "train_fn is called once for each cell, in the order of the loops.", got=calls, want=want)
        rows = [[*cell, loss_of(*cell)] for cell in want]
        check(got == rows, "The rows are those that train_fn returned, in order.", got=got, want=rows)


@probe
def deepest(module, rows, threshold):
    """trainable_depth of rows made from these numbers, as [[kind, depth or None], ...]."""
    made = [module.SweepRow(init_grad_first=1.0, init_grad_last=1.0, init_rank=0.5, **row) for row in rows]
    return [[kind, depth] for kind, depth in module.trainable_depth(made, threshold).items()]


@st.composite
def handmade_rows(draw):
    """Rows of one or two kinds in any order; every kind has depths of its own."""
    rows = []
    for kind in draw(st.sampled_from([["plain"], ["none", "scaled"]])):
        for depth in draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, unique=True)):
            for seed in range(draw(st.integers(1, 2))):
                loss = draw(st.sampled_from([1.5, 1.9, 2.0, 2.6, math.nan]))
                rows.append({"kind": kind, "depth": depth, "seed": seed, "val_loss": loss})
    return draw(st.permutations(rows))


@task(4)
@points(4)
@hint(
    "Go through the depths of one kind in ascending order and stop at the first at which a seed is not below the "
    "threshold.",
    "NaN < threshold is False, which is what you want.",
)
@sk.given(handmade_rows(), examples=30)
def test_trainable_depth(submission, reference, case):
    """The largest depth such that it and all smaller ones of the kind are below the threshold for all seeds, else
    None."""
    got = {kind: depth for kind, depth in submission.run(deepest, case, 2.0)}
    want = reference.trainable_depth(case, 2.0)
    check(got == want, "trainable_depth is wrong.", got=got, want=want)


@probe
def sweep_facts(module, rows):
    """What plot_depth_sweep drew, as plain data, and the first bytes of the file."""
    import tempfile
    from pathlib import Path

    made = [module.SweepRow(init_grad_first=1.0, init_grad_last=1.0, init_rank=0.5, **row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.png"
        figure = module.plot_depth_sweep(made, path)
        signature = path.read_bytes()[:8]
    (ax,) = figure.axes
    legend = ax.get_legend()
    x_transform = ax.xaxis.get_transform()
    return {
        "signature": signature,
        "scale": [ax.get_xscale(), float(getattr(x_transform, "base", 0.0))],
        "entropy": float(module.unigram_entropy()),
        "legend": sorted(t.get_text() for t in legend.get_texts()) if legend else [],
        "lines": {
            line.get_label(): [[float(v) for v in line.get_xdata()], [float(v) for v in line.get_ydata()]]
            for line in ax.get_lines()
            if not line.get_label().startswith("_")
        },
    }


@task(4)
@points(2)
@hint(
    "One ax.plot for each kind with sorted depths, and ax.axhline(unigram_entropy(), label='unigram entropy').",
    "ax.set_xscale('log', base=2).",
)
def test_plot(submission):
    """Lines hold the mean over seeds at ascending depths, a horizontal line the unigram entropy, on a log2 axis."""
    rows = [
        {"kind": "plain", "depth": n, "seed": s, "val_loss": 1.5 + n / 8 + s / 4} for n in (4, 1, 2) for s in (0, 1)
    ]
    rows += [{"kind": "none", "depth": n, "seed": 0, "val_loss": 2.5 if n > 1 else math.nan} for n in (1, 2, 8)]
    facts = submission.run(sweep_facts, rows)
    check(facts["signature"] == b"\x89PNG\r\n\x1a\n", "The file is not a PNG.", got=facts["signature"])
    check(facts["scale"] == ["log", 2.0], "The x axis is logarithmic to base 2.", got=facts["scale"])
    lines = facts["lines"]
    labels = ["none", "plain", "unigram entropy"]
    check(sorted(lines) == labels, "Labels of the lines.", got=sorted(lines), want=labels)
    check(facts["legend"] == labels, "The legend names every line.", got=facts["legend"], want=labels)
    same(lines["plain"], [[1.0, 2.0, 4.0], [1.75, 1.875, 2.125]], atol=1e-9, rtol=0.0, what="plain")
    same(lines["none"], [[1.0, 2.0, 8.0], [math.nan, 2.5, 2.5]], atol=1e-9, rtol=0.0, equal_nan=True, what="none")
    heights = lines["unigram entropy"][1]
    check(
        all(abs(y - facts["entropy"]) < 1e-6 for y in heights),
        "The horizontal line is at unigram_entropy().",
        got=heights,
        want=facts["entropy"],
    )


@probe
def train(module, kind, tell):
    """Tell the outcome of one short real run of four blocks through depth_sweep. (It is told, not answered: what
    rounding does to a training run is no evidence of a known mistake.)"""
    import functools

    (row,) = module.depth_sweep([kind], [4], [0], train_fn=functools.partial(module.train_tiny_lm, steps=6))
    tell([float(v) for v in (row.val_loss, row.init_grad_first, row.init_grad_last, row.init_rank)])


@task(4)
@points(2)
@hint("Plain learns and none does not: are the wirings what their names say, and do gradients flow through them?")
def test_real_sweep(submission):
    """In six steps four blocks with residuals learn some of the chain; without, nothing but how often symbols occur."""
    # Measured over five seeds: 1.92 to 1.95 against 2.63 to 2.65 nats; symbol counts alone give 2.61.
    told = []
    for kind in ("plain", "none"):
        submission.run(train, kind, told.append)
    plain, none = told
    check(1.2 <= plain[0] <= 2.2, "Validation loss of plain.", got=plain[0], want="1.2 to 2.2")
    check(2.4 <= none[0] <= 3.0, "Validation loss of none.", got=none[0], want="2.4 to 3.0")
    check(
        min(plain[1:]) > 0 and plain[3] > none[3],
        "Tokens differ less at the end of a new model without skips.",
        got=none[3],
        want=f"below {plain[3]:.3g}",
    )


# --- task 5: paths ----------------------------------------------------------------------------------------------------


@st.composite
def products(draw):
    n, d, rows = draw(st.integers(0, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 999))
    return [sk.tensor(seed + k, (d, d)) for k in range(n)], sk.tensor(seed + 99, (rows, d))


@task(5)
@points(9)
@hint(
    "For two layers: (I + B)(I + A) x = x + (A x + B x) + B A x. Entry 1 is A x + B x, entry 2 is B A x.",
    "Let live[k] be the sum over paths through k of the layers so far. The next layer A: live'[k] = live[k] + A "
    "live[k - 1].",
    "x holds vectors in rows: A acts as x @ A.T.",
)
@sk.given(products(), examples=30)
def test_paths(submission, reference, case):
    """Entry k is the sum over all paths through exactly k branches, in their order; entry 0 is x; no matrices give
    x[None]."""
    want = reference.path_contributions(*case)
    same(submission.path_contributions(*case), want, atol=1e-10 * (1 + want.abs().max().item()), rtol=0.0)


# --- task 6: the stream as a sum --------------------------------------------------------------------------------------

RESIDUAL = (("plain", 2, "rmsnorm"), ("scaled", 1, "none"), ("rezero", 2, "rmsnorm"))


@probe
def graph_behind(module, model, ids):
    """Whether the components of a decomposition hang on a graph."""
    return bool(module.decompose_residual(model, ids).components.requires_grad)


@task(6)
@points(6)
@hint(
    "Start with model.embed(ids) and add sublayer.contribution(x) on the way; note each.",
    "The sum of all components is the last stream: what is added is f(x) with its scale or gate, without x.",
)
def test_decomposition(submission, reference, torch_rng):
    """Components are the embedding and what each sublayer added, by name; a model without skips has no stream to
    split."""
    for kind, n_layers, norm in RESIDUAL:
        state, ids = weights(torch_rng, kind, n_layers, norm), tokens(torch_rng)
        model = submission.run(build, kind, n_layers, norm, state)
        got = submission.decompose_residual(model, ids)
        names = ["embed", *(f"{part}{n}" for n in range(n_layers) for part in ("attn", "mlp"))]
        check(list(got.names) == names, f"Names of {kind}.", got=list(got.names), want=names)
        same(
            got.components.detach(),
            reference.components(state, kind, n_layers, ids),
            **TIGHT,
            what=f"components of {kind}",
        )
        check(not submission.run(graph_behind, model, ids), "decompose_residual records no gradients.")
    state = weights(torch_rng, "none", 1)
    with expect_error(ValueError, "no residual stream"):
        submission.decompose_residual(submission.run(build, "none", 1, "rmsnorm", state), ids)


@task(6)
@points(6)
@hint(
    "logit = <r · gain ∘ stream, unembed.weight[token]>: linear in the stream once r is held fixed.",
    "r = model.final_norm.scale(stream) of the whole stream, the sum of all components.",
)
def test_attribution(submission, reference, torch_rng):
    """Each component's logit is what the logit loses without it, the norm's factor held fixed; they sum to the
    logit."""
    for kind, n_layers, norm in RESIDUAL:
        state, ids, asked = weights(torch_rng, kind, n_layers, norm), tokens(torch_rng), tokens(torch_rng)
        model = submission.run(build, kind, n_layers, norm, state)
        dec = submission.decompose_residual(model, ids)
        got = submission.direct_logit_attribution(model, dec, asked).detach()
        parts = reference.components(state, kind, n_layers, ids)
        same(got, reference.attribution(state, parts, asked), **TIGHT, what=f"attribution of {kind}, norm {norm}")
        logits = reference.logits(state, parts.sum(0)).gather(-1, asked[..., None]).squeeze(-1)
        same(got.sum(0), logits, **TIGHT, what=f"sum over the components of {kind}, norm {norm}")


# --- task 7: lesions --------------------------------------------------------------------------------------------------


@task(7)
@points(5)
@hint(
    "A block that is taken out passes the stream on as it is; it does not set it to zero.",
    "Block l is sublayers 2l and 2l + 1, both at once. Loss without it, minus the loss of the whole model.",
)
def test_lesion(submission, reference, torch_rng):
    """Entry l is the growth of the loss when both sublayers of block l are left out; the model is as it was
    afterwards."""
    for kind, n_layers, norm in (*RESIDUAL, ("none", 3, "rmsnorm")):
        state, ids, targets = weights(torch_rng, kind, n_layers, norm), tokens(torch_rng), tokens(torch_rng)
        model = submission.run(build, kind, n_layers, norm, state)
        got = submission.lesion_study(model, ids, targets)
        want = reference.lesions(state, kind, n_layers, ids, targets)
        same([float(v) for v in got], want, **TIGHT, what=f"lesions of {kind}")
        same(dict(model.state_dict()), state, atol=0.0, rtol=0.0, what="the model afterwards")
        last = reference.streams(state, kind, n_layers, ids)[-1]
        same(model(ids).detach(), reference.logits(state, last), **TIGHT, what="logits of the model afterwards")
