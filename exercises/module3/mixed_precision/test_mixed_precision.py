"""Visible checks of 3.1 mixed_precision. They earn no points; what they ask for is in README.md."""

import pytest
import torch

from llmkata.checks import check, hint, probe, same, task


@task(1)
@hint("2^-26 rounds to 0 in float16; 4 · 2^-26 is its smallest number. The zero does not count.")
def test_report_by_hand(submission):
    """The worked example: of 2^-26 and 1 half are lost at scale 1, none at scale 4; 1.5 fits at 2^14."""
    grads = [torch.tensor([2.0**-26, 1.0]), torch.tensor([0.0])]
    got = [(s.zeroed, s.subnormal, s.overflow) for s in submission.scale_report(grads, [1.0, 4.0, 2.0**17])]
    same(got, [(0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5)], atol=1e-12, what="(zeroed, subnormal, overflow)")
    same(submission.pick_static_scale([torch.tensor([-1.5])]), 2.0**14, atol=0.0, what="static scale")


@probe
def scripted(module, device, cls):
    """Scale after each of six steps whose fourth gradient is NaN, and the weight at the end."""
    import torch

    options = {"init_scale": 2.0**10, "growth_interval": 2}
    scaler = module.LossScaler(**options) if cls is None else torch.amp.GradScaler(device, **options)
    weight = torch.ones(2, device=device, requires_grad=True)
    optimizer, scales = torch.optim.SGD([weight], lr=0.125), []
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale((weight * weight).sum()).backward()
        if step == 3:
            weight.grad[0] = float("nan")
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales, weight.detach().cpu()


@task(2)
@hint("Two clean steps in a row double the scale; the NaN halves it, and its step is skipped.")
def test_scripted_run(submission):
    """Scale and weight are those of torch.amp.GradScaler over six steps, one of them an overflow."""
    same(submission.run(scripted, "cpu", None), scripted(None, "cpu", "theirs"), atol=0.0, rtol=0.0, what="run")


@task(7)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@hint("Keep the scale on the device of the outputs.")
def test_scripted_run_on_cuda(submission):
    """The same on a GPU, against torch.amp.GradScaler there."""
    want = submission.run(scripted, "cuda", "theirs")
    same(submission.run(scripted, "cuda", None), want, atol=0.0, rtol=0.0, what="run")


@probe
def dtypes(module):
    import torch

    x = torch.eye(2)
    with module.Autocast():
        return [str(r.dtype) for r in (x @ x, x.half().softmax(-1), torch.cat([x, x.half()]), x.half().relu(), x.double() @ x.double())]


@task(4)
@hint("Products in half, softmax in float32, cat in the wider, relu as it came, float64 never.")
def test_five_dtypes(submission):
    """Five operations have the dtypes of PyTorch's autocast."""
    got, names = submission.run(dtypes), ("float16", "float32", "float32", "float16", "float64")
    check(got == [f"torch.{n}" for n in names], "Dtypes of x @ x, softmax, cat, relu, float64.", got=got, want=names)
