"""Honest work: a replay on fresh inputs gives what the work gives there, and the counts of theory."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkata.bench.replay import ReplayError, run
from llmkata.inside.recorder import Recorder

B, H, T, D = 2, 3, 24, 8


def qkv(tq: int = T, tk: int = T, heads: int = H, kv_heads: int = H, d: int = D) -> tuple[Tensor, Tensor, Tensor]:
    return (torch.randn(B, heads, tq, d, requires_grad=True), torch.randn(B, kv_heads, tk, d, requires_grad=True),
            torch.randn(B, kv_heads, tk, d, requires_grad=True))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


def test_materialised_attention_forward_and_backward(replayed, right) -> None:
    def work(q, k, v):
        out = causal_attention(q, k, v)
        return out, torch.autograd.grad(out.square().sum(), (q, k, v))

    result = replayed(work, *qkv())
    assert right(result)
    assert result.total.flops == 3 * 2 * B * H * T * T * (D + D)
    assert result.total.matmul_calls == 6


class Streaming(torch.autograd.Function):
    """Attention over key blocks with an online softmax; the backward pass recomputes the weights."""

    @staticmethod
    def forward(ctx, q, k, v, block):
        scale = q.shape[-1] ** -0.5
        out = torch.zeros_like(q)
        total = torch.zeros(q.shape[:-1] + (1,))
        top = torch.full_like(total, -math.inf)
        for start in range(0, k.shape[-2], block):
            scores = q @ k[..., start:start + block, :].mT * scale
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, decay = torch.exp(scores - new_top), torch.exp(top - new_top)
            total.mul_(decay).add_(weights.sum(-1, keepdim=True))
            out.mul_(decay).add_(weights @ v[..., start:start + block, :])
            top = new_top
        out /= total
        lse = top + total.log()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.block = block
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        delta = (grad * out).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
        for start in range(0, k.shape[-2], ctx.block):
            part = slice(start, start + ctx.block)
            weights = torch.exp(q @ k[..., part, :].mT * scale - lse)
            dv[..., part, :] = weights.mT @ grad
            dscores = weights * (grad @ v[..., part, :].mT - delta) * scale
            dq += dscores @ k[..., part, :]
            dk[..., part, :] = dscores.mT @ q
        return dq, dk, dv, None


def streaming(q, k, v):
    out = Streaming.apply(q, k, v, 7)
    return out, torch.autograd.grad(out.square().sum(), (q, k, v))


def test_streaming_attention_forward_and_backward(replayed, right) -> None:
    def truth(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v)
        return out, torch.autograd.grad(out.square().sum(), (q, k, v))

    result = replayed(streaming, *qkv(), truth=truth)
    assert right(result)
    assert result.total.flops == 2 * B * H * T * T * (2 * D) + 2 * B * H * T * T * (5 * D)
    # Neither pass holds an object of T x T elements; materialising does.
    tq, tk = 8, 512
    small = replayed(streaming, *qkv(tq, tk), truth=truth)
    whole = replayed(lambda q, k, v: causal_attention(q, k, v), *qkv(tq, tk))
    scores = B * H * tq * tk * 4
    assert right(small) and whole.total.peak_bytes >= 2 * scores
    assert small.total.peak_bytes < scores + 3 * B * H * (tq + 2 * tk) * D * 4


def test_spots_name_the_lines_that_multiply(replayed) -> None:
    lines = {Streaming.forward.__code__.co_firstlineno: 0, Streaming.backward.__code__.co_firstlineno: 0}
    for spot in replayed(streaming, *qkv()).total.spots:
        if spot["matmul_calls"]:
            lines[max(first for first in lines if first <= spot["line"])] += spot["matmul_calls"]
    blocks = math.ceil(T / 7)
    assert list(lines.values()) == [2 * blocks, 5 * blocks]


class Cache:
    """Keys and values of all positions so far, in memory allocated once."""

    def __init__(self, length: int) -> None:
        self.keys, self.values, self.used = torch.zeros(B, length, D), torch.zeros(B, length, D), 0

    def step(self, x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
        new = self.used + x.shape[1]
        self.keys[:, self.used:new] = x @ wk
        self.values[:, self.used:new] = x @ wv
        self.used = new
        return F.softmax(x @ wq @ self.keys[:, :new].mT, -1) @ self.values[:, :new]


def test_decode_with_a_preallocated_cache_in_segments() -> None:
    weights = [torch.randn(D, D) for _ in range(3)]
    prompt, token = torch.randn(B, 16, D), torch.randn(B, 1, D)
    cache, recorder = None, Recorder(__file__)
    given = dict(zip(("wq", "wk", "wv", "prompt"), (*weights, prompt), strict=True))
    for name, tensor in given.items():
        recorder.input(tensor, name)
    recorder.begin("prefill")
    with recorder:
        cache = Cache(T)
        cache.step(prompt, *weights)
    recorder.end("prefill")
    recorder.input(token, "token")
    recorder.begin("decode")
    with recorder:
        out = cache.step(token, *weights)
    recorder.output(out)
    recorder.end("decode")
    program = recorder.finish()

    new = {name: torch.randn_like(t) for name, t in (given | {"token": token}).items()}
    result = run(program, new)
    cache = Cache(T)
    fresh_weights = [new[name] for name in ("wq", "wk", "wv")]
    cache.step(new["prompt"], *fresh_weights)
    torch.testing.assert_close(result["outputs"][0], cache.step(new["token"], *fresh_weights), rtol=0, atol=0)
    decode = result["segments"]["decode"]
    assert decode["flops"] == 3 * 2 * B * D * D + 2 * 2 * B * 17 * D
    assert decode["bytes_moved"] == 2 * B * D * 4  # one key and one value per sequence
    assert decode["peak_bytes"] > decode["entry_bytes"] >= 2 * B * T * D * 4
    assert sum(spot["peak_bytes"] for spot in decode["spots"]) == decode["peak_bytes"]  # the cache's lines included
    assert result["total"]["flops"] == decode["flops"] + result["segments"]["prefill"]["flops"]
    assert result["timeline"] == [
        "in wq", "in wk", "in wv", "in prompt", "begin prefill", "end prefill", "in token", "begin decode", "out",
        "end decode"]


def test_a_module_with_load_state_dict(record) -> None:
    def work(w1, b1, w2, b2, x):
        model = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))
        model.load_state_dict({"0.weight": w1, "0.bias": b1, "2.weight": w2, "2.bias": b2})
        with torch.no_grad():
            return model(x)

    def values():
        return [torch.randn(s) for s in ((4 * D, D), (4 * D,), (D, 4 * D), (D,), (B, T, D))]

    program = record(work, *values())
    new = values()
    result = run(program, {str(n): t for n, t in enumerate(new)})
    torch.testing.assert_close(result["outputs"][0], work(*new), rtol=0, atol=0)
    assert result["total"]["flops"] == 2 * 2 * B * T * D * 4 * D


def test_training_steps_of_a_module(replayed, right) -> None:
    def work(x, w):
        layer = nn.Linear(D, D, bias=False)
        layer.load_state_dict({"weight": w})
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
        return layer.weight.detach()

    result = replayed(work, torch.randn(T, D), torch.randn(D, D))
    assert right(result)
    assert result.total.flops == 3 * 2 * 2 * T * D * D


def test_second_derivatives_and_checkpointing(replayed, right) -> None:
    def double(x, w):
        (first,) = torch.autograd.grad((x @ w).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), w)

    def checkpointed(x, w):
        hidden = torch.utils.checkpoint.checkpoint(lambda x: (x @ w).tanh(), x, use_reentrant=False)
        return torch.autograd.grad(hidden.sum(), w)

    x, w = torch.randn(T, D, requires_grad=True), torch.randn(D, D, requires_grad=True)
    assert right(replayed(double, x, w))
    result = replayed(checkpointed, x, w)
    assert right(result) and result.total.flops == 3 * 2 * T * D * D  # forward, forward again, one gradient


def test_composites_under_inference_mode(replayed, right) -> None:
    def work(x, w):
        with torch.inference_mode():
            return F.linear(x, w), torch.einsum("btd,bsd->bts", x, x), x @ w

    result = replayed(work, torch.randn(B, T, D), torch.randn(D, D))
    assert right(result)
    assert result.total.flops == 2 * 2 * B * T * D * D + 2 * B * T * T * D


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_fused_attention(replayed, right, causal, kv_heads) -> None:
    def forward(q, k, v):
        with torch.inference_mode():
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=kv_heads != 4)

    def both(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=kv_heads != 4)
        return out, torch.autograd.grad(out.square().sum(), (q, k, v))

    theory = 2 * B * 4 * T * T * (D + D)
    result = replayed(forward, *qkv(heads=4, kv_heads=kv_heads))
    assert right(result) and result.total.flops == theory
    result = replayed(both, *qkv(heads=4, kv_heads=kv_heads))
    assert right(result) and result.total.flops == theory + theory * 5 // 2


def test_products_in_disguise_are_priced(replayed, right) -> None:
    a, b = torch.randn(6, 5), torch.randn(5, 7)

    def multiply_and_sum(a, b):
        return (a[:, :, None] * b[None]).sum(1)

    result = replayed(multiply_and_sum, a, b)
    assert right(result) and result.total.flops == 0
    assert result.total.pointwise == 2 * 6 * 5 * 7  # the product, and the sum over it
    result = replayed(lambda a, b: torch.stack([a @ column for column in b.T], 1), a, b)
    assert right(result) and result.total.flops == 2 * 6 * 5 * 7 and result.total.matmul_calls == 7


def test_bytes_moved_tell_a_grown_cache_from_a_written_one(replayed, right) -> None:
    def grown(old, new):
        return torch.cat([old, new], 1)

    def written(old, new):
        old[:, -1:] = new
        return old

    old, new = torch.randn(B, T, D), torch.randn(B, 1, D)
    assert replayed(grown, old, new).total.bytes_moved == B * (T + 1) * D * 4
    assert replayed(written, old.clone(), new).total.bytes_moved == B * D * 4


def test_in_place_work_on_views_and_outputs_as_they_were(record) -> None:
    x = torch.randn(4, 4)
    recorder = Recorder(__file__)
    recorder.input(x, "x")
    with recorder:
        y = x.clone()
        y.t()[0].mul_(2)
    recorder.output(y)
    with recorder:
        y.view(-1)[::5] = 0
    recorder.output(y)
    new = torch.randn(4, 4)
    before = new.clone()
    outputs = run(recorder.finish(), {"x": new})["outputs"]
    first = before.clone()
    first[:, 0] *= 2
    torch.testing.assert_close(outputs[0], first)
    torch.testing.assert_close(outputs[1], first * (1 - torch.eye(4)))
    torch.testing.assert_close(new, before)


def test_peak_follows_frees_and_counts_arenas(replayed) -> None:
    size = 1000 * 4
    chain = replayed(lambda x: x.add(1).mul(2).sub(3), torch.randn(1000))
    assert (chain.total.peak_bytes, chain.total.allocated_bytes) == (2 * size, 3 * size)

    def kept(x):
        steps = [x + n for n in range(3)]
        return steps[0]

    assert replayed(kept, torch.randn(1000)).total.peak_bytes == 3 * size
    held = {spot["op"]: spot["peak_bytes"] for spot in chain.total.spots}
    assert held == {"add": size, "mul": size, "sub": 0}  # the first of the two peaks
    arena = torch.zeros(1000)
    assert replayed(lambda x: torch.add(x, 1, out=arena), torch.randn(1000)).total.peak_bytes == size


def test_temporaries_show_in_the_peak_where_asked(replayed) -> None:
    inputs = qkv(256, 256)

    def work(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    without = replayed(work, *inputs).total
    within = replayed(work, *inputs, measure=("temporaries",)).total
    assert within.peak_bytes > without.peak_bytes + 32 * 256 * 4  # at least one block of scores
    for total in (without, within):
        assert sum(spot["peak_bytes"] for spot in total.spots) == total.peak_bytes
    assert within.peak_bytes == replayed(work, *inputs, measure=("temporaries",)).total.peak_bytes
    # Where operators need nothing inside but a number as a tensor, both agree.
    chain = [replayed(lambda x: x.add(1).mul(2).sub(3), torch.randn(1000), measure=m).total.peak_bytes
             for m in ((), ("temporaries",))]
    assert chain[0] <= chain[1] <= chain[0] + 64


def test_rotary_embeddings_in_complex_form(replayed, right) -> None:
    def work(x):
        angles = torch.outer(torch.arange(T).float(), 10000.0 ** (-torch.arange(0, D, 2) / D))
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
        out = torch.view_as_real(turned).flatten(-2)
        return out, torch.autograd.grad(out.pow(3).sum(), x)

    assert right(replayed(work, torch.randn(B, T, D, requires_grad=True)))


def test_half_precision_integers_and_masks(replayed, right) -> None:
    table = torch.randn(50, D)
    ids, mask = torch.randint(50, (B, T)), torch.rand(B, T) < 0.5

    def work(table, ids, mask):
        rows = F.embedding(ids, table).bfloat16()
        picked = rows[mask]
        return (rows.float().cumsum(1), picked.float(), torch.topk(rows.float(), 3).values,
                table.sort(0).indices.float(), rows[ids.argsort(-1) % B].float())

    result = replayed(work, table, ids, mask)
    assert right(result)
    assert any(spot["op"] == "embedding" and spot["bytes_moved"] == B * T * D * 4 for spot in result.total.spots)


def test_convolutions_and_solves(replayed, right) -> None:
    def work(x, w, a, b):
        out = F.conv1d(x, w, padding=1)
        return out, torch.autograd.grad(out.square().sum(), (x, w)), torch.linalg.solve(a @ a.mT + torch.eye(6), b)

    x, w = torch.randn(B, 4, 10, requires_grad=True), torch.randn(5, 4, 3, requires_grad=True)
    result = replayed(work, x, w, torch.randn(6, 6), torch.randn(6, 2))
    assert right(result)
    convolution = 2 * B * 5 * 10 * 4 * 3
    assert result.total.flops == 3 * convolution + 2 * 6**3 + round(2 * 6**3 / 3 + 2 * 6**2 * 2)


def test_random_operators_are_drawn_anew(record) -> None:
    program = record(lambda x: x + torch.rand(5), torch.zeros(5))
    draws = [run(program, {"0": torch.zeros(5)}, seed=seed)["outputs"][0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_counts_are_the_same_every_time(record) -> None:
    inputs = [t.detach().requires_grad_() for t in qkv()]
    values = {str(n): t for n, t in enumerate(inputs)}
    first, second = (run(record(streaming, *inputs), values)["total"] for _ in range(2))
    assert first == second


def test_inputs_that_share_memory(replayed, right) -> None:
    def work(whole, part):
        part.mul_(3)
        return whole.sum(0)

    def truth(whole, part):
        copy = whole.clone()
        return work(copy, copy[1:])

    whole = torch.randn(4, 4)
    assert right(replayed(work, whole, whole[1:], truth=truth))
    assert not right(replayed(work, whole, whole[1:].clone(), truth=truth))


def test_other_inputs_than_recorded(record) -> None:
    program = record(lambda x: x + 1, torch.randn(3, 4))
    laid_out_otherwise = torch.randn(4, 3).t()
    result = run(program, {"0": laid_out_otherwise})
    torch.testing.assert_close(result["outputs"][0], laid_out_otherwise + 1)
    for wrong in (torch.randn(4, 3), torch.randn(3, 4).double()):
        with pytest.raises(ReplayError, match="another tensor"):
            run(program, {"0": wrong})
    with pytest.raises(ReplayError, match="not given"):
        run(program, {})
