"""Wrong readings of pruning, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `keep_largest` and the rest its helpers.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import torch
import torch._dynamo  # an optimiser's first step imports it (3 s): before the judges are forked, once for all

from llmkata.checks import misconception

# --- masks --------------------------------------------------------------------------------------------------------


@misconception(
    "threshold_not_count",
    replaces="magnitude_mask",
    caught_by="test_exact_count_and_order",
    feedback="With ties your mask removes more or fewer weights than asked; select exactly round(s*n) by rank.",
)
def magnitude_mask(w, sparsity):
    check_sparsity(sparsity)
    gone = round(sparsity * w.numel())
    if gone == 0:
        return torch.ones_like(w, dtype=torch.bool)
    return w.abs() > w.abs().flatten().sort().values[gone - 1]


@misconception(
    "signed_magnitude",
    replaces="magnitude_mask",
    caught_by="test_exact_count_and_order",
    feedback="You pruned the most negative weights, which are among the largest; rank by absolute value.",
)
def magnitude_mask(w, sparsity):
    check_sparsity(sparsity)
    return keep_largest(w.detach(), round(sparsity * w.numel()))


@misconception(
    "count_rounded_down",
    replaces="magnitude_mask",
    caught_by="test_exact_count_and_order",
    feedback="You prune int(s*n) weights, always rounded down: it is round(s*n).",
)
def magnitude_mask(w, sparsity):
    check_sparsity(sparsity)
    return keep_largest(w.detach().abs(), int(sparsity * w.numel()))


@misconception(
    "ties_from_the_end",
    replaces="magnitude_mask",
    caught_by="test_exact_count_and_order",
    feedback="Of equal magnitudes the lowest flat index is pruned first; yours goes from the other end (the largest were "
    "kept in order, which is not the same as pruning the smallest in order).",
)
def magnitude_mask(w, sparsity):
    check_sparsity(sparsity)
    return keep_largest(w.detach().abs().flatten().flip(0), round(sparsity * w.numel())).flip(0).view(w.shape)


@misconception(
    "global_mean_normalised",
    replaces="global_masks",
    caught_by="test_global_vs_layer",
    feedback="Global magnitude pruning ranks raw magnitudes across layers; what you did is closer to LAMP/layer-wise.",
)
def global_masks(weights, sparsity):
    check_sparsity(sparsity)
    return keep_largest_of_all({n: w.abs() / w.abs().mean().clamp_min(1e-30) for n, w in weights.items()}, sparsity)


@misconception(
    "layer_by_layer",
    replaces="global_masks",
    caught_by="test_global_vs_layer",
    feedback="Every tensor lost the same fraction: in global scope there is one ranking over all tensors.",
)
def global_masks(weights, sparsity):
    return {n: magnitude_mask(w, sparsity) for n, w in weights.items()}


@misconception(
    "float64_ranks",
    replaces="keep_largest",
    caught_by="test_no_full_sort_copies",
    matches="peak_bytes",
    feedback="You sort float64 copies and build an int64 rank for every weight: several times the memory of the model. "
    "Keep the dtype, and use the first indices of one argsort.",
)
def keep_largest(scores, pruned):
    values, order = scores.double().flatten().sort(stable=True)
    ranks, places = torch.empty_like(order), torch.arange(scores.numel())
    ranks[order] = places
    wide = torch.stack((values, ranks.double(), places.double()))
    return (wide.shape[0] * ranks >= wide.shape[0] * pruned).view(scores.shape)


@misconception(
    "nm_along_outputs",
    replaces="nm_mask",
    caught_by="test_nm",
    feedback="N:M groups must be consecutive along the input (reduction) dimension, or the hardware cannot skip them.",
)
def nm_mask(w, n, m):
    check_pattern(w.shape, n, m)
    rows = w.shape[0] // m * m
    keep = original(w.detach(), n, m)
    if rows:
        keep[:rows] = keep_largest_of_groups(w.detach()[:rows].abs().T, n, m).T
    return keep


@misconception(
    "prunes_n",
    replaces="nm_mask",
    caught_by="test_nm",
    feedback="N:M keeps n of every m; you pruned n of every m.",
)
def nm_mask(w, n, m):
    check_pattern(w.shape, n, m)
    return keep_largest_of_groups(w.detach().abs(), m - n, m)


# --- training -----------------------------------------------------------------------------------------------------


@misconception(
    "linear_schedule",
    replaces="cubic_sparsity",
    caught_by="test_cubic",
    feedback="Gradual pruning is cubic: prune fast while redundancy is high, slow near the end.",
)
def cubic_sparsity(step, *, initial, final, begin, end, every):
    if every < 1 or end <= begin:
        raise ValueError("every, begin, end")
    if step < begin or step >= end:
        return initial if step < begin else final
    return initial + (final - initial) * ((step - begin) // every * every) / (end - begin)


@misconception(
    "moves_between_updates",
    replaces="cubic_sparsity",
    caught_by="test_cubic",
    feedback="Your schedule moves at every step: between updates it stays at the value of the last one.",
)
def cubic_sparsity(step, *, initial, final, begin, end, every):
    original(step, initial=initial, final=final, begin=begin, end=end, every=every)
    return original(step, initial=initial, final=final, begin=begin, end=end, every=1)


@misconception(
    "cubic_growth",
    replaces="cubic_sparsity",
    caught_by="test_cubic",
    feedback="Your sparsity grows like progress³, slow first and fast at the end. It is what is *left* that falls like "
    "(1 - progress)³.",
)
def cubic_sparsity(step, *, initial, final, begin, end, every):
    if every < 1 or end <= begin:
        raise ValueError("every, begin, end")
    if step < begin or step >= end:
        return initial if step < begin else final
    return initial + (final - initial) * ((step - begin) // every * every / (end - begin)) ** 3


@misconception(
    "revives_pruned",
    replaces="MagnitudePruner.set_sparsity",
    caught_by="test_nested",
    feedback="You rank the present magnitudes alone, so a pruned weight that momentum moved comes back. What is pruned "
    "stays pruned: rank it below everything else.",
)
def set_sparsity(self, s):
    self.masks = {n: torch.ones_like(m) for n, m in self.masks.items()}
    original(self, s)


@misconception(
    "masks_without_zeroing",
    replaces="MagnitudePruner.set_sparsity",
    caught_by="test_nested",
    feedback="The masks are right but the weights are not zeroed yet: `set_sparsity` does both, so the next forward pass "
    "already runs without the pruned weights.",
)
def set_sparsity(self, s):
    before = {n: p.detach().clone() for n, p in self.parameters.items()}
    original(self, s)
    for n, p in self.parameters.items():
        p.data.copy_(before[n])


@misconception(
    "mask_weights_only",
    replaces="MagnitudePruner.after_step",
    caught_by="test_mask_survives_adamw",
    feedback="Momentum revived pruned weights: mask the optimiser's state after the step, not only the weights.",
)
def after_step(self):
    for name, p in self.parameters.items():
        self._zero_pruned(name, p)


@misconception(
    "mask_grad_only",
    replaces="MagnitudePruner.after_step",
    caught_by="test_mask_survives_adamw",
    feedback="Weight decay and momentum still move a weight whose gradient is zero.",
)
def after_step(self):
    pass


@misconception(
    "adam_only",
    replaces="MagnitudePruner.after_step",
    caught_by="test_mask_survives_momentum",
    feedback="You mask Adam's moments by their names; SGD keeps a `momentum_buffer`. Mask every state tensor that has the "
    "shape of the weight.",
)
def after_step(self):
    for name, p in self.parameters.items():
        self._zero_pruned(name, p)
        for key in ("exp_avg", "exp_avg_sq"):
            if self.optimizer is not None and key in self.optimizer.state.get(p, {}):
                self._zero_pruned(name, self.optimizer.state[p][key])


@misconception(
    "gradients_unmasked",
    replaces="MagnitudePruner.after_backward",
    caught_by="test_mask_survives_adamw",
    feedback="Gradients of pruned weights are still there after `after_backward`: they would count in a gradient norm and "
    "feed the optimiser's state.",
)
def after_backward(self):
    pass


# --- neurons ------------------------------------------------------------------------------------------------------


@misconception(
    "gate_only_score",
    replaces="neuron_scores",
    caught_by="test_structured_equivalence",
    feedback="A neuron's contribution passes through gate, up and down; score all three.",
)
def neuron_scores(gate, up, down):
    return gate.detach().to(torch.promote_types(gate.dtype, torch.float32)).square().sum(1)


@misconception(
    "norms_not_squares",
    replaces="neuron_scores",
    caught_by="test_neuron_scores",
    feedback="You add the norms of the three vectors; the score is the sum of their squares.",
)
def neuron_scores(gate, up, down):
    gate, up, down = (w.detach().to(torch.promote_types(w.dtype, torch.float32)) for w in (gate, up, down))
    return gate.norm(dim=1) + up.norm(dim=1) + down.norm(dim=0)


@misconception(
    "down_rows_pruned",
    replaces="prune_mlp",
    caught_by="test_structured_equivalence",
    feedback="down_proj's *columns* are the neuron's outputs.",
)
def prune_mlp(mlp, keep):
    neurons, down = mlp.down_proj.in_features, mlp.down_proj.weight
    kept = original(mlp, keep)
    if keep < neurons:
        mlp.down_proj.weight = smaller(down, 0, kept.clamp_max(down.shape[0] - 1))
    return kept


@misconception(
    "order_of_scores",
    replaces="prune_mlp",
    caught_by="test_structured_equivalence",
    feedback="You return the neurons by score; they are kept, and returned, in ascending order of their index.",
)
def prune_mlp(mlp, keep):
    neurons = mlp.down_proj.in_features
    if not 1 <= keep <= neurons:
        raise ValueError(f"keep must be in [1, {neurons}], got {keep}")
    scores = neuron_scores(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    kept = scores.argsort(stable=True)[neurons - keep :].flip(0)
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight = smaller(layer.weight, 0, kept)
        if layer.bias is not None:
            layer.bias = smaller(layer.bias, 0, kept)
        layer.out_features = keep
    mlp.down_proj.weight = smaller(mlp.down_proj.weight, 1, kept)
    mlp.down_proj.in_features = keep
    if hasattr(mlp, "intermediate_size"):
        mlp.intermediate_size = keep
    return kept


@misconception(
    "zeroed_neurons",
    replaces="prune_mlp",
    caught_by="test_structured_flops",
    matches="flops",
    feedback="The dropped neurons are zero but still there: the products cost what they cost before. Make the matrices "
    "smaller.",
)
def prune_mlp(mlp, keep):
    neurons = mlp.down_proj.in_features
    if not 1 <= keep <= neurons:
        raise ValueError(f"keep must be in [1, {neurons}], got {keep}")
    keeps = keep_largest(neuron_scores(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight), neurons - keep)
    with torch.no_grad():
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight[~keeps] = 0.0
        mlp.down_proj.weight[:, ~keeps] = 0.0
    return keeps.nonzero().flatten()


# --- formats ------------------------------------------------------------------------------------------------------


@misconception(
    "least_significant_first",
    replaces=("pack", "unpack"),
    caught_by="test_formats_roundtrip",
    feedback="Your bits are packed from the least significant end: the first element belongs to the highest bits of a byte "
    "(np.packbits does so by default).",
)
class LowBitsFirst:
    def pack(numbers, bits):
        per_byte = 8 // bits
        numbers = F.pad(numbers, (0, -numbers.numel() % per_byte)).view(-1, per_byte)
        return (numbers << torch.arange(0, 8, bits, dtype=torch.uint8)).sum(1, dtype=torch.uint8)

    def unpack(packed, bits, count):
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return ((packed[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]


@misconception(
    "mask_of_bytes",
    replaces=("encode_sparse", "decode_sparse"),
    caught_by="test_formats_roundtrip",
    feedback="Your bitmask takes a byte for every weight (torch stores a boolean in one): pack eight to a byte.",
)
class BooleanMask:
    def encode_sparse(w, fmt):
        if fmt != "bitmask":
            return original(w, fmt)
        check_format(w.shape, fmt)
        return {"mask": (w != 0).flatten().to(torch.uint8), "values": w.detach()[w != 0]}

    def decode_sparse(enc, fmt, shape):
        if fmt != "bitmask":
            return original(enc, fmt, shape)
        w = torch.zeros(shape, dtype=enc["values"].dtype)
        w[enc["mask"].bool().view(shape)] = enc["values"]
        return w


@misconception(
    "wide_indices",
    replaces="encode_sparse",
    caught_by="test_formats_roundtrip",
    feedback="Your CSR indices are int64, torch's default: that doubles what a position costs. They are int32 here.",
)
def encode_sparse(w, fmt):
    enc = original(w, fmt)
    return {part: t.long() if fmt == "csr" and part != "values" else t for part, t in enc.items()}


@misconception(
    "zeros_stored",
    replaces="save_sparse",
    caught_by="test_file_size",
    matches="bytes",
    feedback="The zeros are in the file: a mask saves no bytes until the format leaves them out.",
)
def save_sparse(state, path):
    formats, shapes = dict.fromkeys(state, "dense"), {n: list(t.shape) for n, t in state.items()}
    header = {"formats": json.dumps(formats), "shapes": json.dumps(shapes)}
    write_tensors(path, {f"{n}:values": t for n, t in state.items()}, header)
    return {"bytes": os.path.getsize(path), "formats": formats}


@misconception(
    "always_csr",
    replaces="best_format",
    caught_by="test_best_format",
    feedback="CSR pays four bytes for the position of every non-zero: a bitmask is smaller until about 97 % are zeros, "
    "and dense wins where few are.",
)
def best_format(w):
    return "csr"


@misconception(
    "forgets_2_4",
    replaces="best_format",
    caught_by="test_best_format",
    feedback="At exactly half non-zeros 2:4 takes as many bytes as a bitmask, and FORMATS names it first.",
)
def best_format(w):
    nnz, fitting = int(w.count_nonzero()), ("dense", "bitmask", "csr")
    return min(fitting, key=lambda fmt: storage_bytes(tuple(w.shape), nnz, fmt, w.element_size()))


# --- the product --------------------------------------------------------------------------------------------------


@misconception(
    "densified",
    replaces="SparseLinear.forward",
    caught_by="test_csr_flops",
    matches="flops",
    feedback="You turn the weight dense again before the product: every zero is multiplied. Multiply with the CSR tensor.",
)
def forward(self, x):
    dtype = torch.promote_types(x.dtype, torch.float32)
    size = (self.out_features, self.in_features)
    w = decode_sparse({"crow": self.crow, "col": self.col, "values": self.values}, "csr", size).to(dtype)
    bias = None if self.bias is None else self.bias.to(dtype)
    return F.linear(x.to(dtype), w, bias).to(x.dtype)


# --- fine-tuning and the ledger -----------------------------------------------------------------------------------


@misconception(
    "trains_unmasked",
    replaces="prune_finetune",
    caught_by="test_finetune_recovers",
    feedback="The model was pruned and then trained without masks: its weights are no longer zero.",
)
def prune_finetune(model, batches, schedule, names, *, lr, every, scope="global"):
    pruner = MagnitudePruner(model, names, scope=scope)
    pruner.after_backward = pruner.after_step = lambda: None
    told = finetune(model, batches, pruner, schedule, lr=lr, every=10**9)
    return told


@misconception(
    "prunes_every_step",
    replaces="prune_finetune",
    caught_by="test_finetune_steps",
    feedback="You ask the schedule at every step: masks change only at steps that are multiples of `every`.",
)
def prune_finetune(model, batches, schedule, names, *, lr, every, scope="global"):
    return finetune(model, batches, MagnitudePruner(model, names, scope=scope), schedule, lr=lr, every=1)


@misconception(
    "sparsity_as_asked",
    replaces="prune_finetune",
    caught_by="test_finetune_steps",
    feedback="You report the sparsity that the schedule asked for; report the fraction that is pruned, counted from the "
    "masks.",
)
def prune_finetune(model, batches, schedule, names, *, lr, every, scope="global"):
    told = original(model, batches, schedule, names, lr=lr, every=every, scope=scope)
    return told | {"sparsity": [float(schedule(step)) for step in range(len(batches))]}


@misconception(
    "claims_flops_from_mask",
    replaces="realised_cost",
    caught_by="test_compare_table",
    feedback="The dense kernel multiplied every zero; nothing was saved until the format or shape changed.",
)
def realised_cost(model, ids):
    executed = 0
    for module in model.modules():
        if isinstance(module, (nn.Linear, SparseLinear)):
            executed += int(module.weight.count_nonzero()) if isinstance(module, nn.Linear) else module.nnz
    return original(model, ids) | {"executed_flops": 2 * ids.numel() * executed}


@misconception(
    "tied_counted_twice",
    replaces="realised_cost",
    caught_by="test_realised_cost",
    feedback="The embedding and lm_head are one tensor in memory: its entries and bytes count once.",
)
def realised_cost(model, ids):
    tensors = [*model.state_dict().values()]
    return original(model, ids) | {
        "nonzero_params": sum(int(t.count_nonzero()) for t in tensors if t.is_floating_point()),
        "stored_bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


@misconception(
    "prunes_the_model_itself",
    replaces="compare_patterns",
    caught_by="test_compare_table",
    feedback="Every pattern pruned what the one before had left: each row needs its own copy of the model.",
)
def compare_patterns(model, eval_ids, sparsities, finetune_batches):
    class copy:
        deepcopy = staticmethod(lambda m: m)

    import types

    code = types.FunctionType(original.__code__, {**original.__globals__, "copy": copy})
    return code(model, eval_ids, sparsities, finetune_batches)
