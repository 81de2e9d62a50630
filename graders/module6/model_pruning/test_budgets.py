"""Budgets of 6.3 model_pruning.

FLOPs are those of matrix products, (m, k) x (k, n) is 2mkn. Peak bytes are what is alive at once besides the inputs.

Mended in the specification: no clock for the CSR product. The recorder takes no sparse tensors, so its FLOPs are counted
beside the submission by a dispatch mode that reads the number of non-zeros of a CSR operand (self-reported, 4 points).
"""

import torch

from llmkata.checks import hint, points, probe, same, task

# --- task 1 -------------------------------------------------------------------------------------------------------


@task(1)
@points(3)
@hint(
    "Magnitudes once, one stable argsort, one mask. Keep the dtype: float64 copies double everything.",
    "The ranks themselves are not needed: mask[order[:count]] = False.",
)
def test_no_full_sort_copies(submission, budget, torch_rng):
    """Global masks of 65 536 weights hold at most 8 times the bytes of the weights at once."""
    # In units of the weights' 262 144 B: magnitudes 1, joined 1, sorted values 1, int64 order 2, mask 0.25: the answer
    # measures 4.0, kthvalue with ties mended 4. The limit is 8. Sorting in float64 with int64 ranks by index: joined
    # magnitudes 2, values 2, order 2, ranks 2, arange 2 and more = 10 and above.
    weights = {f"w{n}": torch.randn(128, 256, generator=torch_rng) * (1 + n) for n in range(2)}
    size = 4 * sum(w.numel() for w in weights.values())

    def oracle(weights):
        flat = torch.cat([w.double().abs().flatten() for w in weights.values()])
        keep = torch.ones(flat.numel(), dtype=torch.bool)
        keep[flat.sort(stable=True).indices[: flat.numel() // 2]] = False
        return {n: part.view(w.shape) for (n, w), part in zip(weights.items(), keep.split(128 * 256), strict=True)}

    run = budget.replay(lambda s, weights: s.global_masks(weights, 0.5), weights, expect=oracle)
    budget.require("peak bytes of global_masks", run.peak_bytes, at_most=8 * size, unit="bytes")


# --- task 4 -------------------------------------------------------------------------------------------------------

LAYERS, D, NEURONS, KEEP, HEADS, VOCAB, T = 2, 64, 128, 64, 4, 32, 64


def pruned_state(rng):
    """A state dict of the small Llama whose MLPs have KEEP neurons."""
    layer = {f"self_attn.{n}_proj.weight": (D, D) for n in "qkvo"}
    layer |= {"mlp.gate_proj.weight": (KEEP, D), "mlp.up_proj.weight": (KEEP, D), "mlp.down_proj.weight": (D, KEEP)}
    layer |= {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
    shapes = {f"model.layers.{i}.{n}": shape for i in range(LAYERS) for n, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    return {n: torch.randn(shape, generator=rng) * (0.1 if len(shape) == 2 else 1.0) for n, shape in shapes.items()}


@probe
def pruned_model(module, sizes, keep, state):
    """The small Llama, its MLPs pruned to `keep` neurons, and then given these weights (in the first neurons of an MLP
    that is larger than they are, the others zero)."""
    import torch

    model = module.TinyLlama(*sizes)
    for block in model.model.layers:
        module.prune_mlp(block.mlp, keep)
    with torch.no_grad():
        for name, w in state.items():
            p = model.get_parameter(name)
            p.zero_()
            p[tuple(slice(n) for n in w.shape)].copy_(w)
    return model.requires_grad_(False)


@task(4)
@points(4)
@hint(
    "A product with zeros costs what any product costs: the weights of dropped neurons must be gone, not zero.",
    "New, smaller parameters: weight of shape (keep, I) in gate_proj and up_proj, (O, keep) in down_proj.",
)
def test_structured_flops(submission, reference, budget, torch_rng):
    """Half the neurons of every MLP gone, a forward pass costs exactly their products less."""
    # Linear layers of 64 tokens: 2·64·(2·(4·64² + 3·64·128) + 32·64) = 10 747 904 dense; less 2 layers of 2·64·3·64·64 =
    # 1 572 864 each: 7 602 176. Attention 2 layers · 4·64²·64 = 2 097 152. 9 699 328 in all; zeroed only: 12 845 056.
    theory = 7_602_176 + 2_097_152
    state, ids = pruned_state(torch_rng), torch.randint(VOCAB, (1, T), generator=torch_rng)

    def scenario(s, state):
        model = s.run(pruned_model, (VOCAB, D, LAYERS, HEADS, NEURONS), KEEP, state)
        with s.segment("forward"):
            return model(ids)

    run = budget.replay(scenario, state, expect=lambda state: reference.logits(state, ids), tol=1e-3)["forward"]
    budget.require(
        "FLOPs of the pruned model", run.flops, at_most=1.001 * theory, at_least=0.999 * theory, reference=theory
    )


# --- task 5 -------------------------------------------------------------------------------------------------------


def with_zeros(rng, side, zeros):
    """A random matrix with an exact number of zeros."""
    w = torch.randn(side, side, generator=rng)
    w.view(-1)[torch.randperm(side * side, generator=rng)[:zeros]] = 0.0
    return w


@task(5)
@points(7)
@hint(
    "A file of zeros is as large as a file of numbers: which format is the smallest at this sparsity?",
    "At 90 % CSR pays 4 bytes for every position, a bitmask one bit for every weight.",
)
def test_file_size(submission, budget, torch_rng):
    """Saved matrices take what their non-zeros take: 0.14 of dense at 90 %, 0.54 at 50 %, 0.57 for 2:4 in half precision."""
    # 256² weights, and 2048 B for the header. float32: 1/32 for the bitmask and the non-zeros, 0.131 at 90 % and 0.531 at
    # 50 %; CSR 0.202 and 1.002; zeros stored: 1. 2:4, float16: 1/2 for the values and 2 bits of 32 for each of two in
    # four = 0.5625; with a byte for each position 0.75.
    side = 256
    pairs = torch.randn(side, side, generator=torch_rng).view(side, -1, 4)
    pairs.scatter_(-1, torch.rand(pairs.shape, generator=torch_rng).argsort(-1)[..., :2], 0.0)
    cases = {
        "90 % zeros, float32": (with_zeros(torch_rng, side, round(0.9 * side**2)), 0.14),
        "50 % zeros, float32": (with_zeros(torch_rng, side, side**2 // 2), 0.54),
        "2:4, float16": (pairs.view(side, side).half(), 0.57),
    }
    for n, (name, (w, limit)) in enumerate(cases.items()):
        submission.save_sparse({"w": w}, f"case{n}.safetensors")
        size = len(submission.read_file(f"case{n}.safetensors"))
        same(submission.load_sparse(f"case{n}.safetensors"), {"w": w}, atol=0.0, rtol=0.0, what=name)
        dense = w.numel() * w.element_size()
        # The floor: the non-zero values themselves.
        budget.require(
            f"file, {name}",
            size,
            at_most=limit * dense + 2048,
            at_least=int((w != 0).sum()) * w.element_size(),
            reference=dense,
            unit="bytes",
            trust="outside",
        )


# --- task 6 -------------------------------------------------------------------------------------------------------


@probe
def counted_product(module, w, bias, x):
    """-> output of SparseLinear, FLOPs of its products: a CSR or CSC operand counts its non-zeros, and a pointwise
    product of floats counts an operation an element."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    def entries(t):
        return t.numel() if t.layout == torch.strided else t._nnz()

    class Counting(TorchDispatchMode):
        flops = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__.strip("_")
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            if any(part in name for part in ("mm", "mv", "dot", "baddbmm")) and len(tensors) > 1:
                left, right = tensors[-2:]
                if left.layout == torch.strided and right.layout != torch.strided:
                    rows = left.numel() // left.shape[-1]
                    self.flops += 2 * entries(right) * rows
                else:
                    columns = right.shape[-1] if right.ndim > 1 else 1
                    self.flops += 2 * entries(left) * columns
            elif name.startswith(("mul", "addcmul")) and out.is_floating_point() and out.layout == torch.strided:
                self.flops += 2 * out.numel()
            return out

    layer = module.SparseLinear.from_dense(w, bias)
    with torch.no_grad(), Counting() as counting:
        y = layer(x)
    return y, counting.flops


@task(6)
@points(4)
@hint(
    "The product must skip the zeros: torch's @ does with a CSR matrix, and cannot with a dense one.",
    "torch.sparse_csr_tensor(crow, col, values, size) @ x.T: the sparse operand on the left.",
)
def test_csr_flops(submission, budget, torch_rng):
    """A 256 x 256 layer of which 95 % are zeros multiplies its 3 277 non-zeros for each token, not its 65 536 weights."""
    # 2·32·3277 = 209 728 FLOP; dense 2·32·65 536 = 4 194 304, 20 times that. The bias is added, not multiplied.
    w = with_zeros(torch_rng, 256, 65_536 - 3277)
    bias, x = torch.randn(256, generator=torch_rng), torch.randn(4, 8, 256, generator=torch_rng)
    y, flops = submission.run(counted_product, w, bias, x)
    same(y, torch.nn.functional.linear(x, w, bias), atol=1e-4, rtol=0.0)
    theory = 2 * 32 * 3277
    budget.require("FLOPs of SparseLinear", flops, at_most=1.1 * theory, at_least=0.99 * theory, reference=theory)
