"""Visible checks of 6.3 model_pruning. They earn no points; what they ask for is in README.md."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

TINY_LAG_LM = Path(__file__).parents[3] / "components" / "tiny_lag_lm"

# The worked example of the brief: magnitudes 3 1 2 / 1 0.5 4 / 1 5 2.
W = torch.tensor([[3.0, -1.0, 2.0], [1.0, 0.5, -4.0], [-1.0, 5.0, 2.0]])


def normal(rng, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


# --- task 1 -------------------------------------------------------------------------------------------------------


@task(1)
@hint("round(1/3 · 9) = 3 weights go: 0.5, and of the three of magnitude 1 the two of lowest index.")
def test_three_by_three(submission):
    """The worked example: a third of nine weights goes, two of a tie of three."""
    want = torch.tensor([[True, False, True], [False, False, True], [True, True, True]])
    same(submission.magnitude_mask(W, 1 / 3), want, what="mask")
    same(submission.magnitude_mask(W, 0.0), torch.ones(3, 3, dtype=torch.bool), what="mask at 0")
    same(submission.magnitude_mask(W, 1.0), torch.zeros(3, 3, dtype=torch.bool), what="mask at 1")
    with expect_error(ValueError, "sparsity"):
        submission.magnitude_mask(W, 1.5)


@task(1)
@hint("One ranking: 0.1, 0.2, 0.3 and 0.4 go, although that is all of the small layer.")
def test_a_layer_may_vanish(submission):
    """Half of eight weights goes, all of them from the layer whose weights are small."""
    weights = {"big": torch.tensor([1.0, -2.0, 3.0, 4.0]), "small": torch.tensor([[0.1, -0.2], [0.3, 0.4]])}
    want = {"big": torch.ones(4, dtype=torch.bool), "small": torch.zeros(2, 2, dtype=torch.bool)}
    same(submission.global_masks(weights, 0.5), want, what="masks")


@task(1)
@hint("torch prunes by topk of |w|; without ties there is only one right answer.")
def test_agrees_with_torch(submission, torch_rng):
    """On random weights the masks are those of torch.nn.utils.prune, layer by layer and globally."""
    from torch.nn.utils import prune

    a, b = (torch.nn.Linear(7, n, bias=False) for n in (5, 4))
    for layer in (a, b):
        layer.weight.data = normal(torch_rng, *layer.weight.shape, dtype=torch.float32)
    weights = {"a": a.weight.detach().clone(), "b": b.weight.detach().clone()}
    prune.global_unstructured([(a, "weight"), (b, "weight")], prune.L1Unstructured, amount=0.6)
    want = {"a": a.weight_mask.bool(), "b": b.weight_mask.bool()}
    same(submission.global_masks(weights, 0.6), want, what="global masks")
    one = prune.l1_unstructured(torch.nn.Linear(7, 5), "weight", amount=0.4)
    same(submission.magnitude_mask(one.weight_orig, 0.4), one.weight_mask.bool(), what="mask")


# --- task 2 -------------------------------------------------------------------------------------------------------


@task(2)
@hint("Groups: (1, -3, 2, 0), (5, 5, 5, 4). Of three fives the two of highest index stay.")
def test_two_of_four(submission):
    """2:4 by hand, with a tie."""
    w = torch.tensor([[1.0, -3.0, 2.0, 0.0, 5.0, 5.0, -5.0, 4.0]])
    want = torch.tensor([[False, True, True, False, False, True, True, False]])
    same(submission.nm_mask(w, 2, 4), want, what="mask")
    with expect_error(ValueError):
        submission.nm_mask(torch.ones(4, 6), 2, 4)


# --- task 3 -------------------------------------------------------------------------------------------------------


@task(3)
@hint("At step 6 the last update was step 4: half of the way, so (1/2)³ of 0.8 is left: 0.8 - 0.1.")
def test_schedule_table(submission):
    """From 0 to 0.8 between steps 0 and 8, updated every second step."""
    options = {"initial": 0.0, "final": 0.8, "begin": 0, "end": 8, "every": 2}
    left = [1.0, 1.0, 27 / 64, 27 / 64, 1 / 8, 1 / 8, 1 / 64, 1 / 64, 0.0, 0.0]
    got = [submission.cubic_sparsity(step, **options) for step in range(10)]
    want = torch.tensor([0.8 * (1 - x) for x in left], dtype=torch.float64)
    same(torch.tensor(got, dtype=torch.float64), want, atol=1e-12, what="sparsity")


@probe
def two_steps(module):
    """Four weights of value 1, 2, 3, 4; two steps of SGD with momentum, half of the weights pruned before the second."""
    import torch

    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    pruner = module.MagnitudePruner(model, ["w"])
    pruner.attach(optimizer)
    for sparsity in (0.0, 0.5):
        pruner.set_sparsity(sparsity)
        optimizer.zero_grad()
        model.w.sum().backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
    pruner.set_sparsity(0.25)  # lower: nothing comes back
    return model.w.detach().clone(), optimizer.state[model.w]["momentum_buffer"].clone(), pruner.masks["w"]


@task(3)
@hint("Step 1: all weights lose 0.1. Then 0.9 and 1.9 are pruned; the others lose 0.1 · (0.5 · 1 + 1) = 0.15.")
def test_momentum_by_hand(submission):
    """Two steps of SGD with momentum: what is pruned is zero, and so is its momentum."""
    weights, momentum, mask = submission.run(two_steps)
    same(mask, torch.tensor([False, False, True, True]), what="mask")
    same(weights, torch.tensor([0.0, 0.0, 2.75, 3.75]), what="weights")
    same(momentum, torch.tensor([0.0, 0.0, 1.5, 1.5]), what="momentum")


# --- task 4 -------------------------------------------------------------------------------------------------------


@probe
def prune_given_mlp(module, weights, keep, x):
    """-> output of the whole MLP, kept neurons, output of the pruned one, its parameter shapes."""
    mlp = module.GatedMLP(x.shape[1], weights["gate_proj.weight"].shape[0]).double()
    mlp.load_state_dict(weights)
    before = mlp(x)
    kept = module.prune_mlp(mlp, keep)
    return before, kept, mlp(x), {n: list(p.shape) for n, p in mlp.named_parameters()}


@task(4)
@hint("Scores: 3 · 1², 3 · 2² and so on: neuron f has all weights f + 1 here, so the last ones stay.")
def test_neurons_by_hand(submission):
    """Five neurons with weights 1 to 5: the last two stay, and their outputs add up to the pruned MLP's."""
    size = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    weights = {"gate_proj.weight": size.expand(5, 3), "up_proj.weight": size.expand(5, 3)}
    weights = {n: w.clone() for n, w in weights.items()} | {"down_proj.weight": size.expand(5, 3).T.clone()}
    same(submission.neuron_scores(*weights.values()), 9 * size.flatten() ** 2, what="scores")
    x = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    _, kept, after, shapes = submission.run(prune_given_mlp, weights, 2, x)
    same(kept, torch.tensor([3, 4]), what="kept neurons")
    want = {"gate_proj.weight": [2, 3], "up_proj.weight": [2, 3], "down_proj.weight": [3, 2]}
    check(shapes == want, "The parameters have other shapes.", got=shapes, want=want)
    silu = [f * 0.2 / (1 + 2.718281828459045 ** (-f * 0.2)) * f * 0.2 * f for f in (4, 5)]
    same(after, torch.full((1, 3), sum(silu), dtype=torch.float64), atol=1e-9, what="output")
    before, _, same_again, _ = submission.run(prune_given_mlp, weights, 5, x)
    same(same_again, before, what="output with all neurons kept")


# --- task 5 -------------------------------------------------------------------------------------------------------


@task(5)
@hint("0 7 0 0 / 0 0 8 9: bits 0100 0011 = 67; CSR rows end at 0, 1, 3; in pairs 7 and 0, 8 and 9.")
def test_formats_by_hand(submission):
    """The example of the brief, in every format and back."""
    w = torch.tensor([[0.0, 7.0, 0.0, 0.0], [0.0, 0.0, 8.0, 9.0]])
    encoded = {fmt: submission.encode_sparse(w, fmt) for fmt in ("dense", "bitmask", "csr", "nm:2:4")}
    same(encoded["bitmask"], {"mask": torch.tensor([67], dtype=torch.uint8), "values": torch.tensor([7.0, 8.0, 9.0])})
    csr = {"crow": torch.tensor([0, 1, 3]).int(), "col": torch.tensor([1, 2, 3]).int()}
    same(encoded["csr"], csr | {"values": torch.tensor([7.0, 8.0, 9.0])}, what="csr")
    same(encoded["nm:2:4"]["values"].sum(1), torch.tensor([7.0, 17.0]), what="sums of the rows of 2:4 values")
    for fmt, size in (("dense", 32), ("bitmask", 13), ("csr", 36), ("nm:2:4", 17)):
        same(submission.decode_sparse(encoded[fmt], fmt, (2, 4)), w, what=fmt)
        same(submission.storage_bytes((2, 4), 3, fmt, 4), size, what=f"bytes of {fmt}")
    same(submission.best_format(w), "bitmask", what="best format")
    with expect_error(ValueError, "2:4"):
        submission.encode_sparse(torch.ones(1, 4), "nm:2:4")


@probe
def file_sizes(module, states):
    """Saves each state -> [bytes as told, bytes of the file, the state loaded again]."""
    import os
    import tempfile

    out = []
    with tempfile.TemporaryDirectory() as folder:
        for state in states:
            path = os.path.join(folder, "w.safetensors")
            told = module.save_sparse(state, path)
            out.append([told["bytes"], os.path.getsize(path), module.load_sparse(path)])
    return out


@task(5)
@hint("Store every matrix in its best format: the zeros of a masked one then take a bit each.")
def test_files(submission, torch_rng):
    """A file of 90 % zeros is much smaller than a dense one, and both give back what was saved."""
    dense = normal(torch_rng, 128, 128, dtype=torch.float32)
    masked = dense.masked_fill(torch.rand(128, 128, generator=torch_rng) < 0.9, 0.0)
    states = [{"w": dense, "b": dense[0]}, {"w": masked, "b": dense[0]}]
    (told, size, _), (told_small, small, back) = submission.run(file_sizes, states)
    check((told, told_small) == (size, small), "bytes is not the size of the file.", got=told, want=size)
    check(size >= 65536, "The dense file is smaller than its numbers.", got=size)
    check(small < 0.2 * size, "90 % zeros take more than a fifth of the dense file.", got=small, want=0.2 * size)
    same(back, states[1], atol=0.0, rtol=0.0, what="state")


# --- task 6 -------------------------------------------------------------------------------------------------------


@task(6)
@hint("(W Xᵀ)ᵀ + b. A row of W without non-zeros gives the bias alone.")
def test_sparse_layer(submission, torch_rng):
    """SparseLinear equals F.linear on a batch of two rows of three tokens."""
    w, bias, x = (normal(torch_rng, *shape, dtype=torch.float32) for shape in ((4, 6), (4,), (2, 3, 6)))
    w[w.abs() < 0.7], w[2] = 0.0, 0.0
    layer = submission.SparseLinear.from_dense(w, bias)
    same(layer.nnz, int((w != 0).sum()), what="nnz")
    same(layer(x), F.linear(x, w, bias), atol=1e-5, what="output")


# --- tasks 7 and 8 ------------------------------------------------------------------------------------------------


@probe
def prune_and_train(module, folder, steps):
    """-> held-out losses of the tiny model: as it is, 80 % pruned, pruned and trained; what prune_finetune told; zeros."""
    held_out = module.lag2_batch(16, 16, seed=1)
    model = module.load_tiny_llama(folder)
    names = module.prunable_names(model)
    losses = [module.evaluate(model, held_out)]
    module.MagnitudePruner(model, names, scope="global").set_sparsity(0.8)
    losses.append(module.evaluate(model, held_out))
    model = module.load_tiny_llama(folder)
    batches = [module.lag2_batch(8, 16, seed=100 + i) for i in range(steps)]
    told = module.prune_finetune(model, batches, lambda step: 0.8, names, lr=4e-3, every=4)
    losses.append(module.evaluate(model, held_out))
    return losses, told, sum(int((model.get_parameter(n) == 0).sum()) for n in names)


@task(7)
@hint("Each step: new masks if it is their turn, forward, backward, mask, optimiser, mask.")
def test_training_heals(submission):
    """Eight steps after losing 80 % of its weights the small model is far better than without them."""
    (dense, pruned, trained), told, zeros = submission.run(prune_and_train, str(TINY_LAG_LM), 8)
    check(len(told["losses"]) == 8 and len(told["sparsity"]) == 8, "One loss and one sparsity a step.", got=told)
    same(zeros, round(0.8 * 81_920), what="zeros")
    check(dense < trained < pruned - 0.5, "Losses: dense < trained < pruned.", got=(dense, trained, pruned))


@probe
def ledger(module):
    """realised_cost of a masked layer, and of the same in CSR; the input of both is one-hot ids."""
    import torch

    class OneLayer(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, ids):
            return self.layer(torch.nn.functional.one_hot(ids, 8).float())

    w = torch.zeros(4, 8)
    w[0, :3] = 1.0
    masked = torch.nn.Linear(8, 4, bias=False)
    masked.weight.data.copy_(w)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    return [module.realised_cost(OneLayer(layer), ids) for layer in (masked, module.SparseLinear.from_dense(w))]


@task(8)
@hint("Dense: 2·10·32 FLOPs and 128 B, whatever is zero. CSR: 2·10·3, and 4·5 + 4·3 + 4·3 = 44 B.")
def test_ledger(submission):
    """A masked layer saves nothing, the same in CSR saves FLOPs and bytes."""
    masked, csr = submission.run(ledger)
    want = {"dense_flops": 640, "executed_flops": 640, "nonzero_params": 3, "stored_bytes": 128}
    same(masked, want, what="cost of the masked layer")
    same(csr, want | {"executed_flops": 60, "stored_bytes": 44}, what="cost of the CSR layer")


# --- at real scale ------------------------------------------------------------------------------------------------


@probe
def prune_directory(module, w):
    """A checkpoint directory in the layout of the hub: two shards, index, config; pruned to 2:4 into another one."""
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        shards = {"model-00001-of-00002.safetensors": {"model.layers.0.mlp.up_proj.weight": w}}
        shards["model-00002-of-00002.safetensors"] = {"model.layers.10.self_attn.q_proj.weight": w, "lm_head.weight": w}
        for name, tensors in shards.items():
            module.write_tensors(str(source / name), tensors, {"format": "pt"})
        index = {name: shard for shard, tensors in shards.items() for name in tensors}
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        (source / "config.json").write_text("{}")
        zeros = module.prune_checkpoint(source, target, pattern=(2, 4))
        names = sorted(p.name for p in target.iterdir())
        return zeros, names == sorted(p.name for p in source.iterdir()), module.read_tensors(str(target / [*shards][1]))


@task(2)
@hint("prune_checkpoint is given: it calls your nm_mask for every *_proj.weight of the layers.")
def test_prune_a_directory(submission, torch_rng):
    """A sharded Llama directory is pruned to 2:4, its lm_head and its other files left as they are."""
    w = normal(torch_rng, 4, 8, dtype=torch.bfloat16)
    zeros, complete, (tensors, metadata) = submission.run(prune_directory, w)
    same(zeros, {f"model.layers.{n}.weight": 0.5 for n in ("0.mlp.up_proj", "10.self_attn.q_proj")}, what="zeros")
    check(
        complete and metadata == {"format": "pt"}, "Files or metadata are missing in the new directory.", got=metadata
    )
    same(tensors["lm_head.weight"], w, what="lm_head")
    pruned = tensors["model.layers.10.self_attn.q_proj.weight"]
    check(bool(((pruned != 0).view(4, 2, 4).sum(-1) == 2).all()), "Not two of four.", got=pruned)


@task(2)
@hint("The tensor cores read two of four along the inputs: with groups along dim 0 the compression is lossy.")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_semi_structured_on_cuda(submission, torch_rng):
    """On a GPU the compressed 2:4 product equals the dense one."""
    w, x = (normal(torch_rng, n, 128, dtype=torch.float32) for n in (128, 64))
    check(submission.semi_structured_error(w, x) < 0.1, "The 2:4 product differs from the dense one.")
