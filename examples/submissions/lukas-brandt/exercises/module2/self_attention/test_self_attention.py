"""Visible checks of 2.1 self_attention. They earn no points; what they ask for is in README.md."""

import math

import pytest
import torch
from torch.nn import functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

# The worked example of the brief: scores are 1/2 · q·k = log(mass), so the weights are masses over their row's sum.
MASS = torch.tensor([[1.0, 1.0, 2.0], [1.0, 3.0, 4.0], [2.0, 2.0, 4.0]], dtype=torch.float64)
Q = torch.cat([2 * MASS.log(), torch.zeros(3, 1, dtype=torch.float64)], dim=1)
K = torch.eye(3, 4, dtype=torch.float64)
V = torch.tensor([[4.0, 0.0], [0.0, 4.0], [8.0, 8.0]], dtype=torch.float64)
OUTPUT = torch.tensor([[5.0, 5.0], [4.5, 5.5], [5.0, 5.0]], dtype=torch.float64)
LSE = torch.tensor([4.0, 8.0, 8.0], dtype=torch.float64).log()
NEAR = {"atol": 1e-12, "rtol": 0.0}


def normal(rng, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


@task(1)
@hint("Print your weights: the masses of row 1 are 1, 3, 4, so its weights are 1/8, 3/8, 4/8.")
def test_three_tokens(submission):
    """The worked example of the brief: weights, output, and the same with causal order."""
    same(submission.attention(Q, K, V), (OUTPUT, MASS / MASS.sum(-1, keepdim=True)), **NEAR)
    causal = torch.tensor([[4.0, 0.0], [1.0, 3.0], [5.0, 5.0]], dtype=torch.float64)
    same(submission.attention(Q, K, V, is_causal=True)[0], causal, **NEAR, what="causal output")


@task(1)
@hint("Which axis does the softmax run over?")
def test_rows_sum_to_one(submission, torch_rng):
    """Every row of the weights sums to 1 over the keys."""
    q, k, v = (normal(torch_rng, 2, t, 4) for t in (3, 5, 5))
    _, weights = submission.attention(q, k, v)
    same(weights.sum(-1), torch.ones(2, 3, dtype=torch.float64), **NEAR, what="row sums")


@task(1)
@hint("More keys than queries: the last query sees all of them. tril takes an offset.")
def test_causal_with_a_past(submission):
    """Two queries after two earlier keys: the first sees three keys, the second all four."""
    _, weights = submission.attention(torch.zeros(2, 1), torch.zeros(4, 1), torch.zeros(4, 1), is_causal=True)
    same(weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0], [0.25, 0.25, 0.25, 0.25]]), what="weights")


@task(1)
@hint("A row of -inf makes softmax compute 0/0. Handle queries that see nothing apart, before the softmax.")
def test_a_query_that_sees_nothing(submission):
    """A fully masked query gives zeros in output and weights, and a zero gradient."""
    mask = torch.tensor([[True, True, True], [False, False, False], [True, True, True]])
    (output, weights), grads = submission.vjp(
        "attention", (Q, K, V), {"mask": mask}, wrt=(0, 1, 2), cotangents=(torch.ones_like(OUTPUT), None)
    )
    same(output[1], torch.zeros(2, dtype=torch.float64), what="output of the empty row")
    same(weights[1], torch.zeros(3, dtype=torch.float64), what="weights of the empty row")
    for name, gradient in zip("qkv", grads, strict=True):
        check(bool(gradient.isfinite().all()), f"The gradient of {name} is not finite.", got=gradient)


@task(1)
@hint("float32 differs from SDPA in the last digits only; a larger difference is a mask or a scale.")
def test_agrees_with_sdpa(submission, torch_rng):
    """Heads of float32 data with an explicit mask agree with F.scaled_dot_product_attention."""
    q, k, v = (normal(torch_rng, 2, 3, t, 8, dtype=torch.float32) for t in (5, 9, 9))
    mask = torch.rand(2, 1, 5, 9, generator=torch_rng) < 0.6
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    same(submission.attention(q, k, v, mask=mask)[0], want, atol=1e-5, rtol=0.0)


@task(1)
@hint("check_qkv and check_mask are given: call them first.")
def test_wrong_arguments(submission):
    """A float mask and shapes that do not fit are refused."""
    submission.attention(Q, K, V)
    with expect_error(TypeError, "mask must be boolean"):
        submission.attention(Q, K, V, mask=torch.ones(3, 3))
    with expect_error(ValueError):
        submission.attention(Q, K[:, :2], V)


@task(2)
@hint("Names and shapes of the parameters are part of the contract: q_proj.weight is (d_head, d_model).")
def test_layer(submission, torch_rng):
    """The layer projects, attends without the padding, projects back, with the parameter names of the contract."""
    layer = submission.SelfAttention(4, 2)
    shapes = {"q_proj": (2, 4), "k_proj": (2, 4), "v_proj": (2, 4), "out_proj": (4, 2)}
    parameters = {f"{name}.weight": normal(torch_rng, *s, dtype=torch.float32) for name, s in shapes.items()}
    layer.load_state_dict(parameters)
    x = normal(torch_rng, 1, 3, 4, dtype=torch.float32)
    q, k, v = (x @ parameters[f"{name}_proj.weight"].mT for name in "qkv")
    # The last token is padding: for the two real ones it might as well not be there.
    want = F.scaled_dot_product_attention(q[:, :2], k[:, :2], v[:, :2]) @ parameters["out_proj.weight"].mT
    real = torch.tensor([[True, True, False]])
    same(layer(x, real)[:, :2], want, atol=1e-5, rtol=0.0)
    output, weights = layer(x, real, return_weights=True)
    same(output[:, :2], want, atol=1e-5, rtol=0.0, what="output with return_weights=True")
    same(weights[..., 2], torch.zeros(1, 3), what="weights of the padding")


@task(3)
@hint("Rows: all on one key, spread over two, nothing. Entropies: 0, log 2, 0.")
def test_summary_by_hand(submission):
    """Three rows by hand: one key, two keys equally, and an empty row."""
    s = submission.summarise_attention(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]))
    log2 = math.log(2)
    for name, got, want in (
        ("entropy", s.entropy, [0.0, log2, 0.0]),
        ("effective_keys", s.effective_keys, [1.0, 2.0, 1.0]),
        ("argmax_key", s.argmax_key, [0, 0, -1]),
        ("mean_distance", s.mean_distance, [0.0, 0.5, 0.0]),
        ("received", s.received, [0.5, 1 / 6, 0.0]),
        ("sink_mass", s.sink_mass, 0.5),
    ):
        same(torch.as_tensor(got), torch.as_tensor(want, dtype=torch.float64), dtype=None, **NEAR, what=name)


@probe
def picture(module, weights, query_tokens, key_tokens):
    """Data, limits and labels of the one image on the figure, after drawing it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = module.plot_attention(weights, query_tokens, key_tokens)
    FigureCanvasAgg(figure).draw()
    (ax,) = (ax for ax in figure.axes if ax.images)
    return {
        "data": [[float(x) for x in row] for row in ax.images[0].get_array()],
        "limits": [float(x) for x in ax.images[0].get_clim()],
        "x_labels": [t.get_text() for t in ax.get_xticklabels()],
        "y_labels": [t.get_text() for t in ax.get_yticklabels()],
    }


@task(4)
@hint("imshow(weights, vmin=0, vmax=1); rows are queries. Tokens with `$` need parse_math=False.")
def test_picture(submission):
    """The figure shows the weights as they are, on colours from 0 to 1, with a tick for each token."""
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.25, 0.75]])
    facts = submission.run(picture, weights, ["the", "$\\frac$"], ["<s>", "the", "$\\frac$"])
    same(torch.tensor(facts["data"]), weights, atol=1e-6, rtol=0.0, what="image")
    check(facts["limits"] == [0.0, 1.0], "Colour limits are not (0, 1).", got=facts["limits"])
    check(facts["x_labels"] == ["<s>", "the", "$\\frac$"], "x labels are the keys.", got=facts["x_labels"])
    check(facts["y_labels"] == ["the", "$\\frac$"], "y labels are the queries.", got=facts["y_labels"])


@task(5)
@hint("Follow row 1 by hand with block_k = 2: m = log 3, l = 4/3, then m = log 4, l = 3/4 · 4/3 + 1 = 2.")
def test_streaming_by_hand(submission):
    """The worked example in blocks of 1, 2 and 3 keys gives the same output, and its log-sum-exp."""
    for block_k in (1, 2, 3):
        got = submission.streaming_attention(Q, K, V, block_q=2, block_k=block_k)
        same(got, (OUTPUT, LSE), **NEAR, what=f"(output, lse) with block_k={block_k}")


@task(5)
@hint("Does it depend on the block size? Then look at what happens when the maximum grows.")
def test_streaming_equals_attention(submission, torch_rng):
    """Streaming with three block sizes equals `attention`, causal and not."""
    q, k, v = (normal(torch_rng, 2, t, 4) for t in (6, 10, 10))
    for causal in (False, True):
        want, _ = submission.attention(q, k, v, is_causal=causal)
        for block in (1, 4, 16):
            got, _ = submission.streaming_attention(q, k, v, is_causal=causal, block_q=block, block_k=block)
            same(got, want, **NEAR, what=f"output with blocks of {block}")


@task(6)
@hint("exp(lse) is the mass of a part: log 4 and log 4 are two equal halves of row 1.")
def test_merge_by_hand(submission):
    """Keys {0, 1} and {2} of the worked example, merged, give the whole; merging with (0, -inf) changes nothing."""
    first = submission.merge_attention(
        torch.tensor([[2.0, 2.0], [1.0, 3.0], [2.0, 2.0]], dtype=torch.float64),
        torch.tensor([2.0, 4.0, 4.0], dtype=torch.float64).log(),
        torch.full((3, 2), 8.0, dtype=torch.float64),
        torch.tensor([2.0, 4.0, 4.0], dtype=torch.float64).log(),
    )
    same(first, (OUTPUT, LSE), **NEAR)
    nothing = torch.zeros_like(OUTPUT), torch.full_like(LSE, -math.inf)
    same(submission.merge_attention(*nothing, OUTPUT, LSE), (OUTPUT, LSE), **NEAR, what="merge with nothing")


@task(7)
@hint("Start with dV = Pᵀ dO: it needs neither dP nor δ.")
def test_streaming_gradients(submission, torch_rng):
    """At T = 4, gradients through output and lse equal finite differences."""
    inputs = [normal(torch_rng, 4, 3) for _ in range(3)]
    d_out, d_lse = normal(torch_rng, 4, 3), normal(torch_rng, 4)
    blocks = {"block_q": 3, "block_k": 2}
    _, grads = submission.vjp(
        "streaming_attention", tuple(inputs), blocks, wrt=(0, 1, 2), cotangents=(d_out, d_lse)
    )

    def loss(*qkv):
        out, lse = submission.streaming_attention(*qkv, **blocks)
        return ((out * d_out).sum() + (lse * d_lse).sum()).item()

    step = 1e-5
    for n, (name, gradient) in enumerate(zip("qkv", grads, strict=True)):
        direction = normal(torch_rng, 4, 3)
        ahead, behind = ([x + s * step * direction * (i == n) for i, x in enumerate(inputs)] for s in (1, -1))
        slope = (loss(*ahead) - loss(*behind)) / (2 * step)
        want = (gradient * direction).sum().item()
        same(want, slope, atol=1e-7, rtol=1e-6, what=f"slope along a random direction of {name}")


@task(8)
@hint("This check only shows numbers. The limit of task 8 is ten times the bytes of x.")
def test_memory_is_shown(submission, budget, torch_rng):
    """For your information: peak bytes of both functions and of the layer at T = 1024 (1 head, D = 32)."""
    q, k, v = (normal(torch_rng, 1, 1024, 32, dtype=torch.float32) for _ in range(3))
    for name, scenario in (
        ("attention", lambda s, *x: s.attention(*x)[0]),
        ("streaming_attention", lambda s, *x: s.streaming_attention(*x, block_q=256, block_k=256)[0]),
    ):
        run = budget.replay(scenario, q, k, v, expect=lambda *x: F.scaled_dot_product_attention(*x), tol=1e-4)
        budget.require(f"peak bytes of {name}", run.peak_bytes, unit="bytes")


@task(5)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@hint("Create every tensor with device=q.device.")
def test_on_a_gpu(submission, torch_rng):
    """The same function runs on CUDA tensors."""
    q, k, v = (normal(torch_rng, 2, 300, 16, dtype=torch.float32) for _ in range(3))
    got = submission.run(on_cuda, q, k, v)
    want = F.scaled_dot_product_attention(q, k, v)
    same(got, want, atol=1e-3, rtol=0.0)


@probe
def on_cuda(module, q, k, v):
    """Output of streaming_attention computed on the GPU."""
    return module.streaming_attention(q.cuda(), k.cuda(), v.cuda())[0].cpu()
