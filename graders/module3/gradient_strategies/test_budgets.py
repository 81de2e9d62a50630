"""Budgets of 3.5 gradient_strategies.

Bytes are counted on the replayed program. Host reads are found on the "meta" device, whose tensors have shapes and no
values: whoever asks for one there gets an error, as with fake CUDA tensors, whose first use costs seconds of imports.
"""

import math

import torch

from llmkata.checks import RemoteError, check, hint, needs, points, probe, task


@probe
def clip_without_values(module, name, shapes, kwargs):
    """Calls a clipping function on gradients of which no value can be read."""
    import torch

    params = []
    for i, shape in enumerate(shapes):
        p = torch.empty(shape, device="meta", dtype=(torch.float32, torch.float64, torch.float16)[i % 3])
        p.grad = torch.empty_like(p)
        params.append(p)
    result = getattr(module, name)(params, **kwargs)
    return None if result is None else (str(result.device), tuple(result.shape))


@task(6)
@points(8)
@needs("test_clip_norm", "test_nonfinite", "test_agc")
@hint(
    "`if norm > max_norm` makes the host wait until the device has finished everything in front of it.",
    "torch.where and clamp choose on the device; error_if_nonfinite is the only reason to read.",
)
def test_zero_syncs(submission, budget):
    """Clipping by norm and adaptive clipping read nothing back from the device."""
    # 0 reads. `if norm > max_norm` is 1, .item() per parameter P = 5.
    shapes = [(3, 4), (7,), (2, 3, 2), (), (5, 1)]
    for name, kwargs in (("clip_grad_norm_", {"max_norm": 1.0}), ("adaptive_clip_", {"clipping": 0.02})):
        reads = 0
        try:
            returned = submission.run(clip_without_values, name, shapes, kwargs)
        except RemoteError as error:
            if "meta" not in error.message.lower():
                raise
            reads = 1
        budget.require(f"host reads of {name}", reads, at_most=0, unit="reads", trust="handed in")
        if name == "clip_grad_norm_":
            check(returned == ("meta", ()), "The norm stays on the device.", got=returned, want=("meta", ()))
    returned = submission.run(clip_without_values, "clip_grad_norm_", [(0, 2)], {"max_norm": 1.0})
    check(returned == ("meta", ()), "The norm of an empty gradient, too.", got=returned, want=("meta", ()))


@probe
def operators(module, n):
    """Operators that clip_grad_norm_ dispatches for n float32 gradients; views and aliases are no kernels."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.seen += not (func.is_view or func._schema.name in ("aten::detach", "aten::alias"))
            return func(*args, **(kwargs or {}))

    params = [torch.zeros(3, requires_grad=True) for _ in range(n)]
    for p in params:
        p.grad = torch.ones(3)
    with Count():
        module.clip_grad_norm_(params, 1.0)
    return Count.seen


@task(6)
@points(6)
@needs("test_clip_norm")
@hint(
    "A loop over parameters starts three kernels for each; torch._foreach_norm and torch._foreach_mul_ take the list.",
)
def test_kernels(submission, budget):
    """clip_grad_norm_ starts the same small number of kernels for 64 and for 256 gradients."""
    # The model answer: 21 for any number (one multi-tensor norm, one multi-tensor product, the rest on numbers);
    # an alternative that looks for the maximum first has 45. A loop of norm and product: 2 · 64 + 10 = 138 and more.
    few, many = submission.run(operators, 64), submission.run(operators, 256)
    budget.require("kernels for 64 gradients", few, at_most=64, at_least=2, unit="kernels")
    budget.require("kernels for 256 gradients", many, at_most=few, at_least=2, unit="kernels")


@probe
def clip_given(module, grads, max_norm):
    import torch

    params = [torch.zeros(()).expand(g.shape) for g in grads]  # parameters of no size
    for p, g in zip(params, grads):
        p.grad = g.neg_()
    norm = module.clip_grad_norm_(params, max_norm)
    return norm, [p.grad for p in params]


@task(6)
@points(6)
@needs("test_clip_norm")
@hint("Norms of tensors are numbers: nothing of the gradients' size is needed, no torch.cat, no float64 copy of all.")
def test_clip_bytes(submission, budget, reference, torch_rng):
    """clip_grad_norm_ needs next to no memory beside the gradients: at most a quarter of their bytes."""
    # 64 gradients of 32 · 64 float32 numbers = 524 288 bytes. The replay counts inputs that are written to; the
    # probe writes to all of them first, so that their bytes stand from the beginning and can be taken off. The model
    # answer adds 64 float64 norms and a few numbers, 0.001 of the gradients; torch.cat adds 1.0.
    grads = [torch.randn(32, 64, generator=torch_rng) for _ in range(64)]
    size = 64 * 32 * 64 * 4

    def expect(grads):
        return torch.tensor(reference.global_norm(grads)).double(), [
            -g.float() for g in reference.clipped_by_norm(grads, 1.0)
        ]

    run = budget.replay(lambda s, grads: s.run(clip_given, grads, 1.0), grads, expect=expect, tol=1e-5)
    extra = float(run.peak_bytes) - size
    budget.require("bytes beside the gradients", max(extra, 0.0), at_most=0.25 * size, reference=size,
                   unit="bytes", trust="replayed")  # fmt: skip


ROWS, D, LAYERS = 512, 32, 6


@probe
def accumulate_given(module, weights, x, y, k):
    """Gradients of a deep tanh network by accumulate over k micro-batches."""
    import torch

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(torch.nn.Parameter(w) for w in weights)

        def forward(self, x):
            for w in self.weights:
                x = torch.tanh(x @ w)
            return x

    def loss_sum(model, batch):
        x, y = batch
        return (model(x) - y).square().sum(), y.numel()

    model = Deep()
    module.accumulate(model, list(zip(x.chunk(k), y.chunk(k))), loss_sum)
    return [w.grad for w in model.weights]


@probe
def graphs_alive(module, k):
    """At each call of the loss function: the earlier micro-batches whose graphs are still there."""
    import weakref

    import torch

    class Marker:
        pass

    markers, seen = [], []

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.marker = Marker()  # lives as long as this node of the graph
            markers.append(weakref.ref(ctx.marker))
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad.expand(3)

    def loss_sum(model, batch):
        seen.append([i for i, marker in enumerate(markers) if marker() is not None])
        return Sum.apply(model.weight[0] * batch), 1

    module.accumulate(torch.nn.Linear(3, 1, bias=False), [torch.ones(3)] * k, loss_sum)
    return seen


@task(3)
@points(10)
@needs("test_accumulation_exact")
@hint(
    "backward() of each micro-batch frees its graph; adding up the losses first keeps all graphs.",
    "A variable that still holds the last loss while the next micro-batch runs forward holds its graph's last nodes.",
)
def test_accumulation_peak(submission, budget, reference, torch_rng):
    """The peak of K micro-batches is the full batch's over K: at most 1.3/K of it for K = 2, 4 and 8."""
    # A micro-batch keeps 6 outputs of tanh (512/K · 32 · 4 = 65 536/K bytes each) and a few arrays more; the
    # gradients, 6 · 4 096 bytes, are not divided by K and are taken off. One backward at the end: about 0.9 for any K.
    weights = [torch.randn(D, D, generator=torch_rng) / math.sqrt(D) for _ in range(LAYERS)]
    x, y = (torch.randn(ROWS, D, generator=torch_rng) for _ in range(2))
    fixed = LAYERS * D * D * 4

    def scenario(s, weights, x, y):
        answers = []
        for k in (1, 2, 4, 8):
            with s.segment(f"{k}"):
                answers.append(s.run(accumulate_given, weights, x, y, k))
        return answers

    def expect(weights, x, y):
        return [reference.mlp_gradients(weights, x, y)] * 4

    run = budget.replay(scenario, weights, x, y, expect=expect, tol=1e-4)
    for k in (2, 4, 8):
        ratio = (float(run[f"{k}"].peak_bytes) - fixed) / (float(run["1"].peak_bytes) - fixed)
        budget.require(
            f"peak of {k} micro-batches over that of the full batch", ratio, at_most=1.3 / k, reference=1 / k,
            unit="x", trust="replayed",
        )  # fmt: skip
    # A loop's variable may keep the end of the last graph until it is given the next one.
    for i, alive in enumerate(submission.run(graphs_alive, 4)):
        check(not alive or alive == [i - 1], "No loss but the last still holds its graph.", got=alive)
