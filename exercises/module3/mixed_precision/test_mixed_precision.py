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
def two_micro_batches(module, scale, max_norm):
    """One step of SGD on the mean of w·x over two micro-batches, x = 3 and 5: the report, the weight, the scale after."""
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    scaler = module.LossScaler(init_scale=scale, growth_interval=1)
    batches = [torch.tensor([[3.0]]), torch.tensor([[5.0]])]
    report = module.amp_step(
        model, optimizer, scaler, batches, lambda m, x: m(x).sum(), dtype=torch.float32, max_norm=max_norm
    )
    told = (report.loss, report.grad_norm, report.skipped, report.scale)
    return told, model.weight.item(), scaler.get_scale()


@task(3)
@hint("Divide each loss by the number of micro-batches; unscale before norm and clipping; update once, at the end.")
def test_one_step_by_hand(submission):
    """Losses 3 and 5 give loss 4 and norm 4, clipped to 2 at most; at a scale of 2^127 the step is skipped."""
    told, weight, scale = submission.run(two_micro_batches, 2.0**10, None)
    same(told, (4.0, 4.0, False, 2.0**10), atol=1e-5, what="(loss, grad_norm, skipped, scale)")
    same((weight, scale), (0.0, 2.0**11), atol=1e-5, what="weight and next scale")
    told, weight, _ = submission.run(two_micro_batches, 2.0**10, 2.0)
    same((told[1], weight), (4.0, 0.5), atol=1e-5, what="norm before clipping, and the weight, clipped to norm 2")
    told, weight, scale = submission.run(two_micro_batches, 2.0**127, None)
    same((told[2], told[3], weight, scale), (True, 2.0**127, 1.0, 2.0**126), atol=0.0, what="an overflow")


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


@probe
def regions(module):
    """What region and weight give: dtypes by region, a gradient after an evaluation, and a weight that was changed."""
    import torch

    x, weight = torch.ones(1, 2), torch.nn.Parameter(torch.eye(2))
    with module.Autocast():
        with torch.no_grad():
            x @ weight
        trained = x @ weight
        with module.Autocast(enabled=False):
            off = x @ weight
        with module.Autocast(torch.bfloat16):
            brain = x @ weight
    with torch.no_grad():
        weight.mul_(2.0)
    with module.Autocast():
        changed = x @ weight
    return [str(r.dtype) for r in (trained, off, brain, x @ weight)], trained.requires_grad, changed.detach().float()


@task(5)
@hint("Keep the regions you are in, innermost last; drop casts when the outermost ends; keep the two grad modes apart.")
def test_regions(submission):
    """The innermost region decides, an evaluation spoils no training, and the next region sees the new weight."""
    got, names = submission.run(regions), ("float16", "float32", "bfloat16", "float32")
    check(got[0] == [f"torch.{n}" for n in names], "Dtypes in float16, off, bfloat16, outside.", got=got[0], want=names)
    check(got[1] is True, "A product after one under no_grad requires grad.", got=got[1])
    same(got[2], torch.full((1, 2), 2.0), atol=0.0, what="x @ weight in the next region")


@probe
def small_updates(module):
    """16 steps of 2^-12 from 1.0: the master and the float16 parameter."""
    import torch

    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
    masters = module.MasterWeights([weight], lambda params: torch.optim.SGD(params, lr=1.0))
    for _ in range(16):
        masters.zero_grad()
        weight.grad = torch.full((1,), 2.0**-12, dtype=torch.float16)
        masters.step()
    return masters.masters[0].detach(), weight.detach()


@task(6)
@hint("The optimizer works on the float32 copies, which persist; the parameters are rounded from them after each step.")
def test_small_updates_add_up(submission):
    """16 updates of 2^-12 are 2^-8 to the master and to its parameter, though one alone is rounded away in float16."""
    want = torch.tensor([1 - 2.0**-8])
    same(list(submission.run(small_updates)), [want, want.half()], atol=0.0, rtol=0.0, what="master and parameter")


@probe
def on_cuda(module, theirs):
    """Dtypes and values of a small network's parts and its gradient in a region on the GPU."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    x = torch.randn(8, 16).cuda()
    weight = torch.nn.Parameter((torch.randn(16, 16) / 4).cuda())
    with torch.autocast("cuda", torch.float16) if theirs else module.Autocast(torch.float16):
        product = x @ weight
        hidden = F.gelu(F.linear(product, weight))
        chances = hidden.softmax(-1)
        both = torch.cat([product, chances])
        loss = F.mse_loss(chances, x) + both.sum()
    loss.backward()
    results = (product, hidden, chances, both, loss, weight.grad)
    return [str(r.dtype) for r in results], [r.detach().float().cpu() for r in results]


@task(5)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@hint("Compare the tables: where does PyTorch cast and you do not?")
def test_autocast_on_cuda(submission):
    """Dtypes, values and the gradient are those of torch.autocast on the GPU."""
    (dtypes, values), (their_dtypes, theirs) = submission.run(on_cuda, False), on_cuda(None, True)
    check(dtypes == their_dtypes, "Dtypes of product, gelu, softmax, cat, loss, gradient.", got=dtypes, want=their_dtypes)
    same(values, theirs, atol=5e-2, rtol=1e-2, what="product, gelu, softmax, cat, loss, gradient")
