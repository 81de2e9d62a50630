"""Hidden correctness checks of 3.1 mixed_precision.

Core is tasks 1 to 3; tasks 4 and 5 (Autocast), 6 (master weights) and 7 (nothing waits) are stretch. Core checks of
`amp_step` use dtype=torch.float32, where Autocast is not entered; half precision comes in by casts in the model.

Mended in the specification:
* `pick_static_scale` of gradients that are all zero is 2^24; the value is defined in the stub.
* `MasterWeights` has `collect_grads` and `step(scaler)`: without them a scaler cannot get at the masters' gradients.
* Whether `amp_step` zeroes gradients and which norm it reports are stated: before forward; unscaled, before clipping.
* The table of dtypes is PyTorch's dispatch on fake CUDA tensors (components/cuda_autocast), and its documentation for
  the kernels that a build for CPUs does not have.
* A LLaMA's gradients are compared with those of the same model without Autocast, in the same process.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st

from llmkata.checks import check, expect_error, hint, points, probe, same, sk, task

POLICY = json.loads((Path(__file__).parents[3] / "components/cuda_autocast/policy.json").read_text("utf-8"))
F16, F32, F64 = torch.float16, torch.float32, torch.float64


# --- task 1: what half precision does to gradients --------------------------------------------------------------------


@st.composite
def gradients(draw):
    """Tensors of numbers ±m·2^e with e from -40 to 20, some zero, some not contiguous, some empty; and scales 2^k."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    # Zeros in one tensor, or several tensors without: in both at once counting zeros can look like a mean of fractions.
    zeros = 0.2 * draw(st.booleans())
    tensors = []
    for _ in range(1 if zeros else draw(st.integers(1, 4))):
        shape = draw(st.sampled_from([(3,), (0,), (), (2, 5), (4, 3, 2)]))
        values = rng.choice([-1.0, 1.0], shape) * rng.uniform(1, 2, shape) * 2.0 ** rng.integers(-40, 21, shape)
        values = torch.tensor(values * (rng.random(shape) > zeros), dtype=F32)
        tensors.append(values.mT if values.dim() > 1 and draw(st.booleans()) else values)
    return tensors, [2.0 ** draw(st.integers(-4, 24)) for _ in range(draw(st.integers(1, 3)))]


def report_of(stats):
    return [(s.scale, s.zeroed, s.subnormal, s.overflow) for s in stats]


@task(1)
@points(6)
@hint(
    "(g * scale).to(dtype), then count: what became 0, what lies below finfo(dtype).smallest_normal, what is infinite.",
    "The fractions are over all tensors together, and zeros of the gradient do not count at all.",
)
@sk.given(gradients(), examples=25)
def test_scale_report_matches_numpy_half(submission, reference, case):
    """The fractions lost at each scale are those of NumPy's half precision, over all non-zero elements together."""
    grads, scales = case
    want = [(s, *row) for s, row in zip(scales, reference.scale_report(grads, scales), strict=True)]
    same(report_of(submission.scale_report(grads, scales)), want, atol=1e-12, what="(scale, zeroed, subnormal, overflow)")


@task(1)
@points(2)
@hint("NaN compares as False with everything. bfloat16 has the exponents of float32, and finfo knows its limits.")
def test_scale_report_edges(submission):
    """inf and NaN count as overflow, no non-zero element gives zeros, and bfloat16 has limits of its own."""
    odd = [torch.tensor([math.inf, math.nan, 1.0, 0.0]), torch.tensor([1.0], dtype=F16)]
    same(report_of(submission.scale_report(odd, [1.0])), [(1.0, 0.0, 0.0, 0.5)], atol=1e-12, what="inf, NaN, 1, 0, 1")
    for none in ([], [torch.zeros(3)], [torch.zeros(0)]):
        same(report_of(submission.scale_report(none, [2.0])), [(2.0, 0.0, 0.0, 0.0)], atol=0.0, what="nothing there")
    # 65504·2 overflows a float16 and no bfloat16; 2^-130 is subnormal in bfloat16.
    wide = [torch.tensor([65504.0, -1e-8, 2.0**-130, 3e38], dtype=F32)]
    same(
        report_of(submission.scale_report(wide, [2.0], torch.bfloat16)), [(2.0, 0.0, 0.25, 0.25)], atol=1e-12,
        what="bfloat16",
    )  # fmt: skip
    # Half of 2^-24 is a tie, which goes to the even 0.
    tie = submission.scale_report([torch.tensor([2.0**-25]), torch.tensor([1.0])], [1.0, 1.5, 2.0])
    same([(s.zeroed, s.subnormal) for s in tie], [(0.5, 0.0), (0.0, 0.5), (0.0, 0.5)], atol=1e-12, what="2^-25 and 1")
    least = submission.scale_report([torch.tensor([2.0**-14, -(2.0**-14), 2.0**-13])], [1.0, 0.5])
    same([(s.zeroed, s.subnormal) for s in least], [(0.0, 0.0), (0.0, 2 / 3)], atol=1e-12, what="2^-14, which is normal")
    # Products are taken in float32: 120000 is beyond float16 and within bfloat16, 65500 rounds to 65504 or, in bfloat16, to 2^16.
    halves = (([torch.tensor([6e4, 1.0], dtype=F16)], 2.0, torch.bfloat16), ([torch.ones(2).bfloat16()], 65500.0, F16))
    for grads, scale, dtype in halves:
        got = report_of(submission.scale_report(grads, [scale], dtype))
        same(got, [(scale, 0.0, 0.0, 0.0)], atol=1e-12, what=f"gradients of {grads[0].dtype} in {dtype}")


@st.composite
def magnitudes(draw):
    """A largest gradient: powers of two, numbers next to them, 65504 and anything."""
    exponent = draw(st.integers(-30, 30))
    mantissa = draw(st.sampled_from([1.0, 1.5, 1.9990234375, 1.99951171875, 1.0009765625, 1.25]))
    others = sk.tensor(draw(st.integers(0, 99)), (draw(st.integers(0, 3)), 2), F32) * 2.0 ** (exponent - 9)
    largest = mantissa * 2.0**exponent * draw(st.sampled_from([1.0, -1.0]))
    grads = [others, torch.tensor([[0.0], [largest]])][:: draw(st.sampled_from([1, -1]))]
    return grads, draw(st.integers(0, 3)), draw(st.sampled_from([F16, torch.bfloat16]))


@task(1)
@points(4)
@hint(
    "math.frexp gives x = m·2^e with 1/2 <= m < 1: compare mantissas, subtract exponents. A rounded log2 is off by one.",
    "max|g|·s·2^margin_bits <= finfo(dtype).max, with equality allowed; all zero: 2.0**24.",
)
@sk.given(magnitudes(), examples=25)
def test_pick_static_scale(submission, reference, case):
    """The scale is the largest power of two that leaves margin_bits doublings of room; 2^24 for zeros."""
    grads, margin_bits, dtype = case
    largest = max(float(g.abs().max()) for g in grads if g.numel())
    want = reference.static_scale(largest, torch.finfo(dtype).max, margin_bits)
    same(submission.pick_static_scale(grads, dtype, margin_bits), want, atol=0.0, rtol=0.0, what="scale")
    same(submission.pick_static_scale([g * 0.0 for g in grads], dtype), 2.0**24, atol=0.0, what="scale of zeros")


@task(1)
@points(1)
@hint("isfinite().all() before anything is compared: max() of NaN may be anything.")
def test_pick_static_scale_refuses(submission):
    """Gradients that are inf or NaN have no scale: ValueError that says non-finite; and none at all give 2^24."""
    for bad in (math.inf, -math.inf, math.nan):
        for place in ([torch.ones(2), torch.tensor([bad, 1.0])], [torch.tensor([[1.0, bad]]), torch.ones(3)]):
            with expect_error(ValueError, "non-finite"):
                submission.pick_static_scale(place)
    same(submission.pick_static_scale([torch.zeros(0)]), 2.0**24, atol=0.0, what="scale of no element")


# --- task 2: the loss scaler ------------------------------------------------------------------------------------------


@probe
def play(module, plan):
    """A run with two optimizers: after each step scale, growth count, and the parameters and gradients of both."""
    import torch

    scaler = module.LossScaler(init_scale=2.0**10, **plan["options"])
    weights = [[w.clone().requires_grad_() for w in group] for group in plan["weights"]]
    optimizers = [torch.optim.SGD(group, lr=0.125, momentum=0.5) for group in weights]
    story = []
    for step in plan["steps"]:
        for group, optimizer in zip(weights, optimizers):
            optimizer.zero_grad()
            scaler.scale(sum((w * step["slope"]).sum() for w in group)).backward()
        for group, optimizer, (bad, where, explicit, used) in zip(weights, optimizers, step["each"]):
            if bad is not None:
                flat = group[where % len(group)].grad.view(-1)
                flat[where % flat.numel()] = bad
            if not used:
                continue
            if explicit:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()
        story.append(
            {
                "scale": scaler.get_scale(),
                "growth count": scaler.state_dict()["_growth_tracker"],
                "parameters": [w.detach().clone() for group in weights for w in group],
                "gradients": [w.grad.clone() for group in weights for w in group],
            }
        )
    return story


@st.composite
def plans(draw):
    seed = draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    options = {
        "growth_factor": draw(st.sampled_from([2.0, 4.0])),
        "backoff_factor": draw(st.sampled_from([0.5, 0.25])),
        "growth_interval": draw(st.integers(1, 4)),
    }
    rate = draw(st.sampled_from([0.0, 0.1, 0.3]))
    kinds = draw(st.sampled_from([(math.inf, -math.inf, math.nan), (math.nan,), (-math.inf,)]))
    steps = []
    for _ in range(draw(st.integers(1, 16))):
        used = [bool(u) for u in rng.random(2) < 0.9]
        used[0] = used[0] or not used[1]
        each = [
            (float(rng.choice(kinds)) if rng.random() < rate else None, int(rng.integers(100)), bool(rng.random() < 0.5), u)
            for u in used
        ]
        steps.append({"slope": float(rng.integers(-8, 9)) / 4, "each": each})
    shapes = ([(3,), (2, 2)], [(2,), (), (1, 3)])
    weights = [[sk.tensor(seed + i, shape, (F32, F64)[i % 2]) for i, shape in enumerate(group)] for group in shapes]
    return {"options": options, "steps": steps, "weights": weights}


def as_finite(story):
    """Skipped steps leave gradients of inf and NaN, of which nothing is promised: they are left out."""
    for step in story:
        step["gradients"] = [g if g.isfinite().all() else torch.zeros(()) for g in step["gradients"]]
    return story


@task(2)
@points(13)
@hint(
    "update: an inf or NaN in any optimizer's gradients multiplies the scale by backoff_factor and starts the count anew.",
    "Each optimizer is skipped by its own flag; the scale falls if any flag is set. NaN is neither above nor below anything.",
)
@sk.given(plans(), examples=15)
def test_scaler_lockstep(submission, reference, case):
    """Scale, growth count, parameters and gradients are those of PyTorch's GradScaler, bit for bit, at every step."""
    want = as_finite(play(SimpleNamespace(LossScaler=reference.new_scaler), case))
    got = as_finite(submission.run(play, case))
    for number, (g, w) in enumerate(zip(got, want, strict=True), 1):
        same(g, w, atol=0.0, rtol=0.0, what=f"step {number}: ")


@probe
def outputs_scaled(module, scale):
    """Products and gradients of `scale`: a float16 loss, a tuple, a list; and what is left of the options."""
    import torch

    scaler = module.LossScaler(init_scale=scale)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = (x * x).sum()
    scaled = scaler.scale(loss)
    scaled.backward()
    half = scaler.scale(torch.tensor(4.0, dtype=torch.float16))
    pair = list(scaler.scale((loss.detach(), torch.tensor([3.0]))))
    several = scaler.scale([torch.tensor(1.0), torch.tensor(2.0)])
    return {
        "loss": scaled.detach(),
        "gradient": x.grad,
        "half": half,
        "pair": pair,
        "list": list(several),
        "is a list": isinstance(several, list),
    }


@task(2)
@points(2)
@hint("outputs * scale, with the scale a 0-dim float32 tensor: then a 0-dim float16 loss becomes a float32 product.")
def test_scaled_outputs(submission):
    """scale multiplies tensors, lists and tuples, is differentiable, and takes a float16 loss to float32."""
    got = submission.run(outputs_scaled, 2.0**15)
    s = 2.0**15
    want = {
        "loss": torch.tensor(5 * s),
        "gradient": torch.tensor([2 * s, 4 * s]),
        "half": torch.tensor(4 * s),
        "pair": [torch.tensor(5 * s), torch.tensor([3 * s])],
        "list": [torch.tensor(s), torch.tensor(2 * s)],
        "is a list": True,
    }
    same(got, want, atol=0.0, rtol=0.0, what="scale(...)")


@probe
def call_in_order(module, calls, dtype, enabled):
    """Calls these methods on an optimizer with one gradient, and one of no elements."""
    import gc

    import torch

    scaler = module.LossScaler(init_scale=4.0, enabled=enabled)
    weight, empty = (torch.zeros(n, requires_grad=True, dtype=dtype) for n in (2, 0))
    optimizer = torch.optim.SGD([weight, empty], lr=1.0)
    if dtype is not torch.float64:
        weight.grad, empty.grad = torch.ones(2, dtype=dtype), torch.ones(0, dtype=dtype)
    for name in calls:
        getattr(scaler, name)(*([] if name == "update" else [optimizer]))
    borrowed = any(type(thing).__name__ == "GradScaler" for thing in gc.get_objects())
    three = torch.tensor(3.0)
    return weight.detach(), scaler.get_scale(), [scaler.scale(three), *scaler.scale([three, three])], borrowed


@task(2)
@points(5)
@hint(
    "Remember per optimizer whether it was unscaled and whether it was stepped; update forgets both.",
    "An optimizer without gradients is finite. With enabled=False nothing is scaled, checked or remembered.",
)
def test_scaler_errors(submission):
    """Calls in an order that makes no sense are errors that say so, and so are float16 gradients."""
    for calls, error, text in (
        (("unscale_", "unscale_"), RuntimeError, "already been called"),
        (("step", "unscale_"), RuntimeError, "after step"),
        (("unscale_", "step", "unscale_"), RuntimeError, "after step"),
        (("step", "step"), RuntimeError, "already been called"),
        (("update",), RuntimeError, "No inf checks"),
        (("step", "update", "update"), RuntimeError, "No inf checks"),
    ):
        with expect_error(error, text):
            submission.run(call_in_order, calls, F32, True)
    for calls in (("unscale_",), ("step",)):
        with expect_error(ValueError, "FP16 gradients"):
            submission.run(call_in_order, calls, F16, True)
    for calls, dtype, enabled, want in (
        (("unscale_", "step", "update", "unscale_", "step", "update"), F32, True, -0.3125),  # 1/4, then that by 4 again
        (("unscale_", "step", "update"), torch.bfloat16, True, -0.25),
        (("unscale_", "step", "update"), F64, True, 0.0),  # no gradient at all
        (("update", "unscale_", "unscale_", "step", "step"), F32, False, -2.0),
    ):
        weight, scale, scaled, borrowed = submission.run(call_in_order, calls, dtype, enabled)
        same(weight, torch.full((2,), want, dtype=dtype), atol=0.0, rtol=0.0, what=f"weight after {', '.join(calls)}")
        same(scale, 4.0 if enabled else 1.0, atol=0.0, rtol=0.0, what="scale")
        same(scaled, [torch.tensor(3 * scale)] * 3, atol=0.0, rtol=0.0, what="scale(3), alone and in a list")
        check(not borrowed, "A scaler of PyTorch is at work: writing it yourself is the exercise.")


@probe
def scaler_states(module, saved, disabled):
    """state_dict of a scaler after four steps, one of them an overflow, after loading each of `saved`, and a step later."""
    import torch

    scaler = module.LossScaler(2.0**8, 4.0, 0.25, 3, enabled=not disabled)
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    states = []

    def step(value):
        weight.grad = torch.full((2,), value)
        scaler.step(optimizer)
        scaler.update()
        states.append(dict(scaler.state_dict()))

    for value in (1.0, 1.0, float("nan"), 1.0):
        step(value)
    for state in saved:
        scaler.load_state_dict(state)
        states.append(dict(scaler.state_dict()))
        if not disabled:
            step(1.0)
    plain = all(type(value) in (int, float) for state in states for value in state.values())
    return states, scaler.get_scale(), plain


@task(2)
@points(3)
@hint('The keys are "scale", "growth_factor", "backoff_factor", "growth_interval" and "_growth_tracker"; plain numbers.')
def test_scaler_state_dict(submission, reference):
    """The state of a scaler has the keys of torch.amp.GradScaler, loads into it, and goes on from where it was."""
    saved = {"scale": 512.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 5, "_growth_tracker": 4}
    highest = {**saved, "scale": 2.0**127}  # twice that is infinite: it is kept, and the count starts anew
    states, scale, plain = submission.run(scaler_states, [highest, saved], False)
    options = {"growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 3}
    want = [{"scale": s, "_growth_tracker": n, **options} for s, n in ((256.0, 1), (256.0, 2), (64.0, 0), (64.0, 1))]
    want += [highest, {**highest, "_growth_tracker": 0}, saved, {**saved, "scale": 1024.0, "_growth_tracker": 0}]
    same(states, want, atol=0.0, rtol=0.0, what="state_dict()")
    check(plain, "The values of a state are plain numbers, no tensors.", got=states[-1])
    same(scale, 1024.0, atol=0.0, what="scale after loading and one clean step")
    theirs = reference.new_scaler()
    theirs.load_state_dict(states[0])
    same(theirs.state_dict(), states[0], atol=0.0, rtol=0.0, what="state in torch.amp.GradScaler")
    states, scale, _ = submission.run(scaler_states, [{}], True)
    same((states, scale), ([{}] * 5, 1.0), atol=0.0, what="state and scale when not enabled")


@probe
def adam_through_overflow(module, grads, explicit):
    """An Adam whose step returns its number, through these gradients; what step returned and all of its state."""
    import torch

    class Counting(torch.optim.Adam):
        calls = 0

        def step(self, closure=None):
            super().step(closure)
            self.calls += 1
            return float(self.calls)

    weight = torch.ones(3, requires_grad=True)
    optimizer, scaler = Counting([weight], lr=0.1), module.LossScaler(init_scale=1.0, growth_interval=100)
    returned, states = [], []
    for grad in grads:
        weight.grad = grad * scaler.get_scale()
        if explicit:
            scaler.unscale_(optimizer)
        returned.append(scaler.step(optimizer))
        scaler.update()
        state = optimizer.state.get(weight, {})
        states.append({k: v.clone() for k, v in state.items()} | {"weight": weight.detach().clone()})
    return returned, states, optimizer.calls


@task(2)
@points(5)
@hint("A skipped step is one in which optimizer.step() is not called: zero gradients would still move Adam.")
def test_skip_leaves_optimizer_untouched(submission):
    """On overflow the optimizer is not called: parameters, moments and step counter stay as they are; None is returned."""
    clean = torch.tensor([1.0, -2.0, 0.5])
    for bad in (math.inf, -math.inf, math.nan):
        grads = [clean, torch.tensor([1.0, bad, 0.0]), clean]
        for explicit in (False, True):
            returned, states, calls = submission.run(adam_through_overflow, grads, explicit)
            same(states[1], states[0], atol=0.0, rtol=0.0, what="Adam after the skipped step")
            check(calls == 2, "The optimizer is called for clean gradients alone.", got=calls, want=2)
            check(returned == [1.0, None, 2.0], "step returns what optimizer.step() does, or None.", got=returned)


# --- task 3: the training step ----------------------------------------------------------------------------------------


@probe
def one_step(module, weights, batches, options):
    """amp_step with SGD on factor · tanh(x W1ᵀ) W2ᵀ; the report, gradients, weights, the scaler and what was called."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = (torch.nn.Parameter(w) for w in weights)

        def forward(self, x):
            return torch.tanh(x @ self.w1.mT) @ self.w2.mT

    model, calls = Model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=options["lr"])
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    scaler = module.LossScaler(init_scale=options["scale"], growth_interval=options["interval"])
    for w in model.parameters():
        w.grad = torch.full_like(w, 3.0)  # of an earlier step

    def loss_fn(model, batch):
        x, y, factor = batch
        calls.append(len(x))
        return (factor * model(x) - y).square().mean()

    report = module.amp_step(
        model, optimizer, scaler, batches, loss_fn, dtype=options["dtype"], max_norm=options["max_norm"]
    )
    return {
        "report": (report.loss, report.grad_norm, report.skipped, report.scale),
        "gradients": [w.grad for w in model.parameters()],
        "weights": [w.detach() for w in model.parameters()],
        "scale": scaler.get_scale(),
        "count": scaler.state_dict()["_growth_tracker"],
        "calls": calls,
    }


def a_step(seed, sizes, scale=2.0**16, interval=3, max_norm=None, dtype=F32, size=1.0):
    weights = [sk.tensor(seed, (5, 3), F32), sk.tensor(seed + 1, (2, 5), F32)]
    batches = [
        (sk.tensor(seed + i, (n, 3), F32), size * sk.tensor(seed - i, (n, 2), F32), size) for i, n in enumerate(sizes, 2)
    ]
    return weights, batches, {"lr": 0.25, "scale": scale, "interval": interval, "max_norm": max_norm, "dtype": dtype}


@st.composite
def steps(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return draw(st.integers(100, 999)), sizes, draw(st.sampled_from([1, 3]))


@task(3)
@points(9)
@hint(
    "zero_grad; forward and backward of each micro-batch; unscale_; norm; clip; step; update. Each but the second once.",
    "Clipping by the norm of scaled gradients acts as if max_norm were max_norm / scale. Divide each loss by their number.",
)
@sk.given(steps(), examples=5)
def test_amp_step_order(submission, reference, case):
    """Loss, norm, gradients and weights are those of a float64 step on the mean loss, clipped after unscaling."""
    seed, sizes, interval = case
    # Without clipping, with it, with a max_norm that is not reached; and a norm of 1e-6, which the 1e-6 of the factor halves.
    for ratio, size in ((None, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 1e-3)):
        weights, batches, options = a_step(seed, sizes, interval=interval, size=size)
        norm = reference.mlp_step(weights, batches, 0.25, None)[1]
        options["max_norm"] = None if ratio is None else ratio * norm
        loss, norm, grads, after = reference.mlp_step(weights, batches, 0.25, options["max_norm"])
        got = submission.run(one_step, weights, batches, options)
        same(got["report"][:2], (loss, norm), rtol=1e-5, atol=1e-7 * size**2, what="(loss, grad_norm)")
        same(got["report"][2:], (False, 2.0**16), atol=0.0, what="(skipped, scale)")
        largest = max(size**2, norm)
        same(got["gradients"], [g.float() for g in grads], rtol=1e-5, atol=1e-5 * largest, what="gradients left behind")
        same(got["weights"], [w.float() for w in after], rtol=1e-5, atol=1e-5 * max(1.0, norm), what="weights after the step")
        check(got["calls"] == [*sizes, "step"], "One call per micro-batch, then one step.", got=got["calls"])
        want = (2.0**17, 0) if interval == 1 else (2.0**16, 1)
        same((got["scale"], got["count"]), want, atol=0.0, what="scale and growth count after one update")


@task(3)
@points(4)
@hint("One scale for the whole step: update once, after the last micro-batch. An inf anywhere ends in one skipped step.")
def test_amp_step_overflow(submission):
    """An overflow in any one micro-batch skips the whole step and halves the scale once."""
    for where in range(3):
        for factor in (math.inf, 1e30):  # infinite by itself, and only when multiplied by the scale
            weights, batches, options = a_step(11 + where, (2, 1, 3), scale=2.0**60, max_norm=1.0)
            batches[where] = (*batches[where][:2], factor)
            got = submission.run(one_step, weights, batches, options)
            same(got["weights"], weights, atol=0.0, rtol=0.0, what="weights")
            check(got["calls"] == [2, 1, 3], "All micro-batches are seen, and no step is taken.", got=got["calls"])
            check(got["report"][2] is True, "The report says that the step was skipped.", got=got["report"])
            check(not math.isfinite(got["report"][1]), "The norm of an overflow is not finite.", got=got["report"][1])
            same(got["report"][3], 2.0**60, atol=0.0, what="scale of this step")
            same((got["scale"], got["count"]), (2.0**59, 0), atol=0.0, what="scale and growth count afterwards")


@probe
def unused_parameter(module):
    """A clipped step of an optimizer whose one parameter the loss does not use: what the report says, and the steps taken."""
    import torch

    model, calls = torch.nn.Linear(2, 1), []
    model.spare = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([model.spare], lr=0.25)
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    report = module.amp_step(
        model, optimizer, module.LossScaler(), [torch.ones(1, 2)], lambda m, x: m(x).sum(), dtype=torch.float32, max_norm=1.0
    )
    return report.grad_norm, report.skipped, calls


@task(3)
@points(1)
@hint(
    "if not micro_batches: raise ValueError(...), before anything is touched.",
    "Without any gradient there is nothing to clip, the norm is 0, and the optimizer is stepped.",
)
def test_amp_step_needs_batches(submission):
    """A step of no micro-batches is a ValueError that names micro_batches; one of one is a step, also without gradients."""
    weights, batches, options = a_step(7, (2,))
    with expect_error(ValueError, "micro_batches"):
        submission.run(one_step, weights, [], options)
    check(submission.run(one_step, weights, batches, options)["calls"] == [2, "step"], "One micro-batch is a step.")
    norm, skipped, calls = submission.run(unused_parameter)
    same(norm, 0.0, atol=0.0, what="norm of no gradients")
    check(not skipped and calls == ["step"], "An optimizer without gradients is stepped.", got=(skipped, calls))


@probe
def regression(module, weights, x, y, factor, steps, scale):
    """A regression whose products are cast to half by hand: gradients of the first step, losses, whether skipped."""
    import torch

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = (torch.nn.Parameter(w) for w in weights)

        def forward(self, x):
            hidden = torch.tanh(x.half() @ self.w1.half().mT)
            return factor * (hidden @ self.w2.half().mT).float()

    model = Half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-12)
    scaler = module.LossScaler(init_scale=scale, growth_interval=10**6, enabled=scale != 1.0)
    first, reports = None, []
    for _ in range(steps):
        report = module.amp_step(
            model, optimizer, scaler, [(x, y)], lambda m, b: (m(b[0]) - b[1]).square().mean(), dtype=torch.float32
        )
        reports.append((report.loss, report.skipped))
        if first is None:
            first = [w.grad.clone() for w in model.parameters()]
    with torch.no_grad():
        final = (model(x) - y).square().mean().item()
    return first, reports, final


FACTOR = 1e-3


def regression_data(seed):
    """Targets of size FACTOR: gradients of 2 · FACTOR² / 256 = 8e-9 per example, where float16 ends at 3e-8."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 8, generator=rng)
    weights = [0.3 * torch.randn(16, 8, generator=rng), 0.25 * torch.randn(1, 16, generator=rng)]
    return weights, x, FACTOR * torch.sin(2 * x[:, :1] + x[:, 1:2])


@task(3)
@points(5)
@hint(
    "Gradients of 1e-9 are zero in float16; multiplied by 2^16 they are 6e-5. Scale the loss before backward,"
    " and divide in float32 afterwards."
)
def test_training_rescued(submission, reference):
    """Where half precision would lose every gradient of the hidden layer, the scaled run follows the one in float64."""
    # Measured over 5 seeds: norms of the first gradients within 2.5e-4, the last loss within 1.5e-4; without a scale
    # every gradient is zero and the loss ends at 2 to 3.4 times that.
    for seed in (1, 2):
        weights, x, y = regression_data(seed)
        want, loss = reference.regression_run(weights, x, y, FACTOR, 40, 1e-2)
        first, reports, final = submission.run(regression, weights, x, y, FACTOR, 40, 2.0**16)
        check(not any(skipped for _, skipped in reports), "Nothing overflows here.", got=reports)
        for name, g, w in zip(("W1", "W2"), first, want, strict=True):
            check(bool((g != 0).any()), f"The gradient of {name} is not lost.", got=g.abs().max())
            same(g.double().norm(), w.norm(), rtol=1e-2, atol=0.0, what=f"norm of the first gradient of {name}")
        same(final, loss, rtol=0.05, atol=0.0, what="loss after 40 steps")
        lost, _, plain = submission.run(regression, weights, x, y, FACTOR, 40, 1.0)
        check(not (lost[0] != 0).any(), "Without a scale float16 loses this gradient: enabled=False must not scale.")
        check(plain > 1.5 * final, "Without a scale training must end above the rescued run.", got=(plain, final))


# --- task 4: casts per operation --------------------------------------------------------------------------------------

INPUTS = {"float32": (F32, F32), "float16": (F16, F16), "mixed": (F16, F32), "float64": (F64, F64)}


@probe
def results_of(module, operations, dtype, tensors):
    """[(what the region is, each operation's result or the error)]: operations are expressions over `tensors`."""
    import torch
    import torch.nn.functional as F

    found = []
    with module.Autocast(dtype):
        borrowed = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        for operation in operations:
            try:
                found.append(eval(operation, {"torch": torch, "F": F, **tensors}))
            except NotImplementedError:
                raise
            except (RuntimeError, TypeError, ValueError) as error:
                found.append(f"{type(error).__name__}: {error}")
    return found, borrowed


def small_tensors(x_dtype, y_dtype):
    x, y = torch.ones(4, 4, dtype=x_dtype), torch.full((4, 4), 0.5, dtype=y_dtype)
    i, j = torch.tensor([0, 1, 2, 3]), torch.zeros(4, 4, dtype=torch.long)
    return {"x": x, "y": y, "w": x[0].clone(), "z": y[0].clone(), "i": i, "j": j}


def dtype_of(result):
    return str(result.dtype).removeprefix("torch.") if isinstance(result, torch.Tensor) else result


@task(4)
@points(6)
@hint(
    "Look the operation up in the three tables; what is in none runs as it is. Only float16, bfloat16, float32 are cast.",
    "Lists, tuples and keyword arguments hold tensors too. An explicit dtype= stays what the caller said.",
)
def test_autocast_dtype_table(submission):
    """The dtype of 82 operations on four kinds of inputs is that of PyTorch's own autocast on CUDA."""
    for column, dtypes in INPUTS.items():
        rows = {operation: row[column] for operation, row in POLICY.items() if column in row}
        results, borrowed = submission.run(results_of, list(rows), F16, small_tensors(*dtypes))
        check(not borrowed, "torch.autocast is at work: writing it yourself is the exercise.")
        for (operation, want), result in zip(rows.items(), results, strict=True):
            got = dtype_of(result)
            check(got == want, f"Dtype of {operation} on {column} inputs.", got=got, want=want)


BRAIN = {  # operation: (x bfloat16 and y float16 in a float16 region, x and y float32 in a bfloat16 region)
    "x @ y": ("float16", "bfloat16"),
    "F.linear(input=x, weight=y)": ("float16", "bfloat16"),
    "x.softmax(-1)": ("float32", "float32"),
    "torch.cat([x, y])": ("float32", "float32"),
    "torch.cat(tensors=(x, y))": ("float32", "float32"),
    "x.relu()": ("bfloat16", "float32"),
    "x * torch.tensor(2.0)": ("bfloat16", "float32"),
    "torch.mm(x, y, out=torch.empty(4, 4, dtype=x.dtype)) if x.dtype == y.dtype else x": ("bfloat16", "float32"),
    "i + i": ("int64", "int64"),
}


@task(4)
@points(2)
@hint("Whatever is floating and not float64 is cast to the region's dtype, bfloat16 in a float16 region too.")
def test_autocast_other_dtypes(submission):
    """Regions of bfloat16, inputs of two half precisions, keyword arguments, out=: all as the contract says."""
    cases = ((F16, (torch.bfloat16, F16), 0), (torch.bfloat16, (F32, F32), 1))
    for dtype, inputs, column in cases:
        results, _ = submission.run(results_of, list(BRAIN), dtype, small_tensors(*inputs))
        for (operation, want), result in zip(BRAIN.items(), results, strict=True):
            check(dtype_of(result) == want[column], f"Dtype of {operation}.", got=dtype_of(result), want=want[column])


PRODUCTS = (
    "F.linear(x, y, z)", "F.linear(x.T, y)", "torch.matmul(x, y)", "x @ z", "torch.mm(x[:, ::2], y[::2])",
    "torch.bmm(x[None, :, :1], y[None, :1])", "torch.einsum('ij,kj->ik', x, y)", "F.conv1d(x[None], y[:, :, None])",
    "F.scaled_dot_product_attention(x[None, None], y[None, None], x[None, None])", "torch.addmm(z, x, y)",
)  # fmt: skip


@task(4)
@points(2)
@hint("Cast each input once, to the region's dtype; the result stays in it.")
def test_autocast_values(submission, torch_rng):
    """Products in half precision are bit for bit those of torch.autocast, for slices, transposes and single rows too."""
    x, y, z = (torch.randn(shape, generator=torch_rng) for shape in ((6, 6), (6, 6), (6,)))
    tensors = {"x": x, "y": y, "z": z}
    got, _ = submission.run(results_of, list(PRODUCTS), F16, tensors)
    with torch.autocast("cpu", F16):
        names = {"torch": torch, "F": torch.nn.functional, **tensors}
        want = [eval(operation, names) for operation in PRODUCTS]
    for operation, g, w in zip(PRODUCTS, got, want, strict=True):
        check(isinstance(g, torch.Tensor), f"{operation} runs.", got=g)
        same(g, w, atol=0.0, rtol=0.0, what=operation)


@probe
def llama_gradients(module, seed):
    """Loss and gradients of a tiny LLaMA on 16 tokens, without and with Autocast and by amp_step; dtypes of its logits."""
    import torch
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = torch.randint(64, (2, 16))

    def backward():
        model.zero_grad()
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        return out, {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}

    out, want = backward()
    plain = out.loss.item()
    with module.Autocast():
        out, got = backward()
    dtypes, loss = [str(out.logits.dtype)], out.loss.item()

    def loss_fn(model, ids):
        out = model(input_ids=ids, labels=ids)
        dtypes.append(str(out.logits.dtype))
        return out.loss

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    report = module.amp_step(model, optimizer, module.LossScaler(2.0**8), [ids[:1], ids[1:]], loss_fn, dtype=torch.float16)
    stepped = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return plain, want, {"Autocast": (loss, got), "amp_step": (report.loss, stepped)}, dtypes


@task(4)
@points(3)
@hint(
    "x.to(dtype), not x.detach().half(): the cast must be recorded, or nothing flows back to the weight.",
    "Autograd takes the gradient back through the cast: it arrives in float32.",
)
def test_autocast_llama_grads(submission, seed):
    """A LLaMA under Autocast, in amp_step too, has float32 gradients for every parameter, in the direction of the full ones."""
    plain, want, found, dtypes = submission.run(llama_gradients, seed % 1000)
    check(dtypes == ["torch.float16"] * 3, "The last product's result, the logits, is in half precision.", got=dtypes)
    for where, (loss, got) in found.items():
        same(loss, plain, rtol=1e-3, atol=0.0, what=f"loss, {where}")
        for name in want:
            g = got[name]
            check(g is not None, f"{name} has a gradient, {where}.")
            check(g.dtype == F32, f"The gradient of {name} is in float32, {where}.", got=g.dtype)
        flat_got, flat_want = (torch.cat([d[n].double().flatten() for n in want]) for d in (got, want))
        cosine = torch.nn.functional.cosine_similarity(flat_got, flat_want, dim=0)
        same(cosine, torch.ones((), dtype=F64), atol=1e-3, rtol=0.0, what=f"cosine of the gradients, {where}")


# --- task 5: regions, and weights that are cast once ------------------------------------------------------------------


@probe
def weight_regions(module, cache):
    """What a 2 x 2 weight gives in regions: evaluated, then trained; changed between regions; with an error inside."""
    import torch

    weight, x = torch.nn.Parameter(torch.eye(2)), torch.ones(1, 2)

    def gradient(out):
        return torch.autograd.grad(out.sum(), weight)[0] if out.requires_grad else None

    with module.Autocast(cache_weights=cache):
        with torch.no_grad():
            before = x @ weight
        trained = x @ weight
        of_two = gradient(trained + x @ weight)
        of_one = gradient(x @ weight)
        filled = [(x.fill_(value) @ weight).detach() for value in (2.0, 1.0)]
    with module.Autocast(cache_weights=False):
        uncached = []
        for _ in range(2):
            uncached.append((x @ weight).detach())
            with torch.no_grad():
                weight.mul_(2.0)
    values, grads = [], []
    for factor in (2.0, 3.0):
        with torch.no_grad():
            weight.copy_(factor * torch.eye(2))
        with module.Autocast(cache_weights=cache):
            with module.Autocast(cache_weights=cache):
                out = x @ weight
            grads.append(gradient(out + x @ weight))
        values.append(out.detach())
    try:
        with module.Autocast(cache_weights=cache):
            x @ weight
            raise KeyError
    except KeyError:
        pass
    with torch.no_grad():
        weight.copy_(5.0 * torch.eye(2))
    outside = (x @ weight).dtype
    with module.Autocast(cache_weights=cache):
        after_error = (x @ weight).detach()
    return {
        "no_grad": (before, before.requires_grad),
        "grads": (trained.requires_grad, of_two, of_one),
        "filled": filled,
        "uncached": uncached,
        "values": values,
        "region grads": grads,
        "outside": str(outside),
        "after an error": after_error,
    }


@task(5)
@points(2)
@hint("A cast made under no_grad has no graph: key the cache by torch.is_grad_enabled(), or do not keep such casts.")
def test_autocast_no_grad_then_grad(submission):
    """Evaluating under no_grad and then training in the same region gives gradients, also over two backward passes."""
    for cache in (True, False):
        got = submission.run(weight_regions, cache)
        half = torch.ones(1, 2, dtype=F16)
        same(got["no_grad"][0], half, atol=0.0, what="x @ weight under no_grad")
        check(got["no_grad"][1] is False, "Under no_grad nothing requires grad.")
        check(got["grads"][0], "A product after an evaluation still requires grad.", got=got["grads"][0])
        same(got["grads"][1], torch.full((2, 2), 2.0), atol=0.0, what="gradient of two uses of the weight")
        same(got["grads"][2], torch.ones(2, 2), atol=0.0, what="gradient of a use after backward")
        same(got["filled"], [2 * half, half], atol=0.0, what="x @ weight, x filled anew: it is a leaf, and no weight")


@task(5)
@points(3)
@hint("Casts are dropped when the outermost region ends, an exception included; the next one sees the new weights.")
def test_autocast_cache_dropped(submission):
    """Weights changed between two regions are seen by the second, also when the first ended in an error."""
    for cache in (True, False):
        got = submission.run(weight_regions, cache)
        want = [torch.full((1, 2), f, dtype=F16) for f in (2.0, 3.0)]
        same(got["values"], want, atol=0.0, what="x @ weight after the weight was changed")
        same(got["region grads"], [torch.full((2, 2), 2.0)] * 2, atol=0.0, what="gradients in those regions")
        ones = torch.ones(1, 2, dtype=F16)
        same(got["uncached"], [ones, 2 * ones], atol=0.0, what="x @ weight changed in a region with cache_weights=False")
        check(got["outside"] == "torch.float32", "Outside of regions nothing is cast.", got=got["outside"])
        same(got["after an error"], torch.full((1, 2), 5.0, dtype=F16), atol=0.0, what="x @ weight after an error")


@probe
def nested(module):
    """Dtypes of x @ x and of a softmax, in regions within regions, in order of execution."""
    import torch

    x = torch.eye(2)
    weight = torch.nn.Parameter(x.clone())
    seen = []

    def look():
        seen.append((str((x @ weight).dtype), str(x.half().softmax(-1).dtype)))

    off = module.Autocast(enabled=False)
    with module.Autocast() as outer:
        seen.append(isinstance(outer, module.Autocast))
        look()
        with off:
            look()
            with module.Autocast(torch.bfloat16):
                look()
                with module.Autocast():
                    look()
            look()
        look()
    with off:
        look()
        with module.Autocast():
            look()
    look()
    return seen


@task(5)
@points(3)
@hint(
    "func(*args) inside an inner region's handler is seen by the outer region's handler as well: torch stacks modes.",
    "Keep a list of the regions you are in; a region casts only if it is the last of the list.",
)
def test_autocast_nested_disable(submission):
    """Only the innermost region acts: inside enabled=False everything is as outside, after it the outer region goes on."""
    got = submission.run(nested)
    check(got[0] is True, "with Autocast() as region: gives the region.", got=got[0])
    half, brain, plain = ("torch.float16", "torch.float32"), ("torch.bfloat16", "torch.float32"), ("torch.float32", "torch.float16")
    want = [half, plain, brain, half, plain, half, plain, half, plain]
    where = ("on", "off", "bfloat16 in off", "float16 in that", "off again", "on again", "off", "on in off", "outside")
    for name, g, w in zip(where, got[1:], want, strict=True):
        check(tuple(g) == w, f"Dtypes of a product and of a softmax of halves: {name}.", got=g, want=w)


# --- task 6: master weights -------------------------------------------------------------------------------------------


@probe
def masters_run(module, weights, grads_by_step, make, scale):
    """MasterWeights through these gradients: masters and parameters after each step, with their dtypes.

    Without a scale, zero_grad is called before every third step only, then after gradients of NaN had been collected.
    """
    import torch

    params = [torch.nn.Parameter(w.clone()) for w in weights]
    kinds = {"sgd": lambda m: torch.optim.SGD(m, lr=1.0), "adam": lambda m: torch.optim.Adam(m, lr=0.01)}
    holder = module.MasterWeights(iter(params), kinds[make])
    scaler = None if scale is None else module.LossScaler(init_scale=scale, growth_interval=100)
    story = []
    for number, grads in enumerate(grads_by_step, 1):
        if scaler is None and number % 3 == 0:
            for p in params:
                p.grad = torch.full_like(p, float("nan"))
            holder.collect_grads()
        if scaler is not None or number % 3 == 0:
            holder.zero_grad()
        for p, g in zip(params, grads):
            p.grad = None if g is None else g.to(p.dtype)
        if scaler is None:
            if number % 3 == 1 and number > 1:
                holder.collect_grads()
            holder.step()
        else:
            holder.collect_grads()
            scaler.unscale_(holder.optimizer)
            for m in holder.masters:
                m.grad.mul_(0.5)  # clipped
            holder.step(scaler)
            scaler.update()
        story.append(([m.detach().clone() for m in holder.masters], [p.detach().clone() for p in params]))
    about = {
        "same optimizer": [m is g for m, g in zip(holder.masters, holder.optimizer.param_groups[0]["params"])],
        "leaves": [m.is_leaf and m.requires_grad for m in holder.masters],
        "gradients where the parameters have them": [
            (m.grad is None) == (g is None) for m, g in zip(holder.masters, grads_by_step[-1])
        ],
    }
    holder.zero_grad()
    about["zeroed"] = [t.grad is None for t in (*holder.masters, *params)]
    return story, about


@task(6)
@points(4)
@hint(
    "The float32 copies are made once; after that the masters are what is learned, and the parameters are rounded copies.",
    "master.grad = p.grad.float(); optimizer.step(); p.copy_(master).",
)
def test_master_weights(submission, reference, rng):
    """Masters add up updates that half precision rounds away; every parameter is its master, rounded."""
    # 64 steps of 2^-12 from 1.0: float16 has 2^-11 between neighbours below 1 and stays at 1.0; the master is at 1 - 2^-6.
    for dtype in (F16, torch.bfloat16):
        ones, small = torch.ones(2, dtype=dtype), torch.full((2,), 2.0**-12)
        story, about = submission.run(masters_run, [ones, ones], [[small, None]] * 64, "sgd", None)
        want = [torch.full((2,), 0.984375), torch.ones(2)]
        same(story[-1][0], want, atol=0.0, rtol=0.0, what="masters after 64 steps of 2^-12 and none")
        same(story[-1][1], [w.to(dtype) for w in want], atol=0.0, rtol=0.0, what="parameters")
        for name, truths in about.items():
            check(all(truths), f"masters and optimizer: {name}.", got=truths)
    weights = [torch.tensor(rng.standard_normal(shape)).to(F16) for shape in ((3, 2), (4,), ())]
    grads = [[torch.tensor(rng.standard_normal(w.shape)).to(F16) for w in weights] for _ in range(6)]
    story, _ = submission.run(masters_run, weights, grads, "adam", None)
    want = reference.adam(weights, grads, 0.01)
    for masters, params in story:
        same(params, [m.to(F16) for m in masters], atol=0.0, rtol=0.0, what="parameters, from the masters")
    same(story[-1][0], [w.float() for w in want], rtol=2e-6, atol=1e-5, what="masters after 6 steps of Adam")


@task(6)
@points(2)
@hint("collect_grads before unscale_; step then uses master.grad as it is, and goes through scaler.step.")
def test_master_weights_scaled(submission):
    """Half-precision gradients are collected into the masters, unscaled there, clipped, and skipped on overflow."""
    weights = [torch.ones(2, dtype=F16), torch.zeros(1, dtype=F16)]
    clean, bad = [torch.tensor([256.0, -512.0]), torch.tensor([128.0])], [torch.tensor([math.inf, 1.0]), torch.ones(1)]
    story, _ = submission.run(masters_run, weights, [clean, bad, clean], "sgd", 256.0)
    # 256/256 · 0.5, then skipped with the scale halved, then 256/128 · 0.5.
    want = [[0.5, 2.0], [-0.25]], [[0.5, 2.0], [-0.25]], [[-0.5, 4.0], [-0.75]]
    for number, ((masters, params), expected) in enumerate(zip(story, want, strict=True), 1):
        same(masters, [torch.tensor(e) for e in expected], atol=0.0, rtol=0.0, what=f"masters after step {number}")
        same(params, [torch.tensor(e, dtype=F16) for e in expected], atol=0.0, rtol=0.0, what=f"parameters after step {number}")
