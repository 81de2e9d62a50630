"""Budgets of 3.1 mixed_precision.

Bytes are counted on the replayed program. That `unscale_` reads nothing is found with gradients on PyTorch's "meta"
device, whose tensors have shapes and no values. Reads and kernels of the CPU are counted beside the submission.
"""

import math

import torch

from llmkata.checks import RemoteError, check, hint, needs, points, probe, task

# --- weights that are cast once ---------------------------------------------------------------------------------------

D, LAYERS, MICRO = 128, 3, 8


@probe
def chain_in_one_region(module, weights, xs):
    """tanh(... tanh(x W1) ...) of each x in one region, from weights that require grad."""
    import torch

    leaves = [w.requires_grad_() for w in weights]
    outputs = []
    with module.Autocast():
        for x in xs:
            for w in leaves:
                x = torch.tanh(x @ w)
            outputs.append(x.detach())
    return outputs


@task(5)
@points(4)
@needs("test_autocast_dtype_table", "test_autocast_no_grad_then_grad")
@hint(
    "Keep the cast of each leaf that requires grad until the outermost region ends, and use it again.",
    "Cast afresh, a weight costs 6 bytes a number for each micro-batch: 4 read, 2 written.",
)
def test_weight_casts(submission, budget, torch_rng):
    """Eight micro-batches in one region cast each weight once: bytes moved stay near the products' own."""
    # 3 weights of 128² numbers. Casting each once: 3 · 128² · (4 + 2) = 294 912 bytes; 8 · 3 products read the half
    # weights, 8 · 3 · 128² · 2 = 786 432; activations, 1 row each: some ten thousand. Cast every time: 8 times the
    # first, together 3 145 728. (Only forward: backward moves the same bytes for both.)
    weights = [torch.randn(D, D, generator=torch_rng) / math.sqrt(D) for _ in range(LAYERS)]
    xs = [torch.randn(1, D, generator=torch_rng) for _ in range(MICRO)]

    def expect(weights, xs):
        outputs = []
        for x in xs:
            for w in weights:
                x = torch.tanh(x.half().float() @ w.half().float())
            outputs.append(x.half())
        return outputs

    run = budget.replay(
        lambda s, weights, xs: s.run(chain_in_one_region, weights, xs), weights, xs, expect=expect, tol=2e-2
    )
    ideal = LAYERS * D * D * (6 + 2 * MICRO)
    budget.require("bytes moved", run.bytes_moved, at_most=1.2 * ideal, at_least=ideal, reference=ideal, unit="bytes")


# --- what is kept for backward ----------------------------------------------------------------------------------------

ROWS, WIDTH, INNER, BLOCKS = 512, 128, 512, 3


@probe
def blocks_forward_backward(module, weights, x, dtype):
    """x + gelu(x U) V, three times, and back from the mean: the loss and all gradients."""
    import contextlib

    import torch
    import torch.nn.functional as F

    leaves = [w.requires_grad_() for w in weights]
    with contextlib.nullcontext() if dtype is None else module.Autocast(dtype):
        for u, v in zip(leaves[::2], leaves[1::2]):
            x = x + F.linear(F.gelu(F.linear(x, u)), v)
        loss = x.square().mean()
    loss.backward()
    return loss.detach(), [w.grad for w in leaves]


@task(5)
@points(3)
@needs("test_autocast_dtype_table")
@hint(
    "Leave results in the dtype in which they were computed: the next operation casts what it needs.",
    "gelu is in no table: on a half-precision input it keeps half-precision numbers for backward.",
)
def test_saved_bytes(submission, budget, torch_rng):
    """Three residual blocks under Autocast need at most 0.7 of the peak memory that they need in float32."""
    # Kept per block, in numbers: the input of U (512 · 128), those of gelu and of V (512 · 512 each): 589 824. In
    # float32 2 359 296 bytes; in half precision 1 179 648, and 2 · 65 536 cast weights of 2 bytes, 262 144.
    weights = [
        torch.randn(shape, generator=torch_rng) / math.sqrt(shape[1]) for shape in ((INNER, WIDTH), (WIDTH, INNER)) * BLOCKS
    ]
    x = torch.randn(ROWS, WIDTH, generator=torch_rng)

    def expect(weights, x):
        leaves = [w.double().requires_grad_() for w in weights]
        h = x.double()
        for u, v in zip(leaves[::2], leaves[1::2], strict=True):
            h = h + torch.nn.functional.gelu(h @ u.mT) @ v.mT
        loss = h.square().mean()
        return loss.detach().float(), [g.float() for g in torch.autograd.grad(loss, leaves)]

    def peak(dtype):
        return budget.replay(
            lambda s, weights, x: s.run(blocks_forward_backward, weights, x, dtype), weights, x, expect=expect, tol=3e-2
        ).peak_bytes

    full, mixed = float(peak(None)), float(peak(torch.float16))
    budget.require(
        "peak under Autocast over that in float32", mixed / full, at_most=0.7, at_least=0.4, unit="x", trust="replayed"
    )


# --- the scaler -------------------------------------------------------------------------------------------------------


@probe
def unscale_without_values(module, shapes):
    """unscale_ on gradients of which no value can be read."""
    import torch

    params = []
    for i, shape in enumerate(shapes):
        p = torch.empty(shape, device="meta", dtype=(torch.float32, torch.bfloat16)[i % 2], requires_grad=True)
        p.grad = torch.empty_like(p)
        params.append(p)
    scaler = module.LossScaler()
    scaler.scale(torch.empty((), device="meta"))
    scaler.unscale_(torch.optim.SGD(params, lr=0.1))


@task(7)
@points(2)
@needs("test_scaler_lockstep")
@hint("`if not grad.isfinite().all()` makes the host wait; keep the flag as a tensor, and read it in step alone.")
def test_unscale_reads_nothing(submission, budget):
    """unscale_ asks for no value of a gradient."""
    # 0 reads; a test of each gradient on the host is one for each of the 5.
    reads, message = 0, ""
    try:
        submission.run(unscale_without_values, [(3, 4), (7,), (2, 3, 2), (), (5, 1)])
    except RemoteError as error:
        if "meta" not in error.message.lower():
            raise
        reads, message = 1, error.message
    check(not reads, "unscale_ asked for a value that is still on the device.", got=message)
    budget.require("host reads of unscale_", reads, at_most=0, unit="reads", trust="handed in")


@probe
def events_of_scaler(module, n, optimizers):
    """(operators of unscale_ without views, host reads of unscale_, step and update) for n gradients an optimizer."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        kernels = reads = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            view = func.is_view or func._schema.name in ("aten::detach", "aten::alias")
            Count.kernels += not view
            Count.reads += func._schema.name == "aten::_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    class Idle(torch.optim.SGD):
        def step(self, closure=None):
            return None

    made = []
    for _ in range(optimizers):
        params = [torch.zeros(3, requires_grad=True) for _ in range(n)]
        for p in params:
            p.grad = torch.ones(3)
        made.append(Idle(params, lr=0.1))
    scaler = module.LossScaler()
    scaler.scale(torch.zeros(()))
    with Count():
        for optimizer in made:
            scaler.unscale_(optimizer)
        kernels = Count.kernels
        for optimizer in made:
            scaler.step(optimizer)
        scaler.update()
    return kernels, Count.reads


@task(7)
@points(2)
@needs("test_scaler_lockstep")
@hint("One flag per optimizer, read once, in step: whether to step is the only thing that the host has to know.")
def test_host_reads(submission, budget):
    """unscale_, step and update read the device once per optimizer, however many gradients there are."""
    # Measured: 1 each, as in PyTorch. `if isinf(grad).any()` for 40 gradients: 40.
    for optimizers in (1, 2):
        reads = submission.run(events_of_scaler, 40, optimizers)[1]
        budget.require(f"host reads, {optimizers} optimizers", reads, at_most=optimizers, unit="reads")


@task(7)
@points(2)
@needs("test_scaler_lockstep")
@hint("A loop over parameters starts two kernels for each; torch._foreach_mul_ and torch._foreach_norm take the list.")
def test_kernels(submission, budget):
    """unscale_ starts the same small number of kernels for 64 and for 256 gradients."""
    # The model answer: 10 for any number; the primitive that PyTorch uses 3. A loop: 2 · 64 and more.
    few, many = (submission.run(events_of_scaler, n, 1)[0] for n in (64, 256))
    budget.require("kernels for 64 gradients", few, at_most=24, at_least=1, unit="kernels")
    budget.require("kernels for 256 gradients", many, at_most=few, at_least=1, unit="kernels")
