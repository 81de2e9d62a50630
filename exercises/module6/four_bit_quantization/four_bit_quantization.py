"""Exercise 6.2: 4-bit quantization, GPTQ against AWQ.

Weights of a linear layer, W (O, I), become 4-bit codes on a grid of its own for every group of g neighbouring inputs of
every output:  W_hat = (q - zero) * scale.  Both algorithms minimise the error of the layer's output over calibration
inputs x,  E |(W - W_hat) x|^2 = tr((W - W_hat) H (W - W_hat)^T) / 2  with  H = 2 E x x^T.

Shapes everywhere below: O outputs, I inputs, g = group_size, N tokens.
A *quantised matrix* is a dict with q uint8 (O, I), scale (O, I/g) in the dtype of W, zero uint8 (O, I/g), and more.
Arithmetic is done in the dtype of W, float32 or float64. Nothing here needs autograd.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The order in which AWQ checkpoints lay eight codes into the nibbles of a word, lowest nibble first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

# ---------------------------------------------------------------------------------------------------------------------
# Given: checks of arguments
# ---------------------------------------------------------------------------------------------------------------------


def check_weight(W: Tensor, group_size: int) -> None:
    """ValueError unless W is a finite matrix whose inputs divide into groups."""
    if W.ndim != 2:
        raise ValueError(f"W must be a matrix (O, I), got shape {tuple(W.shape)}")
    if group_size < 1 or W.shape[1] % group_size:
        raise ValueError(f"group_size = {group_size} does not divide I = {W.shape[1]} (I % g must be 0)")
    if not bool(torch.isfinite(W).all()):
        raise ValueError("W has non-finite values")


def check_hessian(W: Tensor, H: Tensor) -> None:
    """ValueError unless H is (I, I)."""
    if tuple(H.shape) != (W.shape[1], W.shape[1]):
        raise ValueError(f"H must be (I, I) = {(W.shape[1], W.shape[1])}, got shape {tuple(H.shape)}")


def check_eights(name: str, size: int) -> None:
    """ValueError unless eight codes fill a word along this dimension ("I" or "O")."""
    if size % 8:
        raise ValueError(f"{name} % 8 must be 0 to pack eight codes into a word, got {name} = {size}")


# ---------------------------------------------------------------------------------------------------------------------
# Task 1: the grid
# ---------------------------------------------------------------------------------------------------------------------


def quant_params(w: Tensor, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """One grid for each row of w (R, g): scale (R,) in the dtype of w, zero (R,) uint8.

    Asymmetric: lo = min(w, 0), hi = max(w, 0) of the row; scale = (hi - lo) / 15, 1 where that is 0;
    zero = round(-lo / scale), clamped to 0..15.
    Symmetric: scale = 2 max|w| / 15, 1 where that is 0; zero = 8.
    Rounding is half to even throughout (torch.round).
    """
    raise NotImplementedError("task 1: scale and zero of every row")


def quantize_rtn(W: Tensor, group_size: int, *, symmetric: bool = False) -> dict[str, Any]:
    """Round to nearest: {"q", "scale", "zero"} of W (O, I). Every group of group_size inputs has its own grid.

    q = clamp(round(w / scale) + zero, 0, 15). The rounding is of w / scale alone: zero is added afterwards.
    Errors: I % group_size != 0 -> ValueError containing "group_size"; NaN or inf in W -> "non-finite".
    """
    check_weight(W, group_size)
    raise NotImplementedError("task 1: round every weight on the grid of its group")


def dequantize(q: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """(q - zero) * scale: q (O, I) uint8, scale and zero (O, I/g) -> (O, I) in the dtype of scale.

    q and zero are unsigned: convert before you subtract.
    """
    raise NotImplementedError("task 1: back to weights")


# ---------------------------------------------------------------------------------------------------------------------
# Task 2: what is to be minimised
# ---------------------------------------------------------------------------------------------------------------------


def accumulate_hessian(batches: Iterable[Tensor]) -> Tensor:
    """H = (2/N) * sum of x x^T over all N tokens of all batches; every batch is (..., I), some may be empty.

    The result has the dtype of the batches; half precision is accumulated, and returned, in float32. Batches come one
    at a time and are not kept.
    Errors: no token at all -> ValueError containing "batches".
    """
    raise NotImplementedError("task 2: a running sum of outer products")


def layer_loss(W: Tensor, W_hat: Tensor, H: Tensor) -> float:
    """tr((W - W_hat) H (W - W_hat)^T): with H = 2/N X^T X, twice the mean squared error of the layer's output."""
    check_hessian(W, H)
    raise NotImplementedError("task 2: the quadratic form, summed over outputs")


# ---------------------------------------------------------------------------------------------------------------------
# Task 3: GPTQ; task 6 (stretch): act_order and symmetric
# ---------------------------------------------------------------------------------------------------------------------


def gptq_quantize(
    W: Tensor,
    H: Tensor,
    group_size: int,
    *,
    block_size: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    symmetric: bool = False,
) -> dict[str, Any]:
    """GPTQ: {"q", "scale", "zero", "loss"} of W (O, I) for the Hessian H (I, I) of its inputs.

    1. Dead inputs, diag(H) == 0: H_dd = 1 and W[:, d] = 0. Before everything else.
    2. Damping: percdamp * mean(diag H), of the H of step 1, is added to the diagonal.
    3. U upper triangular with U^T U = H^-1.
    4. Column by column: w_hat = the nearest grid point, err = (w - w_hat) / U_jj,
       W[:, j+1:] -= err U[j, j+1:].
    Without act_order, the grid of a group comes from its columns as they are (compensated) when its first column is
    reached. With act_order (task 6), columns are taken by descending diag(H), ties in their order (stable), and grids
    are static: from the W of step 1, groups in the original order of columns. q, scale and zero are always returned in
    the original order. Rounding as in `quantize_rtn`.
    block_size says how many columns are finished before the rest of W is updated (the last block may be shorter). It is
    about cost alone and must not change the result.
    loss: `layer_loss` of the caller's W, the dequantised result and the caller's H, none of which is modified.
    Errors: those of `quantize_rtn`; H not (I, I) -> ValueError containing "H"; block_size neither a divisor nor a
    multiple of group_size -> ValueError containing "block_size".
    """
    check_weight(W, group_size)
    check_hessian(W, H)
    if block_size < 1 or (block_size % group_size and group_size % block_size):
        raise ValueError(f"block_size = {block_size} must divide group_size = {group_size} or be a multiple of it")
    raise NotImplementedError("task 3: dead inputs, damping, inverse Cholesky factor, columns in lazy blocks (task 6: act_order)")


# ---------------------------------------------------------------------------------------------------------------------
# Task 4: AWQ
# ---------------------------------------------------------------------------------------------------------------------


def awq_search(W: Tensor, X: Tensor, group_size: int, *, n_grid: int = 20, symmetric: bool = False) -> dict[str, Any]:
    """AWQ's search for channel scales: W (O, I), calibration inputs X (..., I) of the same dtype.

    a = mean |x| over all tokens, channel by channel. For k = 0 .. n_grid-1:
        s = clamp(a^(k / n_grid), min 1e-4);  s = s / sqrt(max(s) min(s));
        candidate Q(W * s) / s, Q = quantise (`quantize_rtn`) and dequantise;
        losses[k] = `layer_loss` of the candidate with H = X^T X / N  (no factor 2).
    The first strict minimum wins. k = 0 gives s = 1, which is round to nearest.
    Returns {"q", "scale", "zero"} of W * s for the best s (the weights to use once s is folded into what comes before),
    "channel_scale" s (I,), "ratio" k / n_grid, "losses" (list of n_grid floats).
    Errors: those of `quantize_rtn`; X without tokens or not (..., I) -> ValueError containing "X".
    """
    check_weight(W, group_size)
    if X.shape[-1] != W.shape[1] or X.numel() == 0:
        raise ValueError(f"X must be (..., I) with I = {W.shape[1]} and at least one token, got {tuple(X.shape)}")
    raise NotImplementedError("task 4: a grid of scales, each judged through the Gram matrix")


# ---------------------------------------------------------------------------------------------------------------------
# Task 5: folding a scale into the operation before
# ---------------------------------------------------------------------------------------------------------------------


def fold_scale(prev: nn.Module, linears: list[nn.Linear], s: Tensor) -> None:
    """Multiply the input columns of every linear by s (I,), and divide what `prev` puts out by s. In place.

    The function of prev followed by the linears stays the same. prev: a norm with weight (I,), with or without a bias,
    or a linear with I outputs, with or without a bias. Its parameters, and those of the linears, stay the same objects.
    Errors: prev does not have I outputs -> ValueError containing "prev"; an s that is not positive -> "s must".
    """
    if prev.weight.shape[0] != len(s):
        raise ValueError(f"prev has {prev.weight.shape[0]} outputs, the scale {len(s)} channels")
    if not bool((s > 0).all()):
        raise ValueError("s must be positive")
    raise NotImplementedError("task 5: divide the outputs of prev, multiply the inputs of the linears")


# ---------------------------------------------------------------------------------------------------------------------
# Task 7 (stretch): real nibbles
# ---------------------------------------------------------------------------------------------------------------------


def pack_gptq(q: Tensor) -> Tensor:
    """uint8 (O, I) -> int32 (I/8, O): bits 4j .. 4j+3 of word (r, c) are q[c, 8r + j], j = 0 .. 7.

    Errors: I % 8 != 0 -> ValueError containing "I % 8".
    """
    check_eights("I", q.shape[1])
    raise NotImplementedError("task 7: eight inputs into one word")


def unpack_gptq(words: Tensor) -> Tensor:
    """The inverse of `pack_gptq`: int32 (I/8, O) -> uint8 (O, I)."""
    raise NotImplementedError("task 7: eight inputs out of one word")


def int4_matmul(x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """x (N, I) @ W_hat^T -> (N, O) in the dtype of x, from packed weights, never holding all of W_hat.

    qweight int32 (I/8, O) as `pack_gptq` makes it; scales (I/g, O) floating, zeros (I/g, O) of any integer dtype.
    Weights are dequantised in the dtype of x, float32 for half precision; sums are float32 or wider.
    Errors: group_size not a multiple of 8 -> ValueError containing "group_size".
    """
    if group_size % 8:
        raise ValueError(f"group_size = {group_size} must be a multiple of 8: words must not straddle groups")
    raise NotImplementedError("task 7: dequantise a group, multiply, add up")


class QuantLinear(nn.Module):
    """A linear layer whose weights are 4-bit codes.

    Buffers: qweight int32 (I/8, O) as `pack_gptq` makes it; scales float16 (I/g, O); qzeros int32 (I/g, O/8), whose word
    (r, c) holds zero[8c + j, r] in bits 4j .. 4j+3 (in order, and zero itself, not zero - 1); bias (O,) or None.
    """

    def __init__(self, in_features: int, out_features: int, group_size: int) -> None:
        super().__init__()
        check_eights("I", in_features)
        check_eights("O", out_features)
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        groups = in_features // group_size
        self.register_buffer("qweight", torch.zeros((in_features // 8, out_features), dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros((groups, out_features // 8), dtype=torch.int32))
        self.register_buffer("scales", torch.zeros((groups, out_features), dtype=torch.float16))
        self.register_buffer("bias", None)

    @classmethod
    def from_quantized(cls, r: dict[str, Any], group_size: int, bias: Tensor | None = None) -> QuantLinear:
        """Pack a quantised matrix: r["q"] (O, I), r["scale"] and r["zero"] (O, I/g). Other entries are ignored: fold a
        channel scale before you quantise.

        Errors: I % 8 or O % 8 != 0 -> ValueError naming it; a scale beyond float16 -> ValueError containing "float16".
        """
        outputs, inputs = r["q"].shape
        layer = cls(inputs, outputs, group_size)
        if bool(r["scale"].abs().max() > torch.finfo(torch.float16).max):
            raise ValueError("a scale is too large for float16")
        raise NotImplementedError("task 7: fill the buffers")

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O) in the dtype of x."""
        raise NotImplementedError("task 7: unpack the zeros, multiply, add the bias")

    def bits_per_weight(self) -> float:
        """8 * bytes of all buffers except the bias / (O * I)."""
        raise NotImplementedError("task 7: count what is stored")


# ---------------------------------------------------------------------------------------------------------------------
# Task 8 (stretch): a whole model
# ---------------------------------------------------------------------------------------------------------------------

METHODS = ("rtn", "gptq", "awq", "awq+gptq")


def llama_groups(model: nn.Module) -> list[list[tuple[nn.Module, list[nn.Linear]]]]:
    """Given: for each block of a Llama-family model its four groups (prev, linears), in the order of execution.

    Linears of a group have one input, and prev is what it is scaled by: input_layernorm -> q, k, v; v -> o;
    post_attention_layernorm -> gate, up; up -> down. Embeddings and lm_head belong to no group.
    """
    blocks = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        blocks.append(
            [
                (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
                (attention.v_proj, [attention.o_proj]),
                (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
                (mlp.up_proj, [mlp.down_proj]),
            ]
        )
    return blocks


@torch.no_grad()
def capture_inputs(model: nn.Module, linear: nn.Module, ids: Tensor) -> Tensor:
    """Given: what `linear`, a module of `model`, receives when the model reads ids (B, T) -> (B * T, I)."""
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        model(input_ids=ids)
    finally:
        hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def module_name(model: nn.Module, module: nn.Module) -> str:
    """Given: the path of a module in the model, "model.layers.0.self_attn.q_proj"."""
    return next(name for name, m in model.named_modules() if m is module)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Given: put `new` where `old` is."""
    parent, _, child = module_name(model, old).rpartition(".")
    setattr(model.get_submodule(parent), child, new)


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Given: ids (B, T) -> logits (B, T, V)."""
    return model(input_ids=ids).logits


@torch.no_grad()
def quantize_model(model: nn.Module, calib_ids: Tensor, method: str, group_size: int, **kw: Any) -> nn.Module:
    """A copy of a Llama-family model whose blocks' linears are `QuantLinear`s. calib_ids (B, T). `model` is untouched.

    method: "rtn", "gptq", "awq" or "awq+gptq". kw: block_size, percdamp, act_order, symmetric, n_grid (others ->
    TypeError); each method takes what it understands and ignores the rest.
    Blocks are walked in order. Within a block:
      1. With "awq..." for each group in order: `awq_search` on the group's stacked weights and the inputs it receives
         now (blocks before are quantised, this one is not), then `fold_scale`. A group whose prev does not have I
         outputs (o_proj behind grouped-query attention) is skipped.
      2. For each group in order: capture the inputs that it receives now (everything before it is quantised, its
         `QuantLinear`s in place), quantise the stacked weights with GPTQ or RTN, put `QuantLinear`s in place.
         H = `accumulate_hessian` of those inputs.
    The result has an attribute `layer_losses`: a dict {path of the linear: `layer_loss` with the inputs' H = 2/N sum
    x x^T and the weights (folded, where they were) before and after}.
    Errors: an unknown method -> ValueError containing "method".
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, known are {', '.join(METHODS)}")
    unknown = set(kw) - {"block_size", "percdamp", "act_order", "symmetric", "n_grid"}
    if unknown:
        raise TypeError(f"quantize_model got unexpected arguments {sorted(unknown)}")
    raise NotImplementedError("task 8: walk the blocks: search and fold, then quantise what really arrives")


def compare(
    model: nn.Module,
    calib_ids: Tensor,
    eval_ids: Tensor,
    methods: Sequence[str],
    group_sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """The table: a row for each method and group size, methods outermost; also saved by `save_pareto` in the current
    directory.

    A row is {"method", "group_size", "bits_per_weight", "kl", "ppl", "ppl_fp", "layer_losses"}.
    bits_per_weight: 8 * bytes of all QuantLinears' buffers except biases / number of their weights.
    kl: mean over all B * T positions of KL(p_fp || p_q) in nats. ppl: exp of the mean negative log-likelihood of
    eval_ids[:, 1:] given what stands before; ppl_fp: that of `model` itself.
    """
    raise NotImplementedError("task 8: quantise with every method, measure on eval_ids")


def save_pareto(rows: list[dict[str, Any]], directory: str | Path = ".") -> None:
    """Given: pareto.json, the rows, and pareto.png, KL against bits per weight, a line for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    Path(directory, "pareto.json").write_text(json.dumps(rows, indent=1))
    figure = Figure(figsize=(5, 4), dpi=100)
    axes = figure.add_subplot()
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row["bits_per_weight"], row["kl"]) for row in rows if row["method"] == method)
        axes.plot(*zip(*points), marker="o", label=method)
    axes.set(xlabel="bits per weight", ylabel="KL to the original (nats)", yscale="log")
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(Path(directory, "pareto.png")))


# ---------------------------------------------------------------------------------------------------------------------
# Task 9 (stretch): the other layout, and checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def pack_awq(q: Tensor) -> Tensor:
    """uint8 (O, I) -> int32 (I, O/8): bits 4i .. 4i+3 of word (r, c) are q[8c + AWQ_ORDER[i], r], i = 0 .. 7.

    Errors: O % 8 != 0 -> ValueError containing "O % 8".
    """
    check_eights("O", q.shape[0])
    raise NotImplementedError("task 9: eight outputs into one word, interleaved")


def unpack_awq(words: Tensor) -> Tensor:
    """The inverse of `pack_awq`: int32 (I, O/8) -> uint8 (O, I)."""
    raise NotImplementedError("task 9: eight outputs out of one word")


def export_checkpoint(model: nn.Module, path: str | Path, *, fmt: str = "gptq_v2") -> None:
    """Write a quantised model as a checkpoint directory that GPTQ loaders read: `write_checkpoint` does the writing.

    For each QuantLinear "name": name.qweight, name.scales and name.bias as they are, name.g_idx int32 (I,), the group of
    every input, and name.qzeros. fmt "gptq_v2" stores zero in the nibbles of qzeros; "gptq" (version 1) stores
    (zero - 1) mod 16. All other parameters under their own names.
    Errors: another fmt -> ValueError containing "fmt".
    """
    if fmt not in ("gptq", "gptq_v2"):
        raise ValueError(f"fmt must be 'gptq' or 'gptq_v2', got {fmt!r}")
    raise NotImplementedError("task 9: g_idx, and zeros as the format wants them")


def write_checkpoint(model: nn.Module, path: str | Path, tensors: dict[str, Tensor], fmt: str) -> None:
    """Given: model.safetensors, and config.json with its "quantization_config", into the directory `path`."""
    from safetensors.torch import save_file

    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    config = {} if getattr(model, "config", None) is None else model.config.to_dict()
    tied = config.get("tie_word_embeddings", False)
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": layers[0].group_size,
        "desc_act": False,  # codes are stored in the original order, whatever order they were found in
        "sym": all(bool((layer.qzeros == -2004318072).all()) for layer in layers),  # 0x88888888: every zero is 8
        "checkpoint_format": fmt,
    }
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    kept = {name: t for name, t in tensors.items() if not (tied and name == "lm_head.weight")}
    save_file(
        {name: t.detach().cpu().contiguous().clone() for name, t in kept.items()},
        str(path / "model.safetensors"),
        metadata={"format": "pt"},
    )
    (path / "config.json").write_text(json.dumps(config, indent=2, default=str))


def quantize_directory(
    source: str | Path,
    text: str,
    target: str | Path,
    *,
    method: str = "gptq",
    group_size: int = 128,
    fmt: str = "gptq_v2",
    length: int = 512,
) -> None:
    """Given: a Llama-family model directory in the hub's layout -> a checkpoint in `target`, tokenizer included.

    Calibrated on the first 32 pieces of `length` tokens of the text (fewer, or one shorter piece, where it has no more),
    in float32, on CUDA where there is one.
    Errors: a text without tokens -> ValueError containing "text".
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    if not len(ids):
        raise ValueError("the text holds no token")
    length = min(length, len(ids))
    ids = ids[: min(len(ids) // length, 32) * length].view(-1, length).to(device)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(device).eval()
    export_checkpoint(quantize_model(model, ids, method, group_size), target, fmt=fmt)
    tokenizer.save_pretrained(target)


def main() -> None:
    """Given: python four_bit_quantization.py MODEL_DIR TEXT_FILE OUT_DIR [--method M] [--group-size G] [--format F]"""
    import argparse

    parser = argparse.ArgumentParser(description="Quantize a Llama-family model directory to 4 bits.")
    parser.add_argument("model", help="directory with config.json, safetensors and tokenizer")
    parser.add_argument("text", type=Path, help="file to calibrate on")
    parser.add_argument("target", help="directory to write")
    parser.add_argument("--method", choices=METHODS, default="gptq")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--format", choices=("gptq", "gptq_v2"), default="gptq_v2")
    args = parser.parse_args()
    options = {"method": args.method, "group_size": args.group_size, "fmt": args.format}
    quantize_directory(args.model, args.text.read_text(encoding="utf-8"), args.target, **options)


if __name__ == "__main__":
    main()
