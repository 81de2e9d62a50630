"""Visible checks of 6.2 four_bit_quantization. Expected values are written out or come from torch."""

import pytest
import torch

from llmkata.checks import check, hint, probe, same, sk, task

F64 = torch.float64
#: lo = -1, hi = 2: scale 0.2, zero 5.  lo = 0 (no negative weight), hi = 3: scale 0.2, zero 0.
W = torch.tensor([[-1.0, 2.0, 0.33, -0.07], [0.5, 3.0, 1.49, 0.0]], dtype=F64)
Q = torch.tensor([[0, 15, 7, 5], [2, 15, 7, 0]], dtype=torch.uint8)


def problem(seed=0, outputs=8, inputs=32, tokens=100):
    """Weights, correlated inputs and their Hessian."""
    x = sk.tensor(seed, (tokens, inputs // 4)) @ sk.tensor(seed + 1, (inputs // 4, inputs))
    x = x + 0.3 * sk.tensor(seed + 2, (tokens, inputs))
    return sk.tensor(seed + 3, (outputs, inputs)), x, 2 * x.T @ x / tokens


# --- task 1 -----------------------------------------------------------------------------------------------------------


@task(1)
@hint("scale = (max(w, 0) - min(w, 0)) / 15, zero = round(-lo / scale); the second row has no negative weight: lo = 0.")
def test_two_rows_by_hand(submission):
    """Two rows of four weights, one group each: scales, zeros, codes and what they stand for."""
    r = submission.quantize_rtn(W, 4)
    same(r["scale"], torch.tensor([[0.2], [0.2]], dtype=F64), what="scale")
    same(r["zero"], torch.tensor([[5], [0]], dtype=torch.uint8), what="zero")
    same(r["q"], Q, what="q")
    back = torch.tensor([[-1.0, 2.0, 0.4, 0.0], [0.4, 3.0, 1.4, 0.0]], dtype=F64)
    same(submission.dequantize(r["q"], r["scale"], r["zero"], 4), back, what="dequantize")


@task(1)
@hint("View W as (O, I/g, g): every group of every row has its own scale and zero.")
def test_every_group_has_its_own_grid(submission):
    """A loud group does not spoil its neighbours: each weight is within half a step of its own group."""
    w = sk.tensor(5, (3, 16))
    w[:, 8:] *= 100
    r = submission.quantize_rtn(w, 8)
    error = (w - submission.dequantize(r["q"], r["scale"], r["zero"], 8)).abs().view(3, 2, 8)
    check(bool((error <= r["scale"][..., None] / 2 + 1e-9).all()), "An error is larger than half a step.", got=error.max())
    check(bool((r["scale"][:, 1] > 10 * r["scale"][:, 0]).all()), "The loud group has larger steps.", got=r["scale"])


# --- task 2 -----------------------------------------------------------------------------------------------------------


@task(2)
@hint("Three tokens in all: H = 2/3 (x1 x1^T + x2 x2^T + x3 x3^T).")
def test_three_tokens(submission):
    """Three tokens in two batches give H by hand, and a loss by hand."""
    H = submission.accumulate_hessian([torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]).double()])
    want = torch.tensor([[4.0, 4.0], [4.0, 10.0]], dtype=F64) / 3
    same(H, want, what="H")
    loss = submission.layer_loss(torch.tensor([[1.0, 1.0]]).double(), torch.tensor([[0.0, 2.0]]).double(), want)
    same(loss, 2.0, atol=1e-9, what="layer_loss")  # d = (1, -1): (4 - 4 - 4 + 10) / 3


# --- task 3 -----------------------------------------------------------------------------------------------------------


@task(3)
@hint("With H = identity, U is diagonal: no error moves anywhere, and every weight goes to its nearest code.")
def test_gptq_without_correlations(submission):
    """With H = identity GPTQ is round to nearest."""
    w = sk.tensor(1, (4, 32))
    got, want = submission.gptq_quantize(w, torch.eye(32, dtype=F64), 8), submission.quantize_rtn(w, 8)
    for name in ("q", "scale", "zero"):
        same(got[name], want[name], what=name)


@task(3)
@hint("Push err * U[j, j+1:] onto the columns to the right; U^T U = H^-1.")
def test_gptq_two_columns(submission):
    """Two columns by hand: the second one makes up for the error of the first."""
    # H = [[2, 1], [1, 2]], no damping, H^-1 = [[2, -1], [-1, 2]] / 3, U_00 = sqrt(2/3), U_01 = -1/sqrt(6).
    # Scale 1, zero 0, w = (0.4, 15): 0.4 -> 0, err = 0.4 / U_00, second column 15 - err U_01 = 15.2 -> 15.
    # w = (1.4, 13.4): the group's range is 0..13.4.
    H = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)
    w = torch.tensor([[4.4, 14.3, 15.0, 0.0]], dtype=F64)
    full = torch.block_diag(H, torch.eye(2, dtype=F64))
    r = submission.gptq_quantize(w, full, 4, percdamp=0.0)
    # Scale 1: 4.4 -> 4, so the second column becomes 14.3 + 0.4 / 2 = 14.5 up to rounding, and goes to 14 or 15.
    check(r["q"][0].tolist() in ([4, 14, 15, 0], [4, 15, 15, 0]), "Codes by hand.", got=r["q"])
    w[0, 1] = 14.4
    r = submission.gptq_quantize(w, full, 4, percdamp=0.0)
    same(r["q"], torch.tensor([[4, 15, 15, 0]], dtype=torch.uint8), what="q, where 14.4 + 0.2 goes to 15")
    same(r["loss"], 0.4 * 0.4 * 2 + 2 * 0.4 * -0.6 + 0.6 * 0.6 * 2, atol=1e-9, what="loss")


@task(3)
@hint("Look at test_gptq_two_columns first. Then: does every later column, also behind the block, get every error?")
def test_gptq_on_correlated_inputs(submission):
    """On correlated inputs the loss is less than half of round to nearest, whatever the block size."""
    w, _, H = problem()
    r = submission.quantize_rtn(w, 8)
    nearest = submission.layer_loss(w, submission.dequantize(r["q"], r["scale"], r["zero"], 8), H)
    for block in (8, 32):
        g = submission.gptq_quantize(w, H, 8, block_size=block)
        lost = submission.layer_loss(w, submission.dequantize(g["q"], g["scale"], g["zero"], 8), H)
        check(lost <= 0.5 * nearest, f"Loss with block_size {block}.", got=lost, want=0.5 * nearest)
        same(g["loss"], lost, atol=0.0, rtol=1e-9, what="loss reported, against that of the codes")


# --- task 4 -----------------------------------------------------------------------------------------------------------


@task(4)
@hint("k = 0: s is 1 everywhere, and the loss is that of quantize_rtn with H = X^T X / N.")
def test_awq_protects_loud_channels(submission):
    """With two loud channels the best scale is larger there, and the loss far below round to nearest."""
    w, x = sk.tensor(3, (8, 32)), sk.tensor(4, (50, 32))
    x[:, [4, 21]] *= 20
    r = submission.awq_search(w, x, 8)
    rtn = submission.quantize_rtn(w, 8)
    error = (w - submission.dequantize(rtn["q"], rtn["scale"], rtn["zero"], 8)) @ x.T
    same(r["losses"][0], float(error.pow(2).sum() / 50), atol=0.0, rtol=1e-9, what="losses[0]")
    check(len(r["losses"]) == 20 and r["ratio"] == r["losses"].index(min(r["losses"])) / 20,
          "ratio is k / n_grid of the smallest loss.", got=r["ratio"])
    check(min(r["losses"]) < 0.5 * r["losses"][0], "A scale must help here.", got=min(r["losses"]), want=r["losses"][0])
    s = r["channel_scale"]
    check(bool(s[[4, 21]].min() > 2 * s.median()), "Loud channels have the largest scales.", got=s)


# --- task 5 -----------------------------------------------------------------------------------------------------------


@probe
def fold_into_layernorm(module):
    import torch
    from torch import nn

    torch.manual_seed(0)
    prev, linears, x = nn.LayerNorm(8), [nn.Linear(8, 3), nn.Linear(8, 5)], torch.randn(4, 8)
    torch.nn.init.normal_(prev.bias)
    before = [linear(prev(x)).detach() for linear in linears]
    inside = prev(x).detach()
    module.fold_scale(prev, linears, torch.arange(1.0, 9.0))
    return before, [linear(prev(x)).detach() for linear in linears], inside, prev(x).detach()


@task(5)
@hint("prev / s, and then the linears must multiply their input columns by s. A LayerNorm puts out weight * ... + bias.")
def test_fold_into_layernorm(submission):
    """A LayerNorm with a bias and two linears: the same outputs, with smaller numbers in between."""
    before, after, inside, scaled = submission.run(fold_into_layernorm)
    same(after, before, atol=1e-5, rtol=1e-4, what="outputs of the linears")
    same(scaled, inside / torch.arange(1.0, 9.0), atol=1e-6, rtol=1e-5, what="output of the LayerNorm")


# --- task 6 -----------------------------------------------------------------------------------------------------------


@task(6)
@hint("Permute W's columns and H's rows and columns, and put what you find back to its original place.")
def test_act_order_of_equal_channels(submission):
    """Without correlations the order of columns does not matter: act_order gives round to nearest in the original order."""
    w = sk.tensor(8, (4, 16))
    H = torch.diag(torch.arange(1.0, 17.0, dtype=F64))
    got, want = submission.gptq_quantize(w, H, 8, act_order=True), submission.quantize_rtn(w, 8)
    for name in ("q", "scale", "zero"):
        same(got[name], want[name], what=name)
    r = submission.quantize_rtn(torch.tensor([[-3.0, 1.5, 0.0, 2.8]], dtype=F64), 4, symmetric=True)
    same(r["scale"], torch.tensor([[0.4]], dtype=F64), what="symmetric scale")
    same(r["zero"], torch.tensor([[8]], dtype=torch.uint8), what="symmetric zero")
    same(r["q"][0, 1:], torch.tensor([12, 8, 15], dtype=torch.uint8), what="symmetric codes")


# --- tasks 7 and 9 ----------------------------------------------------------------------------------------------------


@task(7)
@hint("The lowest nibble is q[c, 8r]: codes 1, 2, 3, ... read 0x87654321 from the highest nibble down.")
def test_words_in_hexadecimal(submission):
    """Codes 1 to 8 of one output make the word 0x87654321, a negative int32, and come back."""
    q = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 0, 0, 0, 0, 15]], dtype=torch.uint8)
    words = submission.pack_gptq(q)
    same(words, torch.tensor([[0x87654321 - 2**32, 0xF0000000 - 2**32]]).int(), what="words")
    same(submission.unpack_gptq(words), q, what="codes")


@task(7)
@hint("int4_matmul is F.linear(x, dequantize(...)), a group of inputs at a time.")
def test_product_with_packed_weights(submission):
    """int4_matmul and QuantLinear equal F.linear with the dequantised matrix."""
    r = submission.quantize_rtn(sk.tensor(2, (16, 32)), 8)
    r["scale"] = r["scale"].half().double()
    x = sk.tensor(3, (5, 32))
    want = torch.nn.functional.linear(x, submission.dequantize(r["q"], r["scale"], r["zero"], 8))
    got = submission.int4_matmul(x, submission.pack_gptq(r["q"]), r["scale"].T.contiguous(), r["zero"].T.contiguous(), 8)
    same(got, want, what="int4_matmul")
    layer = submission.QuantLinear.from_quantized(r, 8)
    same(layer(x), want, what="QuantLinear")
    same(layer.bits_per_weight(), 4 + 20 / 8, what="bits_per_weight")


@task(9)
@hint("Nibble i of a word holds output AWQ_ORDER[i] = 0, 2, 4, 6, 1, 3, 5, 7.")
def test_awq_word_in_hexadecimal(submission):
    """Codes 0 to 7 of eight outputs make the word 0x75316420."""
    q = torch.arange(8, dtype=torch.uint8)[:, None]
    words = submission.pack_awq(q)
    same(words, torch.tensor([[0x75316420]]).int(), what="words")
    same(submission.unpack_awq(words), q, what="codes")


# --- tasks 8 and 9: a tiny model --------------------------------------------------------------------------------------


@probe
def tiny_model(module, methods, table):
    """A model of two blocks, named as a Llama is: the mean absolute change of its logits for each method, relative to their
    size, and whether it is as it was. With `table`: the rows of compare, what pareto.json says, size of pareto.png."""
    import contextlib
    import json
    import tempfile
    from pathlib import Path
    from types import SimpleNamespace

    import torch
    from torch import nn

    torch.manual_seed(0)
    D, V = 16, 12

    def linears(*names):
        return nn.ModuleDict({name: nn.Linear(D, D, bias=False) for name in names})

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = linears("q", "k", "v", "o").values()

        def forward(self, x):
            scores = self.q_proj(x) @ self.k_proj(x).mT / D**0.5
            seen = torch.ones(x.shape[1], x.shape[1]).tril().bool()
            return self.o_proj(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ self.v_proj(x))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = linears("gate", "up", "down").values()

        def forward(self, x):
            return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)
            self.self_attn, self.mlp = Attention(), MLP()

        def forward(self, x):
            x = x + self.self_attn(self.input_layernorm(x))
            return x + self.mlp(self.post_attention_layernorm(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.ModuleDict({"embed_tokens": nn.Embedding(V, D)})
            self.model.layers, self.model.norm = nn.ModuleList([Block(), Block()]), nn.RMSNorm(D, eps=1e-6)
            self.lm_head = nn.Linear(D, V, bias=False)

        def forward(self, input_ids):
            x = self.model["embed_tokens"](input_ids)
            for layer in self.model.layers:
                x = layer(x)
            return SimpleNamespace(logits=self.lm_head(self.model.norm(x)))

    model, ids = Model().eval(), torch.randint(0, V, (2, 24))
    state = {name: t.clone() for name, t in model.state_dict().items()}
    if table:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            rows = module.compare(model, ids, ids, methods, [8])
            png = Path("pareto.png").read_bytes()
            size = [int.from_bytes(png[n : n + 4], "big") for n in (16, 20)] if png[1:4] == b"PNG" else [0, 0]
            return rows, json.loads(Path("pareto.json").read_text()), size
    changes = {}
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for method in methods:
            small = module.quantize_model(model, ids, method, 8)
            changes[method] = ((small(input_ids=ids).logits - before).abs().mean() / before.abs().mean()).item()
    return changes, all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


@task(8)
@hint("Quantise a copy, block after block; the model it was given stays as it was.")
def test_tiny_model(submission):
    """A tiny model survives GPTQ, alone and behind AWQ: its logits move by less than a fifth."""
    changes, kept = submission.run(tiny_model, ["gptq", "awq+gptq"], False)
    check(kept, "The model that quantize_model was given must stay as it was.")
    for method, change in changes.items():
        check(0 < change < 0.2, f"Relative change of the logits by {method}.", got=change, want=0.2)


@task(8)
@hint("The table of one method has one row; save_pareto(rows) writes both files into the current directory.")
def test_table_of_a_tiny_model(submission):
    """compare makes a row for the method, and saves it as pareto.json, with a picture."""
    rows, saved, size = submission.run(tiny_model, ["rtn"], True)
    names = {"method", "group_size", "bits_per_weight", "kl", "ppl", "ppl_fp", "layer_losses"}
    check(len(rows) == 1 and set(rows[0]) == names, "One row, with the entries that the docstring names.", got=rows)
    same(rows[0]["bits_per_weight"], 4 + 20 / 8, what="bits_per_weight")
    check(0 < rows[0]["kl"] < 0.5, "KL of a model that is nearly the same.", got=rows[0]["kl"], want=0.5)
    check(saved == rows, "pareto.json holds the rows.", got=saved)
    check(min(size) >= 200, "pareto.png is an image of at least 200 by 200 pixels.", got=size)


@probe
def export_tiny(module):
    """Names of the exported tensors, and the config's entry for quantization."""
    import json
    import tempfile
    from pathlib import Path

    import torch
    from safetensors.torch import load_file
    from torch import nn

    r = module.quantize_rtn(torch.randn(8, 32), 16)
    with tempfile.TemporaryDirectory() as folder:
        module.export_checkpoint(nn.Sequential(module.QuantLinear.from_quantized(r, 16)), folder)
        tensors = load_file(folder + "/model.safetensors")
        return tensors["0.g_idx"], sorted(tensors), json.loads(Path(folder, "config.json").read_text())


@task(9)
@hint("write_checkpoint writes both files; you hand it the tensors, g_idx among them.")
def test_an_exported_layer(submission):
    """A layer becomes four tensors and a config that says what they are."""
    groups, names, config = submission.run(export_tiny)
    same(groups, torch.arange(32).div(16, rounding_mode="floor").int(), what="g_idx")
    same(names, ["0.g_idx", "0.qweight", "0.qzeros", "0.scales"], what="names of the tensors")
    want = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "checkpoint_format": "gptq_v2"}
    same({name: config["quantization_config"][name] for name in want}, want, what="quantization_config")


@probe
def on_cuda(module, r, x):
    """A QuantLinear's output, computed on the GPU."""
    return module.QuantLinear.from_quantized(r, 16).cuda()(x.cuda()).cpu()


@task(7)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@hint("Create every tensor on the device of x or of the words.")
def test_on_a_gpu(submission):
    """A QuantLinear computes on CUDA what it computes on the CPU."""
    r = submission.quantize_rtn(sk.tensor(2, (16, 32), torch.float32), 16)
    x = sk.tensor(3, (5, 32), torch.float32)
    W_hat = submission.dequantize(r["q"], r["scale"].half().float(), r["zero"], 16)
    same(submission.run(on_cuda, r, x), x @ W_hat.T, atol=1e-3, rtol=1e-3, what="output")
