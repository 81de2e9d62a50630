"""Another correct solution: what is kept is chosen from the top, bits are arithmetic, loops where they read well."""

from __future__ import annotations

import copy
import json
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
# Helpers
# ---------------------------------------------------------------------------------------------------------------------


def _top(scores: Tensor, count: int) -> Tensor:
    """Boolean mask of the `count` largest of a flat tensor; of equal ones those of highest index."""
    backwards = scores.flip(0).sort(descending=True, stable=True).indices[:count]
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    chosen[len(scores) - 1 - backwards] = True
    return chosen


def _join(digits: Tensor, base: int) -> Tensor:
    """Digits of base 2 or 4, the most significant first, as many to a byte as go in -> uint8."""
    per_byte = {2: 8, 4: 4}[base]
    padded = torch.zeros(-(-len(digits) // per_byte) * per_byte, dtype=torch.int64)
    padded[: len(digits)] = digits
    number = torch.zeros(len(padded) // per_byte, dtype=torch.int64)
    for column in padded.view(-1, per_byte).unbind(1):
        number = number * base + column
    return number.to(torch.uint8)


def _part(packed: Tensor, base: int) -> Tensor:
    """The digits of `_join`, int64."""
    digits, rest = [], packed.long()
    for _ in range({2: 8, 4: 4}[base]):
        digits.append(rest % base)
        rest = rest // base
    return torch.stack(digits[::-1], dim=1).flatten()


def _one_step(model: nn.Module, ids: Tensor, optimizer: torch.optim.Optimizer, pruner: MagnitudePruner) -> float:
    """A masked step of training -> the loss before it."""
    optimizer.zero_grad()
    loss = next_token_loss(model, ids)
    loss.backward()
    pruner.after_backward()
    optimizer.step()
    pruner.after_step()
    return loss.item()


# ---------------------------------------------------------------------------------------------------------------------
# Task 1: masks by magnitude
# ---------------------------------------------------------------------------------------------------------------------


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
    return _top(w.detach().abs().flatten(), w.numel() - round(sparsity * w.numel())).unflatten(0, w.shape)


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
    if not weights:
        return {}
    joined = torch.cat([w.detach().flatten() for w in weights.values()]).abs_()
    chosen = _top(joined, len(joined) - round(sparsity * len(joined)))
    masks, start = {}, 0
    for name, w in weights.items():
        masks[name] = chosen[start : start + w.numel()].view(w.shape)
        start += w.numel()
    return masks


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
    left = w.detach().abs().unflatten(1, (-1, m)).flip(-1).clone()
    mask = torch.zeros_like(left, dtype=torch.bool)
    # n times the largest that is left; flipped, the first maximum is the one of highest index.
    for _ in range(n):
        best = left.max(dim=-1, keepdim=True).indices if left.numel() else None
        first = (left == left.gather(-1, best)).to(torch.uint8).argmax(dim=-1, keepdim=True)
        mask.scatter_(-1, first, True)
        left.scatter_(-1, first, -1.0)
    return mask.flip(-1).flatten(1)


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
    if step < begin:
        return initial
    s = initial
    for t in range(begin, end, every):
        if t > step:
            break
        s = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** 3
    return s if step < end else final


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
        sizes = {name: p.detach().abs() for name, p in self.parameters.items()}
        for name, size in sizes.items():
            size[~self.masks[name]] = -1.0
        if self.pattern:
            n, m = self.pattern
            fresh = {}
            for name, size in sizes.items():
                if s == 0:
                    fresh[name] = self.masks[name]
                    continue
                rows = size.reshape(-1, m)
                fresh[name] = torch.stack([_top(row, n) for row in rows]).reshape(size.shape)
        elif self.scope == "global":
            everything = torch.cat([size.flatten() for size in sizes.values()]) if sizes else torch.zeros(0)
            kept = _top(everything, len(everything) - round(s * len(everything)))
            pieces = torch.split(kept, [size.numel() for size in sizes.values()])
            fresh = {name: piece.view_as(size) for piece, (name, size) in zip(pieces, sizes.items(), strict=True)}
        else:
            fresh = {}
            for name, size in sizes.items():
                fresh[name] = _top(size.flatten(), size.numel() - round(s * size.numel())).view_as(size)
        for name, p in self.parameters.items():
            self.masks[name] = torch.logical_and(self.masks[name], fresh[name])
            p.data[torch.logical_not(self.masks[name])] = 0.0

    def after_backward(self) -> None:
        """Zero the gradients of pruned weights (parameters without a gradient are left alone)."""
        for name, p in self.parameters.items():
            if p.grad is not None:
                p.grad = torch.where(self.masks[name], p.grad, 0.0)

    def after_step(self) -> None:
        """Zero the pruned weights, and with an optimiser attached every tensor of its state that has their shape.

        That is `exp_avg` and `exp_avg_sq` of Adam, `momentum_buffer` of SGD, and what other optimisers keep for each
        weight. State that does not exist yet is left alone.
        """
        for name, p in self.parameters.items():
            pruned = ~self.masks[name]
            p.data[pruned] = 0.0
            if self.optimizer is None or p not in self.optimizer.state:
                continue
            state = self.optimizer.state[p]
            for key in list(state):
                if isinstance(state[key], Tensor) and state[key].shape == p.shape:
                    state[key] = state[key].masked_fill(pruned, 0.0)


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
    half = gate.dtype in (torch.float16, torch.bfloat16)
    g, u, d = (w.detach().float() if half else w.detach() for w in (gate, up, down))
    return torch.einsum("fi,fi->f", g, g) + torch.einsum("fi,fi->f", u, u) + torch.einsum("of,of->f", d, d)


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
    scores = neuron_scores(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    kept = torch.where(_top(scores, keep))[0]
    with torch.no_grad():
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            old = getattr(mlp, name)
            inputs, outputs = (old.in_features, keep) if dim == 0 else (keep, old.out_features)
            new = nn.Linear(
                inputs, outputs, bias=old.bias is not None, dtype=old.weight.dtype, device=old.weight.device
            )
            new.weight.copy_(old.weight[kept] if dim == 0 else old.weight[:, kept])
            if old.bias is not None:
                new.bias.copy_(old.bias[kept] if dim == 0 else old.bias)
                new.bias.requires_grad_(old.bias.requires_grad)
            new.weight.requires_grad_(old.weight.requires_grad)
            new.train(old.training)
            setattr(mlp, name, new)
    if hasattr(mlp, "intermediate_size"):
        mlp.intermediate_size = keep
    return kept


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
    w = w.detach().contiguous()
    outputs, inputs = w.shape
    if fmt == "dense":
        return {"values": w}
    flat = w.view(-1)
    if fmt == "nm:2:4":
        positions = []
        for group in (flat != 0).view(-1, 4).tolist():
            filled = [i for i in range(4) if group[i]]
            if len(filled) > 2:
                raise ValueError("a group with more than two non-zeros does not fit nm:2:4")
            positions.append(sorted(filled + [i for i in range(4) if not group[i]][: 2 - len(filled)]))
        slots = torch.tensor(positions)
        values = flat[slots + 4 * torch.arange(len(slots))[:, None]]
        return {"values": values.view(outputs, inputs // 2), "positions": _join(slots.flatten(), 4)}
    places = torch.where(flat != 0)[0]
    values = flat.index_select(0, places)
    if fmt == "bitmask":
        return {"mask": _join((flat != 0).long(), 2), "values": values}
    ends = torch.searchsorted(places, torch.arange(outputs + 1) * inputs)
    return {"crow": ends.to(torch.int32), "col": (places % inputs).to(torch.int32), "values": values}


def decode_sparse(enc: dict[str, Tensor], fmt: str, shape: tuple[int, int]) -> Tensor:
    """The matrix (O, I) that `encode_sparse` was given, in its dtype. Raises ValueError as `encode_sparse` does."""
    check_format(shape, fmt)
    values = enc["values"]
    if fmt == "dense":
        return values
    outputs, inputs = shape
    flat = values.new_zeros(outputs * inputs)
    if fmt == "bitmask":
        flat.masked_scatter_(_part(enc["mask"], 2)[: len(flat)] == 1, values)
    elif fmt == "csr":
        for o in range(outputs):
            first, last = int(enc["crow"][o]), int(enc["crow"][o + 1])
            flat[o * inputs + enc["col"][first:last].long()] = values[first:last]
    else:
        slots = _part(enc["positions"], 4)[: values.numel()]
        flat[torch.arange(values.numel()).div(2, rounding_mode="floor") * 4 + slots] = values.flatten()
    return flat.view(outputs, inputs)


def storage_bytes(shape: tuple[int, int], nnz: int, fmt: str, itemsize: int) -> int:
    """Bytes of the tensors of `encode_sparse` for a matrix of this shape with nnz non-zeros of `itemsize` bytes.

    Raises ValueError for an unknown format, and for "nm:2:4" where I % 4.
    """
    check_format(shape, fmt)
    outputs, inputs = shape
    match fmt:
        case "dense":
            return itemsize * outputs * inputs
        case "bitmask":
            return itemsize * nnz + -(-outputs * inputs // 8)
        case "csr":
            return (itemsize + 4) * nnz + 4 * outputs + 4
        case _:
            return itemsize * outputs * (inputs // 2) + -(-outputs * (inputs // 2) // 4)


def best_format(w: Tensor) -> str:
    """The format of fewest bytes that holds w (O, I) without loss; of equals the first in FORMATS."""
    filled = w != 0
    nnz, best, fewest = int(filled.sum()), "dense", w.numel() * w.element_size()
    for fmt in FORMATS[1:]:
        if fmt == "nm:2:4" and (w.shape[1] % 4 or (filled.unflatten(1, (-1, 4)).sum(-1) > 2).any()):
            continue
        size = storage_bytes((w.shape[0], w.shape[1]), nnz, fmt, w.element_size())
        if size < fewest:
            best, fewest = fmt, size
    return best


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
    header: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, t in state.items():
        floats = t.dim() == 2 and t.dtype.is_floating_point
        fmt = best_format(t) if floats else "dense"
        header[name] = {"format": fmt, "shape": tuple(t.shape)}
        for part, piece in (encode_sparse(t, fmt) if floats else {"values": t}).items():
            tensors[part + "@" + name] = piece
    write_tensors(path, tensors, {"tensors": json.dumps(header)})
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
    return {"bytes": size, "formats": {name: about["format"] for name, about in header.items()}}


def load_sparse(path: str) -> dict[str, Tensor]:
    """The state dict that `save_sparse` was given: names in their order, shapes, dtypes, values."""
    tensors, metadata = read_tensors(path)
    state = {}
    for name, about in json.loads(metadata["tensors"]).items():
        enc = {key.split("@")[0]: t for key, t in tensors.items() if key.partition("@")[2] == name}
        if about["format"] == "dense":
            state[name] = enc["values"]
        else:
            state[name] = decode_sparse(enc, about["format"], tuple(about["shape"]))
    return state


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
        enc = encode_sparse(w, "csr")
        copied = None if bias is None else bias.detach().clone()
        return cls(enc["crow"], enc["col"], enc["values"], int(w.shape[1]), copied)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in the dtype of x. Half precision is multiplied in float32 and rounded once."""
        half = x.dtype in (torch.float16, torch.bfloat16)
        work = torch.float32 if half else x.dtype
        tokens = x.reshape(-1, self.in_features).to(work)
        w = torch.sparse_csr_tensor(self.crow, self.col, self.values.to(work), (self.out_features, self.in_features))
        y = torch.sparse.mm(w, tokens.t()).t()
        if self.bias is not None:
            y = y.add(self.bias.to(work))
        return y.to(x.dtype).unflatten(0, x.shape[:-1]) if x.dim() > 1 else y[0].to(x.dtype)


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
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    pruner = MagnitudePruner(model, names, scope=scope)
    pruner.attach(optimizer)
    losses, sparsity = [], []
    for step in range(len(batches)):
        if not step % every:
            pruner.set_sparsity(schedule(step))
        losses.append(_one_step(model, batches[step], optimizer, pruner))
        flat = torch.cat([m.flatten() for m in pruner.masks.values()]) if names else torch.ones(1)
        sparsity.append(1.0 - flat.double().mean().item())
    return {"losses": losses, "sparsity": sparsity}


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
    tokens = ids.shape[0] * ids.shape[1]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    sparse = [m for m in model.modules() if isinstance(m, SparseLinear)]
    in_linears = sum(m.weight.shape[0] * m.weight.shape[1] for m in linears)
    own = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()] if t.numel()}
    nonzero = 0
    for t in own.values():
        if t.dtype.is_floating_point:
            nonzero += int(torch.count_nonzero(t))
    return {
        "dense_flops": 2 * tokens * (in_linears + sum(m.in_features * m.out_features for m in sparse)),
        "executed_flops": 2 * tokens * (in_linears + sum(m.nnz for m in sparse)),
        "nonzero_params": nonzero,
        "stored_bytes": sum(t.numel() * t.element_size() for t in own.values()),
    }


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
    rows = []
    jobs = {
        "layer": ({"scope": "layer"}, sparsities),
        "global": ({"scope": "global"}, sparsities),
        "2:4": ({"pattern": (2, 4)}, [0.5]),
        "neuron": ({}, sparsities),
    }
    for pattern, (options, levels) in jobs.items():
        for s in levels:
            candidate = copy.deepcopy(model)
            if pattern == "neuron":
                for mlp in gated_mlps(candidate):
                    width = mlp.up_proj.out_features
                    prune_mlp(mlp, max(1, width - round(s * width)))
            pruner = MagnitudePruner(candidate, [] if pattern == "neuron" else prunable_names(candidate), **options)
            pruner.set_sparsity(s if pattern != "neuron" else 0.0)
            loss = evaluate(candidate, eval_ids)
            costs = realised_cost(candidate, eval_ids)
            optimizer = torch.optim.AdamW(candidate.parameters(), lr=2e-3)
            pruner.attach(optimizer)
            for ids in finetune_batches:
                _one_step(candidate, ids, optimizer, pruner)
            after = evaluate(candidate, eval_ids) if len(finetune_batches) else loss
            rows.append({"pattern": pattern, "sparsity": s, "loss": loss, "loss_finetuned": after} | costs)
    return rows


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
