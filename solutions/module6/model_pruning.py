"""Exercise 6.3: model pruning.

Which weights can go (masks by magnitude), how a network is trained while they go (a schedule, and masks that outlive the
optimiser's step), and what is really saved: bytes and FLOPs fall only when a format or a shape changes.

Words used everywhere below
    mask        boolean, the shape of its weight, True = keep.
    sparsity s  fraction pruned, 0 <= s <= 1. Of n weights exactly round(s * n) go, `round` being Python's.
    tie         among equal magnitudes the lowest flat index goes first (-0.0 and 0.0 are equal).
Shapes: a weight w is (O, I), O outputs and I inputs, as in nn.Linear; F neurons of an MLP; N tokens; nnz non-zeros.
Weights are finite. Nothing here needs autograd but training itself: a mask has no gradient.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------------------
# Given: argument checks
# ---------------------------------------------------------------------------------------------------------------------


def check_sparsity(s: float) -> None:
    """ValueError naming the sparsity unless 0 <= s <= 1 (so NaN is refused)."""
    if not 0.0 <= s <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {s}")


def check_pattern(shape: Sequence[int], n: int, m: int) -> None:
    """ValueError unless 0 < n <= m and the shape is (O, I) with I a multiple of m."""
    if not 0 < n <= m:
        raise ValueError(f"pattern n:m needs 0 < n <= m, got {n}:{m}")
    if len(shape) != 2 or shape[1] % m:
        raise ValueError(f"pattern {n}:{m} needs a weight (O, I) with I a multiple of {m}, got {tuple(shape)}")


#: Storage formats. Of several that take equally many bytes the first one here is preferred.
FORMATS = ("dense", "nm:2:4", "bitmask", "csr")


def check_format(shape: Sequence[int], fmt: str) -> None:
    """ValueError unless the format is known and can hold a matrix of this shape (nm:2:4: I a multiple of 4)."""
    if fmt not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {fmt!r}")
    if len(shape) != 2:
        raise ValueError(f"only matrices are encoded, got shape {tuple(shape)}")
    if fmt == "nm:2:4":
        check_pattern(shape, 2, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Task 1: masks by magnitude
# ---------------------------------------------------------------------------------------------------------------------

# BEGIN HIDDEN


def keep_largest(scores: Tensor, pruned: int) -> Tensor:
    """All but the `pruned` smallest scores, boolean, same shape. The sort is stable: the lowest index of a tie goes."""
    order = scores.flatten().argsort(stable=True)
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[order[:pruned]] = False
    return keep.view(scores.shape)


def keep_largest_of_all(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """`keep_largest` over all tensors laid one behind the other, in the order of the dict."""
    flat = torch.cat([s.flatten() for s in scores.values()]) if scores else torch.empty(0)
    keep = keep_largest(flat, round(sparsity * flat.numel()))
    parts = keep.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def keep_largest_of_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """The n largest of every m consecutive scores along the last dimension of (O, I)."""
    groups = scores.reshape(scores.shape[0], -1, m)
    order = groups.argsort(dim=-1, stable=True)
    keep = torch.ones_like(groups, dtype=torch.bool)
    keep.scatter_(-1, order[..., : m - n], False)
    return keep.view(scores.shape)


# END HIDDEN


def magnitude_mask(w: Tensor, sparsity: float) -> Tensor:
    """The mask that prunes the round(sparsity * numel) weights of smallest |w|.

    Args:
        w: any shape, any float dtype.
        sparsity: fraction to prune; 0 keeps everything, 1 nothing.

    Returns:
        boolean, the shape of w, True = keep. Of equal magnitudes the lowest flat (row-major) index is pruned first.

    Raises:
        ValueError: sparsity outside [0, 1] or NaN.
    """
    check_sparsity(sparsity)
    # BEGIN SOLUTION task 1: rank by magnitude, prune exactly round(sparsity * numel)
    # By rank, not by threshold: with ties `|w| > threshold` removes more or fewer than asked.
    return keep_largest(w.detach().abs(), round(sparsity * w.numel()))
    # END SOLUTION


def global_masks(weights: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """One ranking over all tensors: the round(sparsity * total) smallest |w| of the model go, wherever they are.

    Raw magnitudes are compared, not normalised ones. A tie is broken by the order of names as given, then by flat
    index: the first goes first. A layer may lose everything or nothing.

    Returns:
        a mask for each name, in the order given.

    Raises:
        ValueError: sparsity outside [0, 1] or NaN.
    """
    check_sparsity(sparsity)
    # BEGIN SOLUTION task 1: one ranking over all tensors
    return keep_largest_of_all({name: w.detach().abs() for name, w in weights.items()}, sparsity)
    # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Task 2: N:M
# ---------------------------------------------------------------------------------------------------------------------


def nm_mask(w: Tensor, n: int, m: int) -> Tensor:
    """Keep the n largest |w| of every m consecutive weights of a row: w[o, m*g : m*(g+1)] for each o and g.

    Groups lie along dim 1, the inputs, which a matrix product sums over. Ties: the lowest index of the group goes.

    Returns:
        boolean (O, I), exactly n True in each group.

    Raises:
        ValueError: not 0 < n <= m, w is no matrix, or I is not a multiple of m.
    """
    check_pattern(w.shape, n, m)
    # BEGIN SOLUTION task 2: rank inside every group of m inputs
    return keep_largest_of_groups(w.detach().abs(), n, m)
    # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Task 3: training while weights go
# ---------------------------------------------------------------------------------------------------------------------


def cubic_sparsity(step: int, *, initial: float, final: float, begin: int, end: int, every: int) -> float:
    """The gradual schedule of Zhu and Gupta (2017): fast while redundancy is high, slow near the end.

        s(step) = initial                                                       step < begin
                  final + (initial - final) * (1 - (t - begin)/(end - begin))³  begin <= step < end
                  final                                                         step >= end
        t       = begin + every * floor((step - begin) / every)                 the last update at or before `step`

    Raises:
        ValueError: every < 1 or end <= begin.
    """
    if every < 1 or end <= begin:
        raise ValueError(f"the schedule needs every >= 1 and end > begin, got every {every}, begin {begin}, end {end}")
    # BEGIN SOLUTION task 3: the cubic schedule, constant between updates
    if step < begin:
        return initial
    if step >= end:
        return final
    t = begin + every * ((step - begin) // every)
    left = 1.0 - (t - begin) / (end - begin)
    return final + (initial - final) * left**3
    # END SOLUTION


class MagnitudePruner:
    """Keeps weights of a model pruned while an optimiser works on it.

        pruner = MagnitudePruner(model, names)      masks all True
        pruner.attach(optimizer)                    remembers it, nothing else
        pruner.set_sparsity(0.5)                    new masks; the weights are zeroed at once
        loss.backward();   pruner.after_backward()
        optimizer.step();  pruner.after_step()

    Args:
        names: parameter names, as in `model.named_parameters()` ("model.layers.0.mlp.up_proj.weight").
        scope: "layer", each tensor by its own ranking, or "global", one ranking over all of them.
        pattern: (n, m) for N:M masks, whatever the scope; any sparsity above 0 then applies the pattern, 0 does not.

    Attributes:
        parameters: {name: parameter}, in the order of names.   masks: {name: boolean mask}, True = keep.
        optimizer: the attached one, or None.

    Raises:
        ValueError: unknown scope, a name the model does not have, a pattern that does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        scope: str = "layer",
        pattern: tuple[int, int] | None = None,
    ) -> None:
        if scope not in ("layer", "global"):
            raise ValueError(f"scope must be 'layer' or 'global', got {scope!r}")
        found = dict(model.named_parameters())
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"the model has no parameter {missing[0]!r}")
        self.scope, self.pattern = scope, pattern
        self.parameters: dict[str, nn.Parameter] = {name: found[name] for name in names}
        if pattern is not None:
            for p in self.parameters.values():
                check_pattern(p.shape, *pattern)
        self.masks: dict[str, Tensor] = {
            name: torch.ones_like(p, dtype=torch.bool) for name, p in self.parameters.items()
        }
        self.optimizer: torch.optim.Optimizer | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Given: remember the optimiser whose state `after_step` masks. No hooks: you call the methods yourself."""
        self.optimizer = optimizer

    def set_sparsity(self, s: float) -> None:
        """Recompute the masks from the present magnitudes and zero the pruned weights.

        What is pruned stays pruned, whatever its weight has become meanwhile: it is the first to be counted among the
        round(s * n) that go (n weights of a tensor, or of all tensors in global scope). Hence a sparsity lower than
        the present one changes nothing.

        Raises:
            ValueError: sparsity outside [0, 1] or NaN.
        """
        check_sparsity(s)
        # BEGIN SOLUTION task 3: rank with the pruned weights last, then zero
        # Magnitudes are >= 0: a score of -1 puts a pruned weight below every other, even one that is exactly 0.
        scores = {n: torch.where(self.masks[n], p.detach().abs(), -1.0) for n, p in self.parameters.items()}
        if self.pattern is not None:
            keep = {n: keep_largest_of_groups(x, *self.pattern) for n, x in scores.items()} if s > 0 else self.masks
        elif self.scope == "global":
            keep = keep_largest_of_all(scores, s)
        else:
            keep = {n: keep_largest(x, round(s * x.numel())) for n, x in scores.items()}
        self.masks = {n: keep[n] & mask for n, mask in self.masks.items()}
        for name, p in self.parameters.items():
            self._zero_pruned(name, p)
        # END SOLUTION

    def after_backward(self) -> None:
        """Zero the gradients of pruned weights (parameters without a gradient are left alone)."""
        # BEGIN SOLUTION task 3: mask the gradients
        for name, p in self.parameters.items():
            if p.grad is not None:
                self._zero_pruned(name, p.grad)
        # END SOLUTION

    def after_step(self) -> None:
        """Zero the pruned weights, and with an optimiser attached every tensor of its state that has their shape.

        That is `exp_avg` and `exp_avg_sq` of Adam, `momentum_buffer` of SGD, and what other optimisers keep for each
        weight. State that does not exist yet is left alone.
        """
        # BEGIN SOLUTION task 3: mask the weights and the optimiser's state
        for name, p in self.parameters.items():
            self._zero_pruned(name, p)
            state = self.optimizer.state.get(p, {}) if self.optimizer is not None else {}
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    self._zero_pruned(name, value)
        # END SOLUTION

    # BEGIN HIDDEN
    @torch.no_grad()
    def _zero_pruned(self, name: str, tensor: Tensor) -> None:
        """In place. Filled, not multiplied: -1 * 0 is -0.0, and inf * 0 is NaN."""
        tensor.masked_fill_(~self.masks[name], 0.0)

    # END HIDDEN


# ---------------------------------------------------------------------------------------------------------------------
# Task 4: neurons
# ---------------------------------------------------------------------------------------------------------------------


def neuron_scores(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Score of each of the F neurons of a gated MLP: the squared weights that pass through it.

        score_f = Σ_i gate[f, i]² + Σ_i up[f, i]² + Σ_o down[o, f]²

    Args:
        gate, up: (F, I).   down: (O, F).

    Returns:
        (F,) in the dtype of the weights, float32 for half precision.
    """
    # BEGIN SOLUTION task 4: rows of gate and up, columns of down
    gate, up, down = (w.detach().to(torch.promote_types(w.dtype, torch.float32)) for w in (gate, up, down))
    return gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)
    # END SOLUTION


def prune_mlp(mlp: nn.Module, keep: int) -> Tensor:
    """Make a gated MLP physically smaller: keep the `keep` neurons of largest score (ties: the lowest index goes).

    Args:
        mlp: has nn.Linear gate_proj and up_proj (I -> F) and down_proj (F -> O), each with or without bias, as
            transformers' LlamaMLP and `GatedMLP` below. Changed in place: new, smaller parameters (which need
            gradients as the old ones did), `out_features` of gate_proj and up_proj, `in_features` of down_proj, and
            `intermediate_size` where the module has it.

    Returns:
        the kept indices, int64 (keep,), ascending. With keep = F nothing changes in value.

    Raises:
        ValueError: keep < 1 or keep > F.
    """
    neurons = mlp.down_proj.in_features
    if not 1 <= keep <= neurons:
        raise ValueError(f"keep must be in [1, {neurons}], got {keep}")
    # BEGIN SOLUTION task 4: rows of gate_proj and up_proj, columns of down_proj
    scores = neuron_scores(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    kept = keep_largest(scores, neurons - keep).nonzero().flatten()
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight = smaller(layer.weight, 0, kept)
        if layer.bias is not None:
            layer.bias = smaller(layer.bias, 0, kept)
        layer.out_features = keep
    mlp.down_proj.weight = smaller(mlp.down_proj.weight, 1, kept)  # its bias belongs to the outputs
    mlp.down_proj.in_features = keep
    if hasattr(mlp, "intermediate_size"):
        mlp.intermediate_size = keep
    return kept
    # END SOLUTION


# BEGIN HIDDEN
def smaller(p: nn.Parameter, dim: int, kept: Tensor) -> nn.Parameter:
    return nn.Parameter(p.detach().index_select(dim, kept), requires_grad=p.requires_grad)


# END HIDDEN


# ---------------------------------------------------------------------------------------------------------------------
# Task 5: formats that store no zeros
# ---------------------------------------------------------------------------------------------------------------------


def encode_sparse(w: Tensor, fmt: str) -> dict[str, Tensor]:
    """Encode a matrix w (O, I) of any float dtype; values keep their dtype.

        "dense"    {"values": w (O, I)}
        "bitmask"  {"mask": uint8 (ceil(O*I/8),), "values": (nnz,)}        bit = "is not zero", row-major over the whole
                   matrix, the first in the most significant bit; the last byte is filled up with zeros
        "csr"      {"crow": int32 (O+1,), "col": int32 (nnz,), "values": (nnz,)}
        "nm:2:4"   {"values": (O, I/2), "positions": uint8 (ceil(O*I/8),)}  two slots for every group of four inputs,
                   positions 0..3 in their group, ascending; two bits each, four to a byte, row-major over the whole
                   matrix, the first in the most significant bits. A group with fewer than two non-zeros fills its
                   slots with zeros of the group, so all its non-zeros are stored.

    Non-zero values come back to the bit, inf and NaN too. -0.0 is a zero: it may come back as 0.0.

    Raises:
        ValueError: unknown format, no matrix, or one that "nm:2:4" cannot hold: I % 4, or more than two non-zeros in a
            group of four (the message holds "nm:2:4").
    """
    check_format(w.shape, fmt)
    # BEGIN SOLUTION task 5: dense, bitmask, CSR, 2:4
    w = w.detach()
    nonzero = w != 0
    if fmt == "dense":
        return {"values": w.clone()}
    if fmt == "bitmask":
        return {"mask": pack(nonzero.flatten().to(torch.uint8), 1), "values": w[nonzero]}
    if fmt == "csr":
        crow = torch.zeros(w.shape[0] + 1, dtype=torch.int32, device=w.device)
        crow[1:] = nonzero.sum(1).cumsum(0)
        return {"crow": crow, "col": nonzero.nonzero()[:, 1].to(torch.int32), "values": w[nonzero]}
    if not fits_2_4(w):
        raise ValueError("nm:2:4 cannot hold this matrix: a group of four has more than two non-zeros")
    # A stable sort of "is zero" puts the non-zeros first, each kind in order; the first two slots are ours.
    slots = (~nonzero).view(w.shape[0], -1, 4).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort().values
    values = w.reshape(w.shape[0], -1, 4).gather(-1, slots)
    return {"values": values.reshape(w.shape[0], -1), "positions": pack(slots.flatten().to(torch.uint8), 2)}
    # END SOLUTION


# BEGIN HIDDEN
def pack(numbers: Tensor, bits: int) -> Tensor:
    """uint8 numbers of `bits` bits (1 or 2), the first in the most significant bits of a byte -> uint8."""
    per_byte = 8 // bits
    numbers = F.pad(numbers, (0, -numbers.numel() % per_byte)).view(-1, per_byte)
    shifts = torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=numbers.device)
    return (numbers << shifts).sum(1, dtype=torch.uint8)  # no two share a bit: the sum is their union


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers of `bits` bits each, uint8."""
    shifts = torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & (2**bits - 1)).flatten()[:count]


def fits_2_4(w: Tensor) -> bool:
    """At most two non-zeros in every group of four inputs."""
    return w.shape[1] % 4 == 0 and bool(((w != 0).view(w.shape[0], -1, 4).sum(-1) <= 2).all())


# END HIDDEN


def decode_sparse(enc: dict[str, Tensor], fmt: str, shape: tuple[int, int]) -> Tensor:
    """The matrix (O, I) that `encode_sparse` was given, in its dtype. Raises ValueError as `encode_sparse` does."""
    check_format(shape, fmt)
    # BEGIN SOLUTION task 5: the way back
    values = enc["values"]
    if fmt == "dense":
        return values.clone()
    w = torch.zeros(shape, dtype=values.dtype, device=values.device)
    if fmt == "bitmask":
        w[unpack(enc["mask"], 1, w.numel()).bool().view(shape)] = values
    elif fmt == "csr":
        rows = torch.arange(shape[0], device=w.device).repeat_interleave(enc["crow"].diff())
        w[rows, enc["col"].long()] = values
    else:
        slots = unpack(enc["positions"], 2, values.numel()).long().view(shape[0], -1, 2)
        w.view(shape[0], -1, 4).scatter_(-1, slots, values.view(slots.shape))
    return w
    # END SOLUTION


def storage_bytes(shape: tuple[int, int], nnz: int, fmt: str, itemsize: int) -> int:
    """Bytes of the tensors of `encode_sparse` for a matrix of this shape with nnz non-zeros of `itemsize` bytes.

    Raises ValueError for an unknown format, and for "nm:2:4" where I % 4.
    """
    check_format(shape, fmt)
    # BEGIN SOLUTION task 5: count the bytes
    outputs, inputs = shape
    bits = math.ceil(outputs * inputs / 8)
    return {
        "dense": outputs * inputs * itemsize,
        "bitmask": bits + nnz * itemsize,
        "csr": 4 * (outputs + 1) + nnz * (4 + itemsize),
        "nm:2:4": outputs * inputs // 2 * itemsize + bits,  # O·I/2 positions of two bits
    }[fmt]
    # END SOLUTION


def best_format(w: Tensor) -> str:
    """The format of fewest bytes that holds w (O, I) without loss; of equals the first in FORMATS."""
    # BEGIN SOLUTION task 5: the smallest format that is lossless
    nnz = int(w.count_nonzero())
    fitting = [fmt for fmt in FORMATS if fmt != "nm:2:4" or fits_2_4(w)]
    return min(fitting, key=lambda fmt: storage_bytes(tuple(w.shape), nnz, fmt, w.element_size()))
    # END SOLUTION


def write_tensors(path: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Given: a safetensors file of these tensors; metadata (texts) goes into its header."""
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path, metadata)


def read_tensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Given: tensors and metadata of a file of `write_tensors`."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})


def save_sparse(state: dict[str, Tensor], path: str) -> dict[str, Any]:
    """Write a state dict with every matrix of floats in its best format and everything else as it is ("dense").

    Tensors that share memory are each stored. How they are named in the file, and what its metadata says, is up to you:
    only `load_sparse` reads it.

    Returns:
        {"bytes": size of the file, "formats": {name: format}}
    """
    # BEGIN SOLUTION task 5: encode every matrix, remember formats and shapes in the header
    formats, shapes, tensors = {}, {}, {}
    for name, tensor in state.items():
        matrix = tensor.ndim == 2 and tensor.is_floating_point()
        formats[name] = best_format(tensor) if matrix else "dense"
        shapes[name] = list(tensor.shape)
        encoded = encode_sparse(tensor, formats[name]) if matrix else {"values": tensor}
        tensors |= {f"{name}:{part}": t for part, t in encoded.items()}
    write_tensors(path, tensors, {"formats": json.dumps(formats), "shapes": json.dumps(shapes)})
    return {"bytes": os.path.getsize(path), "formats": formats}
    # END SOLUTION


def load_sparse(path: str) -> dict[str, Tensor]:
    """The state dict that `save_sparse` was given: names in their order, shapes, dtypes, values."""
    # BEGIN SOLUTION task 5: decode
    tensors, header = read_tensors(path)
    formats, shapes = json.loads(header["formats"]), json.loads(header["shapes"])
    state = {}
    for name, fmt in formats.items():
        parts = {part: tensors[f"{name}:{part}"] for part in PARTS[fmt]}
        state[name] = parts["values"] if fmt == "dense" else decode_sparse(parts, fmt, tuple(shapes[name]))
    return state
    # END SOLUTION


# BEGIN HIDDEN
PARTS = {
    "dense": ("values",),
    "bitmask": ("mask", "values"),
    "csr": ("crow", "col", "values"),
    "nm:2:4": ("values", "positions"),
}
# END HIDDEN

# ---------------------------------------------------------------------------------------------------------------------
# Task 6: a product that skips zeros
# ---------------------------------------------------------------------------------------------------------------------


class SparseLinear(nn.Module):
    """x @ Wᵀ + bias with W (O, I) in CSR form: 2 * N * nnz FLOPs for N tokens. For inference: everything is a buffer.

    Buffers: crow int32 (O+1,), col int32 (nnz,), values (nnz,), bias (O,) or None.
    Attributes: in_features I, out_features O, nnz.
    """

    def __init__(self, crow: Tensor, col: Tensor, values: Tensor, in_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.nnz = in_features, crow.numel() - 1, values.numel()
        for name, tensor in (("crow", crow), ("col", col), ("values", values), ("bias", bias)):
            self.register_buffer(name, tensor)

    @classmethod
    def from_dense(cls, w: Tensor, bias: Tensor | None = None) -> SparseLinear:
        """From a weight (O, I), zeros left out, and a bias (O,); both are copied."""
        # BEGIN SOLUTION task 6: CSR of the weight
        enc = encode_sparse(w, "csr")
        return cls(enc["crow"], enc["col"], enc["values"], w.shape[1], None if bias is None else bias.detach().clone())
        # END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in the dtype of x. Half precision is multiplied in float32 and rounded once."""
        # BEGIN SOLUTION task 6: a sparse-dense product
        dtype = torch.promote_types(x.dtype, torch.float32)  # the CSR kernels have no half precision on the CPU
        w = torch.sparse_csr_tensor(self.crow, self.col, self.values.to(dtype), (self.out_features, self.in_features))
        # The sparse operand stands on the left: W Xᵀ, (O, I) times (I, N).
        y = (w @ x.reshape(-1, self.in_features).to(dtype).T).T
        if self.bias is not None:
            y = y + self.bias.to(dtype)
        return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)
        # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Given: a small Llama, its language, its loss
# ---------------------------------------------------------------------------------------------------------------------


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), as transformers' LlamaMLP."""

    def __init__(self, d_model: int, d_ff: int, bias: bool = False) -> None:
        super().__init__()
        self.intermediate_size = d_ff
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Causal attention with rotary positions (rotate-half layout, theta = 10000)."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.n_heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        half = q.shape[-1] // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
        angles = torch.arange(length, device=x.device)[:, None] * frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q, k = (
            torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1) for a, b in (t.chunk(2, dim=-1) for t in (q, k))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(d_model, eps=1e-6)
        self.self_attn = Attention(d_model, n_heads)
        self.post_attention_layernorm = nn.RMSNorm(d_model, eps=1e-6)
        self.mlp = GatedMLP(d_model, d_ff)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class TinyLlama(nn.Module):
    """ids (B, T) -> logits (B, T, vocab). Names, layout and numbers of transformers' LlamaForCausalLM, tied embeddings."""

    def __init__(
        self, vocab: int = 32, d_model: int = 64, n_layers: int = 2, n_heads: int = 4, d_ff: int = 128
    ) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocab, d_model)
        self.model.layers = nn.ModuleList(Block(d_model, n_heads, d_ff) for _ in range(n_layers))
        self.model.norm = nn.RMSNorm(d_model, eps=1e-6)
        self.lm_head = nn.Linear(d_model, vocab, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x)
        return self.lm_head(self.model.norm(x))


def load_tiny_llama(folder: str | Path) -> TinyLlama:
    """The model of components/tiny_lag_lm (config.json and model.safetensors, as transformers saves them)."""
    cfg = json.loads(Path(folder, "config.json").read_text())
    model = TinyLlama(
        cfg["vocab_size"],
        cfg["hidden_size"],
        cfg["num_hidden_layers"],
        cfg["num_attention_heads"],
        cfg["intermediate_size"],
    )
    state, _ = read_tensors(str(Path(folder, "model.safetensors")))
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    return model


def lag2_batch(n: int, length: int, seed: int) -> Tensor:
    """n rows of `length` tokens (int64) of the language the model was trained on.

    x[t] = perm[x[t-2]] with probability 0.9, else a uniform token of 32: 0.651 nats a predictable token.
    """
    perm = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 32, (n, length), generator=generator)
    follows = torch.rand((n, length), generator=generator) < 0.9
    ids = noise.clone()
    for t in range(2, length):
        ids[:, t] = torch.where(follows[:, t], perm[ids[:, t - 2]], noise[:, t])
    return ids


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross entropy of ids[:, 1:] in nats. The model returns logits, or an object that has `.logits`."""
    out = model(ids)
    logits = out if isinstance(out, Tensor) else out.logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, ids: Tensor) -> float:
    """`next_token_loss` as a number."""
    return next_token_loss(model, ids).item()


def prunable_names(model: nn.Module) -> list[str]:
    """Names of the weights of a Llama's layers: *.layers.*.{q,k,v,o,gate,up,down}_proj.weight."""
    wanted = re.compile(r"(^|\.)layers\.\d+\.\w+\.(q|k|v|o|gate|up|down)_proj\.weight$")
    return [name for name, _ in model.named_parameters() if wanted.search(name)]


def gated_mlps(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that have gate_proj, up_proj and down_proj."""
    return [m for m in model.modules() if all(hasattr(m, f"{name}_proj") for name in ("gate", "up", "down"))]


# ---------------------------------------------------------------------------------------------------------------------
# Task 7: prune and fine-tune
# ---------------------------------------------------------------------------------------------------------------------


def prune_finetune(
    model: nn.Module,
    batches: Sequence[Tensor],
    schedule: Callable[[int], float],
    names: Sequence[str],
    *,
    lr: float,
    every: int,
    scope: str = "global",
) -> dict[str, list[float]]:
    """Train with torch.optim.AdamW (its defaults but lr) on `next_token_loss`, one step a batch, while weights go.

    Steps count from 0. At every step that is a multiple of `every`, `set_sparsity(schedule(step))` comes first, before
    the forward pass. The model is changed in place, and returned pruned.

    Args:
        batches: ids (B, T), one a step.
        schedule: step -> sparsity.
        names: parameters to prune (all parameters are trained).

    Returns:
        {"losses": the loss of each step, before its update, "sparsity": the fraction pruned during each step, counted
        over all of `names`}, floats.
    """
    # BEGIN SOLUTION task 7: the loop
    return finetune(model, batches, MagnitudePruner(model, names, scope=scope), schedule, lr=lr, every=every)
    # END SOLUTION


# BEGIN HIDDEN
def finetune(
    model: nn.Module,
    batches: Sequence[Tensor],
    pruner: MagnitudePruner,
    schedule: Callable[[int], float],
    *,
    lr: float,
    every: int,
) -> dict[str, list[float]]:
    """`prune_finetune` with a pruner of any pattern."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    pruner.attach(optimizer)
    total = sum(mask.numel() for mask in pruner.masks.values())
    losses, sparsity = [], []
    for step, ids in enumerate(batches):
        if step % every == 0:
            pruner.set_sparsity(schedule(step))
        loss = next_token_loss(model, ids)
        optimizer.zero_grad()
        loss.backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
        losses.append(loss.item())
        kept = sum(int(mask.sum()) for mask in pruner.masks.values())
        sparsity.append(1 - kept / total if total else 0.0)
    return {"losses": losses, "sparsity": sparsity}


# END HIDDEN

# ---------------------------------------------------------------------------------------------------------------------
# Task 8: the honest ledger
# ---------------------------------------------------------------------------------------------------------------------


def realised_cost(model: nn.Module, ids: Tensor) -> dict[str, int]:
    """What a forward pass over ids (B, T) multiplies, and what the model holds, as it stands.

    Linear layers only (nn.Linear and SparseLinear, each used once a token), with their present shapes; N = B*T.

    Returns, all int:
        "dense_flops":    Σ 2·N·I·O over the linear layers.
        "executed_flops": the same, but 2·N·nnz for a SparseLinear. A zero in an nn.Linear is multiplied like any other.
        "nonzero_params": non-zero entries of all floating parameters and buffers, shared ones once.
        "stored_bytes":   bytes of all parameters and buffers in memory, shared ones once.
    """
    # BEGIN SOLUTION task 8: shapes, not masks, decide what is executed
    dense = executed = 0
    for module in model.modules():
        if isinstance(module, (nn.Linear, SparseLinear)):
            weights = module.in_features * module.out_features
            dense += 2 * ids.numel() * weights
            executed += 2 * ids.numel() * (module.nnz if isinstance(module, SparseLinear) else weights)
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return {
        "dense_flops": dense,
        "executed_flops": executed,
        "nonzero_params": sum(int(t.count_nonzero()) for t in tensors if t.is_floating_point()),
        "stored_bytes": sum(t.numel() * t.element_size() for t in tensors),
    }
    # END SOLUTION


def compare_patterns(
    model: nn.Module,
    eval_ids: Tensor,
    sparsities: Sequence[float],
    finetune_batches: Sequence[Tensor],
) -> list[dict[str, Any]]:
    """Prune copies of the model in four ways and tell what each costs. The model itself is left as it is.

    Rows, in this order: for each pattern of "layer", "global", "2:4", "neuron" one row for each sparsity, in the order
    given; "2:4" has a single row, of sparsity 0.5.
        layer, global   `MagnitudePruner` of that scope on `prunable_names(model)`
        2:4             pattern (2, 4) on the same names
        neuron          every MLP of `gated_mlps` keeps max(1, F - round(sparsity * F)) neurons

    Keys of a row: "pattern", "sparsity", "loss" (`evaluate` after pruning), "loss_finetuned" (after one more step a
    batch of finetune_batches as in `prune_finetune`, lr 2e-3, masks kept; without batches the same as loss), and the
    four of `realised_cost(pruned model, eval_ids)`.
    """
    # BEGIN SOLUTION task 8: a row for every pattern and sparsity
    rows = []
    for pattern in ("layer", "global", "2:4", "neuron"):
        for s in [0.5] if pattern == "2:4" else sparsities:
            pruned = copy.deepcopy(model)
            names = [] if pattern == "neuron" else prunable_names(pruned)
            pruner = MagnitudePruner(
                pruned,
                names,
                scope="global" if pattern == "global" else "layer",
                pattern=(2, 4) if pattern == "2:4" else None,
            )
            pruner.set_sparsity(s)
            if pattern == "neuron":
                for mlp in gated_mlps(pruned):
                    neurons = mlp.down_proj.in_features
                    prune_mlp(mlp, max(1, neurons - round(s * neurons)))
            row = {"pattern": pattern, "sparsity": s, "loss": evaluate(pruned, eval_ids)}
            row |= realised_cost(pruned, eval_ids)
            finetune(pruned, finetune_batches, pruner, lambda step, s=s: s, lr=2e-3, every=1)
            row["loss_finetuned"] = evaluate(pruned, eval_ids) if finetune_batches else row["loss"]
            rows.append(row)
    return rows
    # END SOLUTION


# ---------------------------------------------------------------------------------------------------------------------
# Given: at real scale, and a figure
# ---------------------------------------------------------------------------------------------------------------------


def prune_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Prune a Llama directory (safetensors, sharded or not) with your masks, tensor by tensor, into a new directory.

    One shard is in memory at a time. Everything else (config, tokenizer, index) is copied.
    Returns {name: fraction of zeros} of the pruned weights. Layer scope: a global ranking needs all magnitudes at once.
    """
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    wanted = re.compile(r"layers\.\d+\.\w+\.(q|k|v|o|gate|up|down)_proj\.weight$")
    zeros = {}
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
            continue
        tensors, metadata = read_tensors(str(path))
        for name in [n for n in tensors if wanted.search(n)]:
            w = tensors[name]
            mask = nm_mask(w, *pattern) if pattern else magnitude_mask(w, sparsity)
            tensors[name] = w.masked_fill(~mask, 0.0)
            zeros[name] = (tensors[name] == 0).float().mean().item()
        write_tensors(str(target / path.name), tensors, metadata)
    return zeros


def semi_structured_error(w: Tensor, x: Tensor) -> float:
    """Largest difference between the dense and the 2:4 tensor-core product of x (N, I) and w (O, I), float16 on CUDA.

    w is pruned with `nm_mask(w, 2, 4)` first. Needs an Ampere GPU or newer; RuntimeError without CUDA.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")
    w = w.masked_fill(~nm_mask(w, 2, 4), 0.0)  # on the CPU: that is all nm_mask promises
    w, x = w.half().cuda(), x.half().cuda()
    compressed = torch.sparse.to_sparse_semi_structured(w)
    return (F.linear(x, compressed) - F.linear(x, w)).abs().max().item()


def plot_curves(rows: Sequence[dict[str, Any]], folder: str | Path) -> Path:
    """sparsity_curves.json (the rows) and sparsity_curves.png (loss over sparsity, before and after fine-tuning)."""
    from matplotlib.figure import Figure

    folder = Path(folder)
    (folder / "sparsity_curves.json").write_text(json.dumps(rows, indent=1))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for pattern, color in zip(("layer", "global", "2:4", "neuron"), ("C0", "C1", "C2", "C3"), strict=True):
        mine = [row for row in rows if row["pattern"] == pattern]
        for key, style in (("loss", "o-"), ("loss_finetuned", "s--")):
            label = pattern + (", fine-tuned" if key != "loss" else "")
            axes.plot([r["sparsity"] for r in mine], [r[key] for r in mine], style, color=color, label=label)
    axes.set(xlabel="sparsity", ylabel="held-out loss, nats")
    axes.legend(fontsize="small")
    figure.savefig(folder / "sparsity_curves.png", dpi=120)
    return folder / "sparsity_curves.png"


def main() -> None:
    """Loss over sparsity for four patterns, on the model in components/tiny_lag_lm of this course."""
    here = Path(__file__).resolve()
    component = next(p / "components" / "tiny_lag_lm" for p in here.parents if (p / "components").is_dir())
    model, held_out = load_tiny_llama(component), lag2_batch(128, 32, seed=1)
    print(f"dense: loss {evaluate(model, held_out):.3f}")
    batches = [lag2_batch(16, 24, seed=100 + i) for i in range(40)]
    rows = compare_patterns(model, held_out, [0.3, 0.5, 0.7, 0.8, 0.9], batches)
    for row in rows:
        print(
            f"{row['pattern']:>7} {row['sparsity']:.1f}  loss {row['loss']:.3f} -> {row['loss_finetuned']:.3f}"
            f"  FLOPs {row['executed_flops']:>11,}  bytes {row['stored_bytes']:>8,}  non-zero {row['nonzero_params']:>7,}"
        )
    print(f"wrote {plot_curves(rows, Path.cwd())}")


if __name__ == "__main__":
    main()
