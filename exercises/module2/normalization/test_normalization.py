"""Visible checks of 2.4 normalization. They earn no points; what they ask for is in README.md."""

import math
from pathlib import Path

import torch
from torch.nn import functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

# The worked example of the brief: mean 3, variance 4, mean square 13.
ROW = torch.tensor([[1.0, 1.0, 5.0, 5.0]], dtype=torch.float64)
NEAR = {"atol": 1e-12, "rtol": 0.0}
TINY_GPT2 = Path(__file__).parents[3] / "components" / "tiny_gpt2"


def normal(rng, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


@task(1)
@hint("mean 3, centred -2 -2 2 2, variance 4: with eps = 0 the row becomes -1 -1 1 1.")
def test_layer_norm_by_hand(submission):
    """The worked example: (1, 1, 5, 5) becomes (-1, -1, 1, 1), then gain and bias."""
    same(submission.layer_norm(ROW, None, None, 0.0), torch.tensor([[-1.0, -1, 1, 1]], dtype=torch.float64), **NEAR)
    weight, bias = torch.arange(1.0, 5).double(), torch.full((4,), 10.0).double()
    want = torch.tensor([[9.0, 8, 13, 14]], dtype=torch.float64)
    same(submission.layer_norm(ROW, weight, bias, 0.0), want, **NEAR, what="with gain 1, 2, 3, 4 and bias 10")


@task(1)
@hint("The mean square is 13; with eps = 3 the root is 4. eps stands under the root.")
def test_rms_norm_by_hand(submission):
    """The worked example with eps = 3: (1, 1, 5, 5) is divided by sqrt(13 + 3) = 4."""
    want = torch.tensor([[0.25, 0.25, 1.25, 1.25]], dtype=torch.float64)
    same(submission.rms_norm(ROW, None, 3.0), want, **NEAR)


@task(1)
@hint("Differences of more than the last digits: the biased variance, eps under the root, dim=-1 with keepdim=True.")
def test_agrees_with_torch(submission, torch_rng):
    """Both functions agree with F.layer_norm and F.rms_norm on float32 data of three dimensions."""
    x, weight, bias = (normal(torch_rng, *s, dtype=torch.float32) for s in ((2, 3, 8), (8,), (8,)))
    same(submission.layer_norm(x, weight, bias), F.layer_norm(x, (8,), weight, bias), atol=1e-5, rtol=0.0)
    same(submission.rms_norm(x, weight), F.rms_norm(x, (8,), weight, 1e-6), atol=1e-5, rtol=0.0)


@task(1)
@hint("300² is more than float16 can hold: convert x to float32 first, and back once at the end.")
def test_float16_squares(submission):
    """A float16 row of 300s has an RMS of 300, though its squares overflow."""
    got = submission.rms_norm(torch.full((1, 8), 300.0, dtype=torch.float16), None)
    same(got, torch.ones(1, 8, dtype=torch.float16), atol=1e-3, rtol=0.0)


@task(1)
@hint("check_affine is given: call it first.")
def test_wrong_arguments(submission):
    """A gain that does not fit raises ValueError with both shapes."""
    submission.rms_norm(ROW, None)
    with expect_error(ValueError, "1, 4", "3"):
        submission.rms_norm(ROW, torch.ones(3))


@task(2)
@hint("weight and bias are nn.Parameters; eps is an attribute; forward calls your function with all of them.")
def test_layers(submission, torch_rng):
    """New layers are the plain norms, with the parameters of the contract; affine=False has none."""
    x = normal(torch_rng, 2, 5, dtype=torch.float32)
    layer, rms = submission.LayerNorm(5), submission.RMSNorm(5)
    same(dict(layer.state_dict()), {"weight": torch.ones(5), "bias": torch.zeros(5)}, what="parameters of LayerNorm")
    same(dict(rms.state_dict()), {"weight": torch.ones(5)}, what="parameters of RMSNorm")
    same(layer(x), F.layer_norm(x, (5,)), atol=1e-5, rtol=0.0)
    same(rms(x), F.rms_norm(x, (5,), eps=1e-6), atol=1e-5, rtol=0.0)
    check(len(submission.LayerNorm(5, affine=False).state_dict()) == 0, "affine=False has no parameters.")


@task(2)
@hint("With f(t) = 2t and norm(t) = t/10: pre gives x + x/5, post gives 3x/10.")
def test_placements(submission):
    """'pre' normalises what the branch reads, 'post' the sum."""
    x = torch.tensor([1.0, 10.0])
    pre, post = (submission.sublayer(x, lambda t: 2 * t, lambda t: t / 10, place) for place in ("pre", "post"))
    same(pre, torch.tensor([1.2, 12.0]), what="pre")
    same(post, torch.tensor([0.3, 3.0]), what="post")


@task(3)
@hint("LayerNorm at d = 4 and a negligible eps: blind to shifts and scales, so its Jacobian has rank 4 - 2.")
def test_invariances_by_kind(submission, torch_rng):
    """With a negligible eps LayerNorm ignores shift and scale, RMSNorm only scale, and no norm neither."""
    x = normal(torch_rng, 3, 4)
    for norm, shift_blind, scale_blind, rank in (
        (submission.LayerNorm(4, 1e-30), True, True, 2),
        (submission.RMSNorm(4, 1e-30), False, True, 3),
        (submission.make_norm("none", 4), False, False, 4),
    ):
        got = submission.measure_invariances(norm, x)
        check(
            (got.shift_error < 1e-9) == shift_blind,
            "shift_error",
            got=got.shift_error,
            want="0" if shift_blind else "> 0",
        )
        check(
            (got.scale_error < 1e-9) == scale_blind,
            "scale_error",
            got=got.scale_error,
            want="0" if scale_blind else "> 0",
        )
        check(got.jacobian_rank == rank, "jacobian_rank", got=got.jacobian_rank, want=rank)


@task(3)
@hint("Embedding first, then after each of the four blocks: five numbers.")
def test_profile_of_a_new_model(submission):
    """A new pre-norm model: five numbers, the first the RMS of the embeddings; a post-norm stream has RMS 1."""
    ids = torch.arange(8)[None]
    model = submission.TinyLM("rmsnorm", "pre")
    profile = [float(v) for v in submission.residual_rms_profile(model, ids)]
    check(len(profile) == 5, "Four blocks give five numbers.", got=profile)
    same(profile[0], model.embed(ids).detach().square().mean().sqrt().item(), atol=1e-5, rtol=0.0, what="the first")
    post = submission.residual_rms_profile(submission.TinyLM("layernorm", "post"), ids)
    same([float(v) for v in post[1:]], [1.0] * 4, atol=1e-3, rtol=0.0, what="post-norm profile")


# Threshold 2: rmsnorm/pre bears 0.01 (0.03 fails for one seed, so 0.1 does not count); none/pre fails at once.
SIX = [
    ("rmsnorm", "pre", 0.01, 0, 1.5, False),
    ("rmsnorm", "pre", 0.03, 0, 1.6, False),
    ("rmsnorm", "pre", 0.03, 1, 2.4, False),
    ("rmsnorm", "pre", 0.1, 0, 1.9, False),
    ("none", "pre", 0.1, 0, 1e9, True),
    ("none", "pre", 0.03, 0, math.nan, True),
]


@probe
def six_runs(module, rows):
    """Tolerances of handmade runs, and the labels and sizes of what plot_lr_sweep draws of them."""
    import tempfile
    from pathlib import Path

    runs = [module.NormRun(k, p, lr, s, (1.0,), loss, lost) for k, p, lr, s, loss, lost in rows]
    tolerance = [[*pair, lr] for pair, lr in module.lr_tolerance(runs, 2.0).items()]
    with tempfile.TemporaryDirectory() as folder:
        (ax,) = module.plot_lr_sweep(runs, Path(folder) / "sweep.png").axes
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    return {
        "tolerance": tolerance,
        "scale": ax.get_xscale(),
        "top": float(ax.get_ylim()[1]),
        "lines": {line.get_label(): [float(y) for y in line.get_ydata()] for line in lines},
    }


@task(4)
@hint("Climb the learning rates of one pair until some seed is not below the threshold.")
def test_six_runs(submission):
    """Six handmade runs: what each pair bears at a threshold of 2, and the lines of the plot."""
    facts = submission.run(six_runs, SIX)
    want = [["rmsnorm", "pre", 0.01], ["none", "pre", None]]
    check(
        sorted(facts["tolerance"], key=str) == sorted(want, key=str), "lr_tolerance", got=facts["tolerance"], want=want
    )
    check(facts["scale"] == "log", "The x axis is logarithmic.", got=facts["scale"])
    lines = {"rmsnorm/pre": [1.5, 2.0, 1.9], "none/pre": [facts["top"]] * 2}
    same(facts["lines"], lines, atol=1e-9, rtol=0.0, what="the lines")


@probe
def short_run(module, tell):
    """A run of 20 steps through norm_experiment; its first and last loss are told."""
    import functools

    train = functools.partial(module.train_tiny_lm, steps=8)
    runs = module.norm_experiment(["rmsnorm", "none"], ["post"], [0.01], [0], train_fn=train)
    tell(float(runs[0].losses[0]), float(runs[0].losses[-1]))
    return [[run.kind, run.placement, len(run.losses)] for run in runs]


@task(4)
@hint("Without gradients through your norm the loss stays at 2.8.")
def test_short_real_run(submission):
    """A real run of 8 steps lowers the loss; ('none', 'post') is not run."""
    told = []
    runs = submission.run(short_run, lambda *losses: told.append(losses))
    check(runs == [["rmsnorm", "post", 8]], "One run of 8 steps.", got=runs)
    ((first, last),) = told
    check(last < first - 0.3, "The loss did not fall.", got=[first, last])


@task(5)
@hint("Start with the gradients of weight and bias; then dx for RMSNorm; then the mean term that LayerNorm adds.")
def test_gradients(submission, torch_rng):
    """On a (2, 5) input gradients of x, weight and bias equal finite differences."""
    x, weight, bias, cotangent = (normal(torch_rng, *s) for s in ((2, 5), (5,), (5,), (2, 5)))
    for name, inputs in (("rms_norm", [x, weight]), ("layer_norm", [x, weight, bias])):
        _, grads = submission.vjp(name, (*inputs, 0.1), wrt=tuple(range(len(inputs))), cotangents=cotangent)
        step = 1e-5
        for n, (part, gradient) in enumerate(zip(("x", "weight", "bias"), grads)):
            direction = normal(torch_rng, *inputs[n].shape)
            ahead, behind = (
                submission.call(name, *(t + s * step * direction if i == n else t for i, t in enumerate(inputs)), 0.1)
                for s in (1, -1)
            )
            slope = ((ahead - behind) * cotangent).sum().item() / (2 * step)
            want = (gradient * direction).sum().item()
            same(want, slope, atol=1e-7, rtol=1e-6, what=f"gradient of {part} of {name} along a random direction")


@probe
def tower(module, kind, height, x, cotangent):
    """Norms on top of each other, and the gradient of x."""
    import torch

    leaf = x.detach().requires_grad_()
    y = leaf
    for _ in range(height):
        y = module.layer_norm(y, None, None, 1e-3) if kind == "layernorm" else module.rms_norm(y, None, 1e-3)
    return torch.autograd.grad(y, leaf, cotangent)[0]


@task(5)
@hint("This check only shows numbers. Composed of ordinary operations the norms keep at least 2 times x.")
def test_kept_bytes_are_shown(submission, budget, torch_rng):
    """For your information: bytes that a norm of (128, 256) float32, which are 128 KiB, keeps until the backward
    pass."""

    kinds = ("rmsnorm", "layernorm")

    def grow(s, *tensors):
        for kind in kinds:
            for height in (2, 4):
                with s.segment(f"{kind} {height}"):
                    s.run(tower, kind, height, *tensors)

    x, cotangent = (normal(torch_rng, 128, 256, dtype=torch.float32) for _ in range(2))
    run = budget.replay(grow, x, cotangent, expect=None)
    for kind in kinds:
        kept = (run[f"{kind} 4"].peak_bytes - run[f"{kind} 2"].peak_bytes) / 2
        budget.require(f"bytes kept by {kind}", kept, unit="bytes", trust="replayed")


@probe
def fold_one(module, weight, gain, bias, x):
    """Folded and plain output of one LayerNorm and one linear."""
    import torch

    linear = torch.nn.Linear(3, 2, bias=False).double()
    norm = module.LayerNorm(3).double()
    with torch.no_grad():
        linear.weight.copy_(weight)
        norm.weight.copy_(gain)
        norm.bias.copy_(bias)
        new_norm, new_linear = module.fold_norm(norm, linear)
        return new_linear(new_norm(x)), len(list(new_norm.parameters()))


@task(6)
@hint("W (x̂ ∘ gain + bias): the gain goes into the columns of W, and W·bias is a new bias.")
def test_fold_one(submission, torch_rng):
    """A LayerNorm folded into one linear layer: same output, no parameters left in the norm."""
    weight, gain, bias, x = (normal(torch_rng, *s) for s in ((2, 3), (3,), (3,), (4, 3)))
    output, left = submission.run(fold_one, weight, gain, bias, x)
    same(output, F.layer_norm(x, (3,), gain, bias) @ weight.T, atol=1e-10, rtol=0.0)
    check(left == 0, "The new norm has no parameters.", got=left, want=0)


@probe
def centre_one(module, weight):
    """The centred weight."""
    import torch

    linear = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return module.center_writer(linear).weight.detach()


@task(6)
@hint("Columns of W, (out, in), each lose their mean.")
def test_centre_one(submission):
    """A (3, 2) weight by hand: every column loses its mean."""
    got = submission.run(centre_one, torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]))
    same(got, torch.tensor([[-2.0, -1.0], [-1.0, -1.0], [3.0, 2.0]]))


@probe
def gpt2_twice(module, folder, ids):
    """Logits of a GPT-2 from its files and of the RMSNorm model made of it; which norms each has, how many numbers in
    them."""
    import torch

    model = module.load_gpt2(folder)
    other = module.as_rmsnorm_model(model)

    def norms(m):
        found = [n for n in m.modules() if isinstance(n, (module.LayerNorm, module.RMSNorm))]
        return sorted({type(n).__name__ for n in found}), sum(p.numel() for n in found for p in n.parameters())

    with torch.no_grad():
        return [model(ids), *norms(model)], [other(ids), *norms(other)]


@task(6)
@hint(
    "The logits of the model as it was are wrong already? Then it is your LayerNorm or `sublayer`.",
    "A writer whose outputs do not have mean 0, or a gain folded into the wrong dimension, shows here at once.",
)
def test_gpt2_becomes_an_rmsnorm_model(submission):
    """A GPT-2 from its files gives transformers' logits, and the same ones with RMSNorms that hold no parameters."""
    from safetensors.torch import load_file

    answers = load_file(TINY_GPT2 / "answers.safetensors")
    before, after = submission.run(gpt2_twice, str(TINY_GPT2), answers["ids"])
    same(before[0], answers["logits"], atol=1e-4, rtol=0.0, what="logits with LayerNorm")
    same(after[0], answers["logits"], atol=1e-4, rtol=0.0, what="logits with RMSNorm")
    check(before[1:] == [["LayerNorm"], 7 * 32], "Norms of the model that was loaded, afterwards.", got=before[1:])
    check(after[1:] == [["RMSNorm"], 0], "Norms of the new model.", got=after[1:], want=[["RMSNorm"], 0])


@task(7)
@hint("4 096 features of 2 bytes: 8 192 bytes, and 4 for each statistic.")
def test_cost_of_a_large_norm(submission):
    """Norms of 4 096 bfloat16 features: parameters, bytes per token, sums over a row."""
    for kind, want in (("layernorm", [8192, 8200, 2]), ("rmsnorm", [4096, 8196, 1]), ("none", [0, 0, 0])):
        cost = submission.norm_cost(kind, 4096, 2)
        got = [cost.params, cost.saved_bytes_per_token, cost.row_reductions]
        check(got == want, f"norm_cost of {kind}", got=got, want=want)
