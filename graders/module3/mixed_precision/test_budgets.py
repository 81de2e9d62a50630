"""Budgets of 3.1 mixed_precision.

Bytes are counted on the replayed program. That `unscale_` reads nothing is found with gradients on PyTorch's "meta"
device, whose tensors have shapes and no values. Reads and kernels of the CPU are counted beside the submission.
"""

import math

import torch

from llmkata.checks import RemoteError, hint, needs, points, probe, task

# --- weights that are cast once ---------------------------------------------------------------------------------------

D, LAYERS, MICRO = 128, 3, 8


@probe
def chain_in_one_region(module, weights, xs):
    """tanh(... tanh(x W1) ...) of each x in one region, every other one in a region within, from weights that require grad."""
    import contextlib

    import torch

    leaves = [w.requires_grad_() for w in weights]
    outputs = []
    with module.Autocast():
        for i, x in enumerate(xs):
            with module.Autocast() if i % 2 else contextlib.nullcontext():
                for w in leaves:
                    x = torch.tanh(x @ w)
            outputs.append(x.detach())
    return outputs


@task(5)
@points(4)
@needs("test_autocast_dtype_table", "test_autocast_no_grad_then_grad")
@hint(
    "Keep the cast of each leaf that requires grad until the outermost region ends, and use it again.",
    "Each cast writes 2 bytes for every number of the weight; eight micro-batches need one cast, not eight.",
)
def test_weight_casts(submission, budget, torch_rng):
    """Eight micro-batches in one region cast each weight once: bytes copied are those of one cast of each."""
    # Copies are what moves bytes. 3 weights of 128² numbers, 2 bytes each: 98 304 bytes; 8 inputs of 128: 2 048. Cast
    # anew for each micro-batch: 8 · 98 304 + 2 048 = 788 480.
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
    ideal = 2 * (LAYERS * D * D + MICRO * D)
    budget.require(
        "bytes copied by casts", run.bytes_moved, at_most=1.1 * ideal, at_least=ideal, reference=ideal, unit="bytes"
    )


# --- what is kept for backward ----------------------------------------------------------------------------------------

ROWS, WIDTH, INNER, BLOCKS = 512, 64, 256, 3


@probe
def blocks_forward_backward(module, weights, x):
    """x + gelu(x U) V, three times, and back from the mean: the loss and all gradients."""
    import torch.nn.functional as F

    leaves = [w.requires_grad_() for w in weights]
    with module.Autocast():
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
    """Three residual blocks under Autocast need at most 0.76 of the memory that float32 keeps for backward."""
    # Kept per block, in numbers: the input of U (512 · 64), those of gelu and of V (512 · 256 each): 294 912; for three
    # blocks in float32 3 538 944 bytes, half of it in half precision, and 6 · 16 384 cast weights of 2 bytes: 196 608.
    # Peaks with what backward itself needs, measured: 2 588 680; activations kept in float32 beside their casts
    # 2 883 592; results of products cast back to float32 3 866 632; all in float32 4 259 848.
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

    run = budget.replay(
        lambda s, weights, x: s.run(blocks_forward_backward, weights, x), weights, x, expect=expect, tol=3e-2
    )
    full = 4 * BLOCKS * ROWS * (WIDTH + 2 * INNER)
    budget.require(
        "peak bytes of the blocks", run.peak_bytes, at_most=0.76 * full, at_least=0.4 * full, reference=full, unit="bytes"
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
    reads = 0
    try:
        submission.run(unscale_without_values, [(3, 4), (7,), (2, 3, 2), (), (5, 1)])
    except RemoteError as error:
        if "meta" not in error.message.lower():
            raise
        reads = 1
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
    # The model answer: 14 for any number; the primitive that PyTorch uses 3. A loop: 2 · 64 and more.
    few, many = (submission.run(events_of_scaler, n, 1)[0] for n in (64, 256))
    budget.require("kernels for 64 gradients", few, at_most=24, at_least=1, unit="kernels")
    budget.require("kernels for 256 gradients", many, at_most=few, at_least=1, unit="kernels")
